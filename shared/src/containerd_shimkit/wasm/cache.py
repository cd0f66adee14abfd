"""The node's cache of compiled modules.

One file an entry: the compiled code as wasmtime serialized it, then the sha256 of those bytes (32
bytes, which wasmtime ignores at the end of a file). Written to a temporary name, synced and
renamed. An entry is verified each time it is opened; one that is torn, damaged or foreign is
removed, never run. The directory belongs to root, mode 0700.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

DIGEST_BYTES: Final = 32
_SUFFIX: Final = ".cwasm"


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


def cache_key(wasm_digest: bytes, fingerprint: str) -> str:
    """Return the entry's name: what was compiled, by what, for which processor."""
    text = f"{wasm_digest.hex()} {fingerprint} {cpu_fingerprint()}"
    return hashlib.sha256(text.encode()).hexdigest()


class CompiledModuleCache:
    """A directory of verified entries."""

    def __init__(self, directory: Path, view: int = -1) -> None:
        """view: of the same directory, a descriptor through which entries are opened; now ours."""
        self.directory = directory
        self._view = view

    def close(self) -> None:
        """Close ``view``."""
        if self._view >= 0:
            os.close(self._view)
            self._view = -1

    def open(self, key: str) -> int | None:
        """Return a read-only descriptor of the verified entry, or None if there is none.

        The caller closes it. A damaged entry is removed. Errors of the file system count as "none".
        """
        path = self.directory / (key + _SUFFIX)
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            if self._view >= 0:
                descriptor = os.open(path.name, flags, dir_fd=self._view)
            else:
                descriptor = os.open(path, flags)
        except OSError:
            return None
        if _is_intact(descriptor):
            with contextlib.suppress(OSError):
                os.utime(path)  # "least recently used" is decided by this
            return descriptor
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def store(self, key: str, code: mmap.mmap | bytes) -> None:
        """Write an entry. Raises OSError; nothing half-written is ever visible under the key."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self.directory, prefix=".new-")
        try:
            with open(descriptor, "wb") as file:
                file.write(code)
                file.write(hashlib.sha256(code).digest())
                # The engine opens it as the container's user, through a descriptor it was given.
                os.fchmod(file.fileno(), 0o444)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).rename(self.directory / (key + _SUFFIX))
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise


def _is_intact(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    size = status.st_size
    if not stat.S_ISREG(status.st_mode) or size <= DIGEST_BYTES:
        return False
    with (
        mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as data,
        memoryview(data) as view,
        view[:-DIGEST_BYTES] as code,
    ):
        return hashlib.sha256(code).digest() == data[-DIGEST_BYTES:]
