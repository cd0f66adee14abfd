"""The node's cache of compiled modules.

One file an entry: the compiled code as wasmtime serialized it, a label that says what it was made
from, the label's length (2 bytes, little endian), and a sha256 (32 bytes) over the entry's name
and all that comes before. wasmtime ignores what follows the code. An entry is verified each time
it is opened; one that is torn, damaged, foreign or another's is removed, never run. The directory
belongs to root, mode 0700.

Three kinds of locks, none of which anybody waits for without end:

- An entry's file is locked (shared, ``flock``) by whoever has it open, for as long as a container
  runs it; what is locked is not removed to make room.
- A temporary file exists while its writer has the directory locked (shared). Whoever gets that
  lock alone knows that all temporary files there are of writers that were killed.
- A byte of ``.lock``, one for each key, is held (``lockf``) while a module is compiled: others
  that want the same one wait for the result.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final, Self

_DIGEST_BYTES: Final = 32
_LENGTH_BYTES: Final = 2
_SUFFIX: Final = ".cwasm"
_TEMPORARY: Final = ".new-"
_LOCK: Final = ".lock"
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_READ_BYTES: Final = 1 << 20
_LOCK_TRIES: Final = 20
_LOCK_POLL_SECONDS: Final = 0.001
_COMPILING_SECONDS: Final = 120.0  # then whoever waits for another's result compiles itself
_COMPILING_POLL_SECONDS: Final = 0.01  # fcntl has no lock with a deadline


@cache
def cpu_fingerprint() -> str:
    """Return a digest of what the first processor can do; compiled code depends on it."""
    digest = hashlib.sha256(os.uname().machine.encode())
    with contextlib.suppress(OSError), open("/proc/cpuinfo", "rb") as cpuinfo:
        for line in cpuinfo:
            if not line.strip():
                break  # the end of the first processor
            if line.startswith((b"flags", b"Features", b"CPU part", b"model name")):
                digest.update(line)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Label:
    """What was compiled, by what, for which processor."""

    wasm: str
    """sha256 of the module's bytes, in hex."""
    compiler: str
    """Version and settings: ``engine.COMPILER_FINGERPRINT``."""
    cpu: str

    @classmethod
    def of(cls, wasm: bytes, compiler: str) -> Self:
        """Return the label of what ``compiler`` makes of a module's bytes on this machine."""
        return cls(hashlib.sha256(wasm).hexdigest(), compiler, cpu_fingerprint())

    @property
    def key(self) -> str:
        """The entry's name."""
        text = f"{self.wasm} {self.compiler} {self.cpu}"
        return hashlib.sha256(text.encode()).hexdigest()

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises ValueError, TypeError."""
        return cls(**json.loads(data))


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the cache, whether it is intact or not."""

    path: Path
    size: int
    """Bytes."""
    used: float
    """When it was opened last, seconds since 1970."""

    @property
    def key(self) -> str:
        return self.path.name.removesuffix(_SUFFIX)


