"""What guests have open: containers, and streams that read or write one object.

Upstream's guests do not close what they write (its ``close`` ends the process), and upstream
replaces or extends the object at each write. So an object is stored, too, when its stream is
dropped, when the guest ends by itself, and as far as it is one part before the guest next asks for
anything of the store; until then nobody sees it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from containerd_shim_slight_v1.capabilities.blobstore.base import (
    MAX_PARTS,
    MAX_READ_BYTES,
    PART_BYTES,
    BlobBackend,
    BlobError,
    ObjectInfo,
    Upload,
)
from containerd_shim_slight_v1.capabilities.errors import CapabilityError

MAX_WRITE_STREAMS: Final = 8
"""Of a guest: each may hold a part in memory."""
_AHEAD_BYTES: Final = 256 << 10  # read at once where a guest asks for less
_END_SECONDS: Final = 10.0  # for what a guest did not close

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenContainer:
    """A container that a guest has opened."""

    backend: BlobBackend
    name: str


class ReadStream:
    """An object from its start to its end."""

    def __init__(self, backend: BlobBackend, info: ObjectInfo) -> None:
        self._backend = backend
        self._info = info
        self._position = 0
        self._ahead = b""
        self._ahead_at = 0

    @property
    def available(self) -> int:
        """How many bytes are left."""
        return self._info.size - self._position

    async def read(self, size: int) -> bytes | None:
        """Return the next bytes, at most ``size``; None at the end. Raises BlobError."""
        if not size:
            return b""
        if not self.available:
            return None
        size = min(size, self.available, MAX_READ_BYTES)
        start = self._position - self._ahead_at
        if start + size > len(self._ahead):
            wanted = min(max(size, _AHEAD_BYTES), self.available)
            found = await self._backend.read(self._info, self._position, wanted)
            if len(found) != wanted:
                raise BlobError(f"object {self._info.name!r}: the server sends another length")
            if size == wanted:
                self._position += size
                return found
            self._ahead, self._ahead_at, start = found, self._position, 0
        self._position += size
        return self._ahead[start : start + size]


class WriteStream:
    """An object that comes to be."""

    def __init__(self, container: OpenContainer, name: str) -> None:
        self._container = container
        self._name = name
        self._buffer = bytearray()
        self._upload: Upload | None = None
        self._parts = 0
        self._changed = False
        self._ended = False
        self._given_up = False

    async def write(self, data: bytes) -> None:
        """Add bytes to the object. Raises BlobError; then nothing is stored that was not yet."""
        if self._ended:
            raise BlobError(f"object {self._name!r}: its stream is closed")
        self._buffer += data
        self._changed = True
        while len(self._buffer) > PART_BYTES:
            try:
                await self._send_part(PART_BYTES)
            except BaseException:
                await self._abandon()
                raise

    async def finish(self) -> None:
        """Store the object, an empty one, too. Raises BlobError."""
        if not self._ended:
            self._changed = True
            await self._store()
            self._ended = True

    async def settle(self) -> None:
        """Store what there is, if it is one part; more can be written. Raises BlobError."""
        if self._changed and self._upload is None and not self._ended:
            await self._store()

    def give_up(self) -> None:
        """Have the stream end without what is not stored yet: nobody knows whether it is all."""
        self._given_up = True

    async def close(self) -> None:
        """End the stream, which the guest did not: it gets no error any more."""
        if self._given_up and not self._ended:
            await self._abandon()
        if self._ended or not self._changed:
            return
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self._store()
        except (CapabilityError, TimeoutError) as exc:
            log.warning("object %r is not stored: %s", self._name, exc or "it takes too long")
        self._ended = True

    async def _store(self) -> None:
        backend, container = self._container.backend, self._container.name
        if self._upload is None:
            await backend.write(container, self._name, bytes(self._buffer))
        else:
            try:
                if self._buffer:
                    await self._send_part(len(self._buffer))
                await self._upload.finish()
            except BaseException:
                await self._abandon()
                raise
        self._changed = False

    async def _send_part(self, size: int) -> None:
        if self._upload is None:
            self._upload = await self._container.backend.begin(self._container.name, self._name)
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BlobError(f"object {self._name!r} has more than {MAX_PARTS * PART_BYTES} bytes")
        await self._upload.add(bytes(self._buffer[:size]))
        del self._buffer[:size]

    async def _abandon(self) -> None:
        self._ended = True
        self._buffer.clear()
        upload, self._upload = self._upload, None
        if upload is None:
            return
        try:
            async with asyncio.timeout(_END_SECONDS):
                await upload.abandon()
        except (CapabilityError, TimeoutError) as exc:
            log.warning("parts of object %r are left: %s", self._name, exc or "no answer")


async def settle_all(streams: Iterable[WriteStream]) -> None:
    """Have a guest see what it wrote. Raises BlobError."""
    for stream in streams:
        await stream.settle()
