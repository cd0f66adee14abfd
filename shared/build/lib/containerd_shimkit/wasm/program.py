"""A guest that is run once, as a program."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

TRAPPED: Final = 134
"""Exit code after a trap: 128 and SIGABRT, as of a program that aborts."""
STOPPED: Final = 143
"""Exit code of a program that was cut off: 128 and SIGTERM."""


async def run_until(stop: asyncio.Event, program: Coroutine[Any, Any, int]) -> int | None:
    """Return the exit code of ``program``, None if it was cut off because ``stop`` was set."""
    running = asyncio.create_task(program)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        running.cancel()
        await asyncio.wait((running, stopping))
    return None if running.cancelled() else running.result()
