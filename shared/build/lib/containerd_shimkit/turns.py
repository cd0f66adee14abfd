"""Long lists, dealt with in slices of time: the loop serves others between two of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

_SLICE_SECONDS: Final = 0.005

_A = TypeVar("_A")
_B = TypeVar("_B")


async def map_in_turns(function: Callable[[_A], _B], values: Iterable[_A]) -> list[_B]:
    """Return what ``function`` makes of each value. A server's answer may have millions of them."""
    found: list[_B] = []
    end = time.monotonic() + _SLICE_SECONDS
    for value in values:
        found.append(function(value))
        if time.monotonic() > end:
            await asyncio.sleep(0)
            end = time.monotonic() + _SLICE_SECONDS
    return found
