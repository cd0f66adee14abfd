"""How long others wait for an event loop while some work is done on it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Coroutine
from typing import Any


async def longest_turn(work: Coroutine[Any, Any, object]) -> float:
    """Return what part of a work, from 0 to 1, was its longest turn: others waited for it.

    It is measured in the thread's own time, and without garbage collection: neither what the
    machine gives to other processes nor the heap of the tests is a matter of the work.
    """
    turns: list[float] = []

    async def watch() -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            turns.append((now := time.thread_time()) - before)
            before = now

    collecting = gc.isenabled()
    gc.disable()
    watching = asyncio.create_task(watch())
    try:
        await asyncio.sleep(0)
        await work
        await asyncio.sleep(0)
    finally:
        watching.cancel()
        if collecting:
            gc.enable()
    return max(turns) / sum(turns)
