"""The memory of a guest that is ready for requests, to be put into new guests of its module.

Kept are the pages that differ from those of a guest that has not run; the others cost nothing,
since a module's own data is mapped. A guest that is given them is as the first one was: it must
have no other state, that is no changed globals or tables and no open files.
"""

from __future__ import annotations

import asyncio
from typing import Final

from containerd_shimkit.wasm.guest import Guest
from containerd_shimkit.wasm.native import GuestError

MAX_BYTES: Final = 256 << 20
"""Of all snapshots of an app."""

PAGE_BYTES: Final = 4096
_BLOCK_BYTES: Final = 64 << 10  # compared at once; the size of memories is a multiple of it
_ZEROS: Final = bytes(_BLOCK_BYTES)
_SLICE_BYTES: Final = 4 << 20  # dealt with before others have their turn


class SnapshotTooLargeError(GuestError):
    """The snapshots of an app would take more memory than they may."""


class SnapshotBudget:
    """What snapshots of an app may still take."""

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self.left = limit

    def take(self, size: int) -> None:
        """Count a snapshot. Raises SnapshotTooLargeError."""
        if size > self.left:
            raise SnapshotTooLargeError(
                f"its snapshot has more than the {self.left >> 10} KiB that are left of the "
                f"{self._limit >> 20} MiB for all workers"
            )
        self.left -= size


class Snapshot:
    """See the module. Others are served while a large one is taken or restored."""

    def __init__(self, memory_bytes: int, runs: list[tuple[int, bytearray]]) -> None:
        """runs: where memory is to be written, and what."""
        self._memory_bytes = memory_bytes
        self._runs = runs

    @classmethod
    async def take(
        cls, loaded: memoryview, initial: memoryview, budget: SnapshotBudget
    ) -> Snapshot:
        """Compare two memories. Raises SnapshotTooLargeError.

        loaded: of the guest that is ready.  initial: of one that has not run.
        """
        runs = await _differences(loaded, initial, budget.left)
        snapshot = cls(len(loaded), runs)
        budget.take(snapshot.size)
        return snapshot

    @property
    def size(self) -> int:
        """Bytes kept, and put into each guest."""
        return sum(len(data) for _, data in self._runs)

    async def restore(self, guest: Guest) -> None:
        """Make a guest that has not run one that is ready. Raises GuestTrap."""
        guest.grow_memory(self._memory_bytes)
        memory = guest.memory()
        written = 0
        for start, data in self._runs:
            if written + len(data) > _SLICE_BYTES:
                await asyncio.sleep(0)
                written = 0
            memory[start : start + len(data)] = data
            written += len(data)


async def _differences(
    loaded: memoryview, initial: memoryview, limit: int
) -> list[tuple[int, bytearray]]:
    """Return where memories differ, neighbouring pages as one, and little beyond ``limit`` bytes.

    None is longer than what is written at once.
    """
    runs: list[tuple[int, bytearray]] = []
    for block in range(0, len(loaded), _BLOCK_BYTES):
        if block % _SLICE_BYTES == 0:
            await asyncio.sleep(0)
        new = loaded[block : block + _BLOCK_BYTES].tobytes()
        old = initial[block : block + _BLOCK_BYTES].tobytes() or _ZEROS
        if new == old:
            continue
        for at in range(0, _BLOCK_BYTES, PAGE_BYTES):
            page = new[at : at + PAGE_BYTES]
            if page == old[at : at + PAGE_BYTES]:
                continue
            limit -= PAGE_BYTES
            start, run = runs[-1] if runs else (0, bytearray())
            if runs and start + len(run) == block + at and len(run) < _SLICE_BYTES:
                run.extend(page)
            else:
                runs.append((block + at, bytearray(page)))
        if limit < 0:
            break
    return runs
