"""What one guest has open, by the numbers it knows it by."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from containerd_shim_slight_v1.capabilities.errors import TooManyHandlesError

MAX_HANDLES: Final = 1024
"""A router is a new one with each route, and compilers drop them late."""
MAX_HELD_CHARACTERS: Final = 64 << 20
"""Of what the guest gave to make what its handles are of: it may give the same again and again."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class BadHandleError(Exception):
    """The guest passes a number that is no handle, or one of something else."""


@runtime_checkable
class Closable(Protocol):
    """What has to be closed when its last handle is dropped."""

    async def close(self) -> None: ...


class HandleTable:
    """The handles of one guest."""

    def __init__(self) -> None:
        self._open: dict[int, Any] = {}
        self._held: dict[int, int] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._open)

    def add(self, value: Any, *texts: str) -> int:
        """Return a new handle. texts: those of the guest's that it keeps.

        Raises TooManyHandlesError.
        """
        if len(self._open) >= MAX_HANDLES:
            raise TooManyHandlesError(f"more than {MAX_HANDLES} handles at once")
        held = sum(map(len, texts))
        if held and sum(self._held.values()) + held > MAX_HELD_CHARACTERS:
            raise TooManyHandlesError(
                f"handles of names or statements with more than {MAX_HELD_CHARACTERS} characters"
            )
        self._last += 1
        self._open[self._last] = value
        self._held[self._last] = held
        return self._last

    def get(self, handle: int, kind: type[T]) -> T:
        """Return what a handle is of. Raises BadHandleError."""
        value = self._open.get(handle)
        if not isinstance(value, kind):
            raise BadHandleError(f"the guest passes {handle}, which is no {kind.__name__}")
        return value

    def each(self, kind: type[T]) -> list[T]:
        """Return all open things of a kind, without repetitions."""
        return [v for v in {id(v): v for v in self._open.values()}.values() if isinstance(v, kind)]

    def clone(self, handle: int) -> int:
        """Return another handle of the same. Raises BadHandleError, TooManyHandlesError."""
        return self.add(self.get(handle, object))

    async def drop(self, handle: int) -> None:
        """Forget a handle. Raises BadHandleError."""
        value = self.get(handle, object)
        del self._open[handle], self._held[handle]
        if isinstance(value, Closable) and not any(v is value for v in self._open.values()):
            await value.close()

    async def close(self) -> None:
        """Close everything that is open, all at once: each may take its time, or fail."""
        values = {id(value): value for value in self._open.values()}
        self._open.clear()
        self._held.clear()
        closing = [value.close() for value in values.values() if isinstance(value, Closable)]
        for outcome in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.warning("what a guest left open cannot be closed: %s", outcome)
