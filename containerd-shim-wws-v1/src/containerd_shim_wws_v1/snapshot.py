"""The memory of a guest that is ready for requests, to be put into new guests of its module.

Kept are the pages that differ from those of a guest that has not run; the others cost nothing,
since a module's own data is mapped. A guest that is given them is as the first one was: it must
have no other state, that is no changed globals or tables and no open files.
"""

from __future__ import annotations

from typing import Final

from containerd_shimkit.wasm.guest import Guest
from containerd_shimkit.wasm.native import GuestError

MAX_BYTES: Final = 256 << 20
"""Of all snapshots of an app."""

PAGE_BYTES: Final = 4096
_BLOCK_BYTES: Final = 64 << 10  # compared at once; the size of memories is a multiple of it
_ZEROS: Final = bytes(_BLOCK_BYTES)


class SnapshotTooLargeError(GuestError):
    """The snapshots of an app would take more memory than they may."""


class SnapshotBudget:
    """What snapshots of an app may still take."""

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = self._left = limit

    def take(self, size: int) -> None:
        """Count a snapshot. Raises SnapshotTooLargeError."""
        if size > self._left:
            raise SnapshotTooLargeError(
                f"its snapshot has {size >> 10} KiB, of which {self._left >> 10} are left of the "
                f"{self._limit >> 20} MiB for all workers"
            )
        self._left -= size


class Snapshot:
    """See the module."""

    def __init__(self, loaded: memoryview, initial: memoryview) -> None:
        """loaded: memory of the guest that is ready.  initial: of one that has not run."""
        self._memory_bytes = len(loaded)
        self._runs = _differences(loaded, initial)

    @property
    def size(self) -> int:
        """Bytes kept, and put into each guest."""
        return sum(len(data) for _, data in self._runs)

    def restore(self, guest: Guest) -> None:
        """Make a guest that has not run one that is ready. Raises GuestTrap."""
        guest.grow_memory(self._memory_bytes)
        memory = guest.memory()
        for start, data in self._runs:
            memory[start : start + len(data)] = data


def _differences(loaded: memoryview, initial: memoryview) -> list[tuple[int, bytes]]:
    """Return where memories differ, neighbouring pages as one."""
    runs: list[tuple[int, bytearray]] = []
    for block in range(0, len(loaded), _BLOCK_BYTES):
        new = loaded[block : block + _BLOCK_BYTES].tobytes()
        old = initial[block : block + _BLOCK_BYTES].tobytes() or _ZEROS
        if new == old:
            continue
        for at in range(0, _BLOCK_BYTES, PAGE_BYTES):
            page = new[at : at + PAGE_BYTES]
            if page == old[at : at + PAGE_BYTES]:
                continue
            if runs and runs[-1][0] + len(runs[-1][1]) == block + at:
                runs[-1][1].extend(page)
            else:
                runs.append((block + at, bytearray(page)))
    return [(start, bytes(data)) for start, data in runs]
