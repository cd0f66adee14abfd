"""Kills for want of memory in a container, told when they happen and each once.

The container may live on: the kernel kills one process, which need not be its first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Final

from containerd_shimkit.errors import ShimError
from containerd_shimkit.linux.cgroups import Cgroup

# Version 1 tells before the kill; the counter grows a moment later.
_LOOKS: Final = 10
_LOOK_SECONDS: Final = 0.1
_EVENTS_BYTES: Final = 4096  # a few of inotify's; eventfd has 8

log = logging.getLogger(__name__)


class OomWatch:
    """Watches the cgroup of one container until it is closed."""

    def __init__(self, cgroup: Cgroup, on_kill: Callable[[], None]) -> None:
        self._cgroup = cgroup
        self._on_kill = on_kill
        self._told = 0
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._events = -1
        try:
            self._events = cgroup.open_oom_events()
        except (ShimError, OSError) as exc:
            log.debug("kills for want of memory are told at the exit only: %s", exc)
        else:
            self._loop.add_reader(self._events, self._on_event)

    def finish(self, *, killed: bool) -> None:
        """Stop watching: the container has ended. killed: whether for want of memory."""
        self._look()
        if killed and not self._told:  # the cgroup was gone already
            self._on_kill()
        self._cancel()
        if self._events >= 0:
            self._loop.remove_reader(self._events)
            os.close(self._events)

    def _look(self) -> bool:
        """Tell of a kill that has not been told yet; return whether there was one."""
        kills = 0
        with contextlib.suppress(ShimError, OSError):
            if self._cgroup.exists():
                kills = self._cgroup.oom_kills()
        if kills <= self._told:
            return False
        self._told = kills
        self._on_kill()
        return True

    def _on_event(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._events, _EVENTS_BYTES)
        self._cancel()
        self._looks = _LOOKS
        self._look_again()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_again(self) -> None:
        self._looks -= 1
        if not self._look() and self._looks:
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._look_again)
