"""Tasks that several may wait for, or nobody any more."""

from __future__ import annotations

import asyncio
from typing import Any


def take_exception(task: asyncio.Task[Any]) -> None:
    """Whoever waited may have given up: asyncio would complain that nobody wants to know.

    A callback for the task's end.
    """
    if not task.cancelled():
        task.exception()