class CompiledModuleCache:
    """A directory of verified entries."""

    def __init__(self, directory: Path, view: int = -1, *, max_bytes: int | None = None) -> None:
        """view: of the same directory, a descriptor through which entries are opened; now ours.

        max_bytes: of all entries together; what is in use stays, even if it takes more. None is no
        limit.
        """
        self.directory = directory
        self._view = view
        self._max_bytes = max_bytes

    def close(self) -> None:
        """Close ``view``."""
        if self._view >= 0:
            os.close(self._view)
            self._view = -1

    def open(self, key: str) -> int | None:
        """Return a read-only descriptor of the verified entry, or None if there is none.

        The entry counts as in use until the descriptor and all its copies are closed. A damaged one
        is removed. Errors of the file system count as "none".
        """
        path = self._path(key)
        try:
            if self._view >= 0:
                descriptor = os.open(path.name, _READ, dir_fd=self._view)
            else:
                descriptor = os.open(path, _READ)
        except OSError:
            return None
        _mark_in_use(descriptor)
        try:
            intact = read_label(descriptor, key) is not None
        except OSError:  # the disk cannot read it
            intact = False
        if intact:
            with contextlib.suppress(OSError):
                os.utime(path)  # "least recently used" is decided by this
            return descriptor
        os.close(descriptor)
        with contextlib.suppress(OSError):
            _remove(path)
        return None

    def store(self, key: str, code: mmap.mmap | bytes, label: bytes = b"{}") -> None:
        """Write an entry. Raises OSError; nothing half-written is ever visible under the key."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._writing():
            descriptor, temporary = tempfile.mkstemp(dir=self.directory, prefix=_TEMPORARY)
            try:
                with open(descriptor, "wb") as file:
                    digest = hashlib.sha256(key.encode())
                    for part in (code, label, len(label).to_bytes(_LENGTH_BYTES, "little")):
                        digest.update(part)
                        file.write(part)
                    file.write(digest.digest())
                    # The engine opens it as the container's user, through a descriptor it was
                    # given.
                    os.fchmod(file.fileno(), 0o444)
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).rename(self._path(key))
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()
                raise

    @contextlib.contextmanager
    def compiling(self, key: str) -> Iterator[None]:
        """Wait until nobody else compiles this key, or for two minutes.

        The lock ends with the process, however that ends; it is not inherited by a fork.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(self.directory / _LOCK, flags, 0o600)
        except OSError:  # a full or read-only disk: then there is nothing to wait for
            yield
            return
        at = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little")
        deadline = time.monotonic() + _COMPILING_SECONDS
        try:
            while not _try_lockf(lock, at) and time.monotonic() < deadline:
                time.sleep(_COMPILING_POLL_SECONDS)
            yield
        finally:
            os.close(lock)

    def entries(self) -> list[Entry]:
        """Return what is there, least recently used first. Raises OSError."""
        found = []
        try:
            paths = [path for path in self.directory.iterdir() if path.suffix == _SUFFIX]
        except FileNotFoundError:
            return []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                found.append(Entry(path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: entry.used)

    def trim(self) -> None:
        """Remove what killed writers left, and unused entries until all fit into ``max_bytes``.

        Raises OSError if the directory cannot be read.
        """
        self.sweep()
        if self._max_bytes is None:
            return
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total <= self._max_bytes:
                return
            if self.remove_unused(entry.path):
                total -= entry.size

    def sweep(self) -> None:
        """Remove temporary files that no writer has any more. Raises OSError."""
        with self._lock_directory(fcntl.LOCK_EX) as alone:
            if alone:
                for path in self.directory.iterdir():
                    if path.name.startswith(_TEMPORARY):
                        path.unlink(missing_ok=True)

    def remove_unused(self, path: Path) -> bool:
        """Remove an entry unless a container has it open; return whether it is gone."""
        try:
            descriptor = os.open(path, _READ)
        except OSError:  # gone, or a symlink, which nobody opens
            descriptor = -1
        try:
            if descriptor >= 0:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return True

    def _path(self, key: str) -> Path:
        return self.directory / (key + _SUFFIX)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        # Without the lock, if a sweep holds it: that may take our file, which the rename notices.
        with self._lock_directory(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def _lock_directory(self, how: int) -> Iterator[bool]:
        try:
            directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield False
            return
        try:
            try:
                fcntl.flock(directory, how | fcntl.LOCK_NB)
                locked = True
            except OSError:
                locked = False
            yield locked
        finally:
            os.close(directory)


def read_label(descriptor: int, key: str) -> bytes | None:
    """Return the label of the entry of this name, None if the file is no intact one.

    Raises OSError if it cannot be read.
    """
    status = os.fstat(descriptor)
    size = status.st_size
    if not stat.S_ISREG(status.st_mode) or size <= _DIGEST_BYTES + _LENGTH_BYTES:
        return None
    # Not through a mapping, where a read error is a signal that ends the process.
    digest = hashlib.sha256(key.encode())
    at, covered = 0, size - _DIGEST_BYTES
    while at < covered:
        data = os.pread(descriptor, min(_READ_BYTES, covered - at), at)
        if not data:
            return None  # it has become shorter
        digest.update(data)
        at += len(data)
    if digest.digest() != os.pread(descriptor, _DIGEST_BYTES, covered):
        return None
    end = covered - _LENGTH_BYTES
    length = int.from_bytes(os.pread(descriptor, _LENGTH_BYTES, end), "little")
    return os.pread(descriptor, length, end - length) if length < end else None


def is_in_use(path: Path) -> bool:
    """Return whether a container has the entry open."""
    try:
        descriptor = os.open(path, _READ)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _mark_in_use(descriptor: int) -> None:
    """Lock an entry, if need be in a moment: ``is_in_use`` has it for as long as it asks.

    Who has it longer is removing the entry, and what is open stays readable.
    """
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_POLL_SECONDS)
        except OSError:  # no locks here
            return
        else:
            return


def _try_lockf(descriptor: int, at: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)
    except (BlockingIOError, PermissionError):  # EAGAIN, EACCES: somebody has it
        return False
    except OSError:  # no locks here, as on some network file systems
        return True
    return True


def _remove(path: Path) -> None:
    """Remove what lies in an entry's place; a directory only if it is empty. Raises OSError."""
    try:
        path.unlink()
    except IsADirectoryError:
        path.rmdir()
