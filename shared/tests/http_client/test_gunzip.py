"""Bodies in pieces, also those that are made to be slow."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator

import pytest

from containerd_shimkit.http_client.gunzip import BadGzipError, gunzip


async def read(*parts: bytes) -> bytes:
    async def body() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return b"".join([piece async for piece in gunzip(body())])


def test_several_members_are_one_body() -> None:
    whole = gzip.compress(b"one, ") + gzip.compress(b"") + gzip.compress(b"two")
    assert asyncio.run(read(whole)) == b"one, two"
    assert asyncio.run(read(*(whole[n : n + 1] for n in range(len(whole))))) == b"one, two"


@pytest.mark.parametrize("data", [b"text", gzip.compress(b"text")[:-1]], ids=["text", "cut off"])
def test_what_is_no_gzip_fails(data: bytes) -> None:
    with pytest.raises(BadGzipError):
        asyncio.run(read(data))


def test_others_are_served_while_members_of_nothing_are_read() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def main() -> None:
        turning = asyncio.create_task(turn())
        assert await read(gzip.compress(b"") * 1000) == b""
        turning.cancel()

    asyncio.run(main())
    assert turns >= 500
