"""Transports that send what is written within one turn of the event loop together.

uvicorn writes the head of a response and its body one after the other, and uvloop sends each at
once. For a small response the two system calls, and waking the client in between, cost more than
all else. So both are held back, and so are those of other connections that answer in the same turn:
their clients are woken while they are awake anyway.

Nothing is held for long: not beyond the turn, not when ``_HOLD_SECONDS`` have passed since the
first was written, and not at all for a while after a turn in which a guest computed for so long
that this could not be kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

log = logging.getLogger(__name__)

_HOLD_SECONDS: Final = 0.002
_TOO_LONG_SECONDS: Final = 0.005
_PAUSE_SECONDS: Final = 0.1
_MAX_BYTES: Final = 64 << 10  # asyncio's own high-water mark: beyond it flow control has its say


class Cork:
    """The transports of one server that hold something back."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._holding: list[CorkedTransport] = []
        self._first = 0.0
        """When the first of them was written to, by ``time.monotonic``."""
        self._paused_until = 0.0
        self._scheduled = False

    def hold(self, transport: CorkedTransport) -> None:
        """Have ``transport`` flushed soon."""
        self._holding.append(transport)
        if len(self._holding) == 1:
            self._first = time.monotonic()
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._end_turn)

    def note_complete(self) -> None:
        """Say that a response is complete: send what has waited long enough."""
        if not self._holding:
            return
        now = time.monotonic()
        if now - self._first >= _HOLD_SECONDS or now < self._paused_until:
            self._flush(now)

    def _end_turn(self) -> None:
        self._scheduled = False
        if self._holding:
            self._flush(time.monotonic())

    def _flush(self, now: float) -> None:
        if now - self._first >= _TOO_LONG_SECONDS:
            self._paused_until = now + _PAUSE_SECONDS
        holding, self._holding = self._holding, []
        for transport in holding:
            transport.flush()


class CorkedTransport(asyncio.Transport):
    """Holds back what is written; what else is done with the connection comes after it."""

    def __init__(self, transport: asyncio.Transport, cork: Cork) -> None:
        super().__init__()
        self._transport = transport
        self._cork = cork
        self._parts: list[Any] = []
        self.is_closing = transport.is_closing  # type: ignore[method-assign]  # asked often

    def write(self, data: Any) -> None:
        """See asyncio."""
        parts = self._parts
        parts.append(data)
        if len(parts) == 1:
            self._cork.hold(self)
        if len(data) > _MAX_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send now."""
        parts = self._parts
        if not parts:
            return
        self._parts = []
        if self.is_closing():
            return  # nobody is there any more, and uvloop would raise
        try:
            self._transport.writelines(parts)
        except Exception:
            # Others wait to be flushed after this one.
            log.exception("a response could not be written")
            self._transport.abort()

    def close(self) -> None:
        """See asyncio."""
        self.flush()
        self._transport.close()

    def write_eof(self) -> None:
        """See asyncio."""
        self.flush()
        self._transport.write_eof()

    def abort(self) -> None:
        """See asyncio."""
        self._parts.clear()
        self._transport.abort()
