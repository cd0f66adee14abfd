"""A time limit for every request, with one timer for all of them.

``asyncio.timeout`` makes and cancels a timer each time. Here all have the same time, so whoever
came first is due first, and a request costs an entry in a dictionary.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class Deadlines:
    """The requests under way, the oldest first. To be used in one event loop."""

    def __init__(self, seconds: float | None) -> None:
        """seconds: what each may take; None is no limit."""
        self.seconds = seconds
        self._entries: dict[_Limit, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def limit(self) -> _Limit:
        """Return a context manager; what runs in it longer than it may is cancelled.

        Raises TimeoutError then, as ``asyncio.timeout``.
        """
        return _Limit(self)

    def add(self, entry: _Limit, loop: asyncio.AbstractEventLoop) -> None:
        """Start an entry's time."""
        if self.seconds is None:
            return
        entry.due = loop.time() + self.seconds
        self._entries[entry] = None
        if self._timer is None:
            self._timer = loop.call_at(entry.due, self._end_late, loop)

    def remove(self, entry: _Limit) -> None:
        """Forget an entry. The timer stays: it fires once more for nothing when all is idle."""
        self._entries.pop(entry, None)

    def _end_late(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for entry in list(self._entries):
            if entry.due > now:
                self._timer = loop.call_at(entry.due, self._end_late, loop)
                return
            del self._entries[entry]
            entry.expire()


class _Limit:
    __slots__ = ("_deadlines", "_expired", "_task", "due")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._expired = False
        self.due = 0.0

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None, "outside of a task"
        self._task = task
        self._deadlines.add(self, loop)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._deadlines.remove(self)
        # Somebody else may have cancelled the task as well: then that is what happened.
        if self._expired and not self._task.uncancel() and kind is asyncio.CancelledError:
            raise TimeoutError from exc

    def expire(self) -> None:
        self._expired = True
        self._task.cancel()
