"""Snapshots of memories that are large, where others are to be served meanwhile."""

from __future__ import annotations

import asyncio
import struct
import tracemalloc
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from containerd_shim_wws_v1.snapshot import Snapshot, SnapshotPages, SnapshotTooLargeError

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
    return await Snapshot.take(memoryview(loaded), memoryview(bytes(initial)), SnapshotPages(limit))


def distinct(pages: int, seed: int = 0) -> bytearray:
    """Return pages of which no two are equal, nor equal to those of another seed."""
    memory = bytearray(pages * 4096)
    for page in range(pages):
        memory[page * 4096 : page * 4096 + 8] = struct.pack("<II", page, seed + 1)
    return memory


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
    loaded = distinct(64 * MIB // 4096)

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


async def restored(snapshot: Snapshot) -> bytearray:
    guest = Memory(0)
    await snapshot.restore(guest)  # type: ignore[arg-type]
    return guest.data


def test_equal_pages_are_kept_once() -> None:
    size = 8 * MIB
    first = distinct(size // 4096)
    second = bytearray(first)
    second[5 * MIB + 100] = 1
    moved = first[MIB:] + bytearray(b"y" * MIB)

    async def main() -> int:
        pages = SnapshotPages(20 * MIB)
        initial = memoryview(bytes(MIB))
        taken, left = [], []
        for memory in (first, second, moved):
            taken.append(await Snapshot.take(memoryview(memory), initial, pages))
            left.append(pages.left)
        assert left == [12 * MIB, 12 * MIB - 4096, 12 * MIB - 2 * 4096]
        pages.forget()
        for snapshot, memory in zip(taken, (first, second, moved), strict=True):
            assert snapshot.size == size
            assert await restored(snapshot) == memory
        return 0

    run(main())


def test_what_a_snapshot_that_is_too_large_had_is_not_counted() -> None:
    async def main() -> int:
        pages = SnapshotPages(2 * MIB)
        initial = memoryview(b"")
        with pytest.raises(SnapshotTooLargeError):
            await Snapshot.take(memoryview(distinct(3 * MIB // 4096)), initial, pages)
        assert pages.left == 2 * MIB
        small = distinct(MIB // 4096)
        snapshot = await Snapshot.take(memoryview(small), initial, pages)
        assert pages.left == MIB
        assert await restored(snapshot) == small
        return 0

    run(main())


def test_snapshots_that_are_taken_at_once_are_counted_each() -> None:
    async def main() -> int:
        pages = SnapshotPages(20 * MIB)
        memories = [distinct(9 * MIB // 4096, seed) for seed in range(3)]
        taken = await asyncio.gather(
            *(Snapshot.take(memoryview(memory), memoryview(b""), pages) for memory in memories),
            return_exceptions=True,
        )
        good = [each for each in taken if isinstance(each, Snapshot)]
        assert len(good) == 2
        assert pages.left == 2 * MIB
        return 0

    run(main())


def test_pages_of_the_same_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("containerd_shim_wws_v1.snapshot.hash", lambda _: 1, raising=False)
    memory = distinct(100)

    async def main() -> int:
        assert await restored(await snapshot_of(memory, 0)) == memory
        return 0

    run(main())
