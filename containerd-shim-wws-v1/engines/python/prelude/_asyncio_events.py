"""asyncio's event loop where there are no sockets, signals, processes or threads.

It takes the place of `asyncio.unix_events`. Its loop runs callbacks and waits for the next timer;
nothing else could wake it.
"""

from __future__ import annotations

import time
from asyncio import base_events, events
from typing import Any

__all__ = ("DefaultEventLoopPolicy", "SelectorEventLoop")

_FOR_EVER = "nothing is left that could wake the event loop"


class _Timers:
    """What the loop takes for a selector: waiting is sleeping."""

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError(_FOR_EVER)
        if timeout > 0:
            time.sleep(timeout)
        return []


class SelectorEventLoop(base_events.BaseEventLoop):
    """An event loop of timers."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Timers()

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


class DefaultEventLoopPolicy(events.BaseDefaultEventLoopPolicy):
    _loop_factory = SelectorEventLoop
