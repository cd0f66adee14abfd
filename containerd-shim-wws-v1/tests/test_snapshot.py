"""Snapshots of memories that are large, where others are to be served meanwhile."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from containerd_shim_wws_v1.snapshot import Snapshot, SnapshotBudget, SnapshotTooLargeError

MIB = 1 << 20


class Memory:
    """What a snapshot needs of a guest."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def grow_memory(self, size: int) -> None:
        self.data = self.data.ljust(size, b"\0")

    def memory(self) -> memoryview:
        return memoryview(self.data)


def run(main: Coroutine[Any, Any, int]) -> int:
    """Return how many turns others have had."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def both() -> int:
        counting = asyncio.create_task(count())
        try:
            return await main
        finally:
            counting.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(both())
    return turns


async def snapshot_of(loaded: bytes | bytearray, initial: int, limit: int = 256 * MIB) -> Snapshot:
    return await Snapshot.take(
        memoryview(loaded), memoryview(bytes(initial)), SnapshotBudget(limit)
    )


def test_memory_is_as_it_was() -> None:
    loaded = bytearray(9 * MIB)
    for at in (0, 4095, 4096, 65_535, 65_536, 2 * MIB, 9 * MIB - 1):
        loaded[at] = 7
    loaded[3 * MIB : 8 * MIB] = b"x" * (5 * MIB)

    async def main() -> int:
        snapshot = await snapshot_of(loaded, MIB)
        assert 5 * MIB <= snapshot.size <= 5 * MIB + 7 * 4096
        guest = Memory(MIB)
        await snapshot.restore(guest)  # type: ignore[arg-type]
        assert guest.data == loaded
        return 0

    run(main())


def test_others_are_served_while_memory_is_compared() -> None:
    async def main() -> int:
        assert (await snapshot_of(bytes(64 * MIB), MIB)).size == 0
        return 0

    assert run(main()) > 10


def test_others_are_served_while_memory_is_restored() -> None:
    async def main() -> int:
        snapshot = await snapshot_of(b"x" * (64 * MIB), MIB)
        counted = 0

        async def count() -> None:
            nonlocal counted
            while True:
                counted += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await snapshot.restore(Memory(MIB))  # type: ignore[arg-type]
        counting.cancel()
        return counted

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) > 10


def test_what_may_not_be_kept_is_not_copied() -> None:
    loaded = b"x" * (64 * MIB)

    async def main() -> int:
        tracemalloc.start()
        try:
            with pytest.raises(SnapshotTooLargeError, match="1024 KiB that are left of the 1 MiB"):
                await snapshot_of(loaded, MIB, limit=MIB)
            assert tracemalloc.get_traced_memory()[1] < 8 * MIB
        finally:
            tracemalloc.stop()
        return 0

    run(main())
