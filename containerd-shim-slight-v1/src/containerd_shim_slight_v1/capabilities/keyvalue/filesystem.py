"""``keyvalue.filesystem``: a file for each key, ``$TMPDIR/STORE/KEY``, by default below ``/tmp``.

It is kept as long as that directory is: the container's life, or longer on a volume.

Values and lists are dealt with in pieces, between which others are served.

What is no regular file is nobody's value. Of a key, ``%``, ``/``, NUL and a dot in front are
written as in a URL; file names that begin with a dot are values under way.

Source: SpiderLightning 0.5 crates/keyvalue/src/implementors/filesystem.rs.
"""

from __future__ import annotations

import asyncio
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from typing import Final
from urllib.parse import unquote

from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.directories import (
    CREATE,
    READ,
    Directories,
    name_fault,
    reason,
)
from containerd_shim_slight_v1.capabilities.keyvalue.base import (
    MAX_VALUE_BYTES,
    InvalidKeyError,
    InvalidValueError,
    KeyNotFoundError,
    KeyValueBackend,
    KeyValueError,
    StoreIoError,
)
from containerd_shim_slight_v1.capabilities.listing import Names

_PIECE_BYTES: Final = 1 << 20
_ENTRIES: Final = 1000


class Backend(KeyValueBackend):
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._directories = Directories(context.app.environment)
        self._numbers = count()

    async def open(self, store: str) -> None:
        if (fault := name_fault(store)) is not None:
            raise KeyValueError(f"{fault}, which a store is")
        with self._opened(store):
            pass

    async def get(self, store: str, key: str) -> bytes | bytearray:
        name = _file_name(key)
        with self._opened(store) as directory:
            try:
                descriptor = os.open(name, READ, dir_fd=directory)
            except FileNotFoundError:
                raise KeyNotFoundError(key) from None
            with open(descriptor, "rb", buffering=0) as file:
                return await _read(file, key)

    async def set(self, store: str, key: str, value: bytes) -> None:
        name = _file_name(key)
        if len(value) > MAX_VALUE_BYTES:
            raise InvalidValueError(f"{len(value)} bytes, more than {MAX_VALUE_BYTES}")
        with self._opened(store) as directory:
            # Whoever reads gets the old value or the new one.
            temporary = f".{os.getpid()}-{next(self._numbers)}".encode()
            try:
                await _write_new(directory, temporary, value)
                os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                _remove_quietly(directory, temporary)
                raise

    async def keys(self, store: str) -> list[str]:
        keys = Names(f"store {store!r}", StoreIoError)
        with self._opened(store) as directory, os.scandir(directory) as entries:
            while some := list(islice(entries, _ENTRIES)):
                keys.add(_key_of(entry.name) for entry in some if _is_value(entry))
                await asyncio.sleep(0)
        return list(keys)

    async def delete(self, store: str, key: str) -> None:
        name = _file_name(key)
        with self._opened(store) as directory:
            try:
                os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                raise KeyNotFoundError(key) from None

    @contextmanager
    def _opened(self, store: str) -> Iterator[int]:
        """Yield a descriptor of a store's directory, made if it is not there.

        What fails with it open is a StoreIoError.
        """
        try:
            with self._directories.opened(store) as directory:
                yield directory
        except OSError as exc:
            raise StoreIoError(f"store {store!r}: {reason(exc)}") from exc


def _file_name(key: str) -> bytes:
    """Return the name of a key's file. Raises InvalidKeyError."""
    if not key:
        raise InvalidKeyError("a key must not be empty")
    name = key.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    encoded = name.encode()
    if len(encoded) > 255:  # NAME_MAX
        raise InvalidKeyError(f"the name of the key's file has {len(encoded)} bytes, more than 255")
    return encoded


def _key_of(name: str) -> str:
    # An image's file may have any name; what is no UTF-8 is nothing that a guest could ask for.
    return unquote(os.fsencode(name).decode(errors="replace"))


def _is_value(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and entry.is_file(follow_symlinks=False)


async def _read(file: io.FileIO, key: str) -> bytearray:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise StoreIoError(f"key {key!r}: its file is not a regular one")
    if status.st_size > MAX_VALUE_BYTES:
        raise StoreIoError(f"key {key!r}: {status.st_size} bytes, more than {MAX_VALUE_BYTES}")
    # Not made or joined in one turn, which would be as long as copying it all.
    content = bytearray()
    while len(content) < status.st_size and (piece := file.read(_PIECE_BYTES)):
        content += piece
        if len(piece) == _PIECE_BYTES:
            await asyncio.sleep(0)
    return content


async def _write_new(directory: int, name: bytes, value: bytes) -> None:
    with open(os.open(name, CREATE, 0o644, dir_fd=directory), "wb", buffering=0) as file:
        left = memoryview(value)
        while left:
            left = left[file.write(left[:_PIECE_BYTES]) :]
            if left:
                await asyncio.sleep(0)


def _remove_quietly(directory: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:
        return
