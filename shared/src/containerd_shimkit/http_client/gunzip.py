"""Bodies compressed by gzip, decompressed piece by piece."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Final

_PIECE_BYTES: Final = 256 << 10
_GZIP: Final = zlib.MAX_WBITS | 16


class BadGzipError(ValueError):
    """What should be gzip is not, or it ends too early."""


async def gunzip(body: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield what ``body`` was made of, in pieces of a bounded size. Raises BadGzipError.

    Others get their turn between pieces: a thousand times as much may come of a body.
    """
    decoder = zlib.decompressobj(_GZIP)
    begun = False
    async for data in body:
        begun = begun or bool(data)
        full = False
        while data or full:
            if decoder.eof:  # a file of several members
                decoder = zlib.decompressobj(_GZIP)
            try:
                piece = decoder.decompress(data, _PIECE_BYTES)
            except zlib.error:
                raise BadGzipError("the body is no gzip") from None
            data = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
            full = len(piece) == _PIECE_BYTES and not decoder.eof
            if piece:
                yield piece
            if full or decoder.eof:  # a member of nothing takes its time, too
                await asyncio.sleep(0)
    if begun and not decoder.eof:
        raise BadGzipError("the compressed body ends too early")
