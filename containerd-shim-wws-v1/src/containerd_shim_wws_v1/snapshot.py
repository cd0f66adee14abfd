"""The memory of a guest that is ready for requests, to be put into new guests of its module.

Kept are the pages that differ from those of a guest that has not run; the others cost nothing,
since a module's own data is mapped. A guest that is given them is as the first one was: it must
have no other state, that is no changed globals or tables and no open files.

A page that several snapshots have is kept once. Of two workers in Python nearly all are equal, if
their memories come from the same start of the interpreter.
"""

from __future__ import annotations

import asyncio
from typing import Final

from containerd_shimkit.wasm.guest import Guest
from containerd_shimkit.wasm.native import GuestError

PAGE_BYTES: Final = 4096
_BLOCK_BYTES: Final = 64 << 10  # compared at once; the size of memories is a multiple of it
_ZEROS: Final = bytes(_BLOCK_BYTES)
_SLICE_BYTES: Final = 4 << 20  # dealt with before others have their turn

_Places = dict[int, tuple[bytearray, int]]
"""Where pages are, by their hash: a buffer and where it has the page."""


class SnapshotTooLargeError(GuestError):
    """The snapshots of an app would take more memory than they may."""


class SnapshotPages:
    """What the snapshots of an app share, and what they may still take."""

    def __init__(self, limit: int) -> None:
        """limit: in bytes."""
        self._limit = limit
        self.left = limit
        self._places: _Places = {}

    def find(self, page: bytes, added: _Places) -> tuple[bytearray, int] | None:
        """Return where a page is kept, be it in ``added``."""
        key = hash(page)
        found = self._places.get(key) or added.get(key)
        if found is None:
            return None
        buffer, at = found
        return found if buffer[at : at + PAGE_BYTES] == page else None

    def check_room(self, size: int) -> None:
        """Raise SnapshotTooLargeError unless ``size`` bytes may be added."""
        if size > self.left:
            raise SnapshotTooLargeError(
                f"its snapshot needs more than the {self.left >> 10} KiB that are left of the "
                f"{self._limit >> 20} MiB for all workers: WWS_MAX_SNAPSHOT_MEMORY gives more"
            )

    def add(self, added: _Places, size: int) -> None:
        """Count what a snapshot has added, and have later ones find it.

        Raises SnapshotTooLargeError.
        """
        self.check_room(size)
        self.left -= size
        self._places.update(added)

    def forget(self) -> None:
        """Let go of what finds pages: there will be no more snapshots."""
        self._places.clear()


class _Run:
    """Neighbouring pages of a memory that are neighbours in a buffer, too."""

    __slots__ = ("at", "buffer", "length", "start")

    def __init__(self, start: int, buffer: bytearray, at: int) -> None:
        self.start = start
        """In the memory."""
        self.buffer = buffer
        self.at = at
        """In the buffer."""
        self.length = PAGE_BYTES

    def goes_on(self, start: int, buffer: bytearray, at: int) -> bool:
        """Return whether a page is the next one, and may be written in the same turn."""
        return (
            self.buffer is buffer
            and self.at + self.length == at
            and self.start + self.length == start
            and self.length < _SLICE_BYTES
        )


class Snapshot:
    """See the module. Others are served while a large one is taken or restored."""

    def __init__(self, memory_bytes: int, runs: list[_Run]) -> None:
        """runs: where memory is to be written, and what."""
        self._memory_bytes = memory_bytes
        self._runs = [
            (run.start, memoryview(run.buffer)[run.at : run.at + run.length]) for run in runs
        ]

    @classmethod
    async def take(cls, loaded: memoryview, initial: memoryview, pages: SnapshotPages) -> Snapshot:
        """Compare two memories. Raises SnapshotTooLargeError.

        loaded: of the guest that is ready.  initial: of one that has not run.
        """
        return cls(len(loaded), await _differences(loaded, initial, pages))

    @property
    def size(self) -> int:
        """Bytes put into each guest."""
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


async def _differences(loaded: memoryview, initial: memoryview, pages: SnapshotPages) -> list[_Run]:
    """Return where memories differ. Little more is copied than there is room for.

    No run is longer than what is written at once.
    """
    runs: list[_Run] = []
    added: _Places = {}
    size = 0
    buffer = bytearray()
    for block in range(0, len(loaded), _BLOCK_BYTES):
        if block % _SLICE_BYTES == 0:
            await asyncio.sleep(0)
            buffer = bytearray()  # one for all would be copied, whole, as it grows
        new = loaded[block : block + _BLOCK_BYTES].tobytes()
        old = initial[block : block + _BLOCK_BYTES].tobytes() or _ZEROS
        if new == old:
            continue
        for at in range(0, _BLOCK_BYTES, PAGE_BYTES):
            page = new[at : at + PAGE_BYTES]
            if page == old[at : at + PAGE_BYTES]:
                continue
            place = pages.find(page, added)
            if place is None:
                place = buffer, len(buffer)
                buffer += page
                added[hash(page)] = place
                size += PAGE_BYTES
            if runs and runs[-1].goes_on(block + at, *place):
                runs[-1].length += PAGE_BYTES
            else:
                runs.append(_Run(block + at, *place))
        pages.check_room(size)
    pages.add(added, size)
    return runs
