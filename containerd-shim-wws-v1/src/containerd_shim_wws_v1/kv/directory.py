"""Stores in a directory, which a volume may be: a file of JSON for each namespace.

A file is replaced whole, under a lock that other processes and pods respect, so that readers see
the values before a change or after it. What is no such file is an error, never followed or waited
for.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from containerd_shim_wws_v1.kv.base import Changes, Store, StoreError, check_size

LOCK_SECONDS: Final = 5.0
_MAX_FILE_BYTES: Final = 128 << 20  # JSON may have six bytes for one
_RETRY_SECONDS: Final = 0.005
_MAX_NAME: Final = 200

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_Stamp = tuple[int, int, int]
"""Of a file: what is another one after each change."""


class DirectoryStore(Store):
    """See the module."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[str, tuple[_Stamp, dict[str, str]]] = {}
        # One thread at most waits for the file's lock: there are few of them.
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def read(self, namespace: str) -> Mapping[str, str]:
        return await asyncio.to_thread(self._read, namespace)

    async def change(self, namespace: str, changes: Changes) -> None:
        """See ``Store``. Cancelled while it waits for a lock, or writes, it changes nothing."""
        given_up = threading.Event()
        async with self._changing[namespace]:
            working = asyncio.create_task(
                asyncio.to_thread(self._change, namespace, changes, given_up)
            )
            try:
                await asyncio.shield(working)
            except asyncio.CancelledError:
                given_up.set()
                # The next one is not to wait for the lock in another thread.
                await asyncio.gather(working, return_exceptions=True)
                raise

    async def close(self) -> None:
        """Nothing is open."""

    def _read(self, namespace: str) -> dict[str, str]:
        path = self._path(namespace)
        with _naming(namespace):
            try:
                descriptor = os.open(path, _READ)
            except FileNotFoundError:
                return {}
            with open(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise StoreError(f"the store {namespace!r}: {path} is no regular file")
                stamp = status.st_ino, status.st_size, status.st_mtime_ns
                known = self._known.get(namespace)
                if known is not None and known[0] == stamp:
                    return known[1]
                if status.st_size > _MAX_FILE_BYTES:
                    raise StoreError(f"the store {namespace!r}: {path} is too large")
                values = _parse(file.read(_MAX_FILE_BYTES))
        if values is None:
            raise StoreError(f"the store {namespace!r}: {path} is no JSON object of strings")
        check_size(namespace, values)
        self._known[namespace] = stamp, values
        return values

    def _change(self, namespace: str, changes: Changes, given_up: threading.Event) -> None:
        path = self._path(namespace)
        with _naming(namespace), _locked(path.with_suffix(".lock"), namespace, given_up):
            values = changes.apply(self._read(namespace))
            check_size(namespace, values)
            temporary = path.with_suffix(f".{os.getpid()}.new")
            temporary.unlink(missing_ok=True)  # of a process that was killed
            try:
                with open(os.open(temporary, _WRITE, 0o644), "wb") as file:
                    file.write(json.dumps(values, ensure_ascii=False).encode())
                    file.flush()
                    _make_later(file.fileno(), path)
                _check_wanted(namespace, given_up)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def _path(self, namespace: str) -> Path:
        name = quote(namespace, safe="").replace(".", "%2E")
        if len(name) > _MAX_NAME:
            raise StoreError(f"the store {namespace!r}: its name is too long for a file's")
        return self._directory / f"{name}.json"


def _make_later(descriptor: int, than: Path) -> None:
    """Give a new file a time after that of the one whose place it takes.

    A kernel may count time in steps of 4 ms, and give a number that has become free to the next
    file: then others would take this one for what they know.
    """
    try:
        before = than.lstat().st_mtime_ns
    except FileNotFoundError:
        before = 0
    now = max(time.time_ns(), before + 1)
    os.utime(descriptor, ns=(now, now))


def _parse(data: bytes) -> dict[str, str] | None:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        return None
    return values


@contextmanager
def _naming(namespace: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StoreError(f"the store {namespace!r}: {exc.filename}: {exc.strerror}") from exc


def _check_wanted(namespace: str, given_up: threading.Event) -> None:
    if given_up.is_set():
        raise StoreError(f"the store {namespace!r}: the change is given up")


@contextmanager
def _locked(path: Path, namespace: str, given_up: threading.Event) -> Iterator[None]:
    """Hold a lock, which the kernel takes back from whoever dies."""
    deadline = time.monotonic() + LOCK_SECONDS
    descriptor = os.open(path, _LOCK, 0o644)
    try:
        while True:
            _check_wanted(namespace, given_up)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"the store {namespace!r}: others have had it for {LOCK_SECONDS:g} s"
                    ) from None
                time.sleep(_RETRY_SECONDS)
        yield
    finally:
        os.close(descriptor)
