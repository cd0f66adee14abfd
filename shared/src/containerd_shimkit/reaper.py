"""Child processes of a shim: waited for by pidfd, each with its exact exit status and time.

Processes that lost their parent come to the shim too (it is a subreaper); nobody waits for them,
so they are reaped when SIGCHLD says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exit:
    """How and when a process ended."""

    status: int
    """0..255, or 128 + the signal's number."""
    time_ns: int
    """Since the epoch."""


class Reaper:
    """Waits for the children of this process within its event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watched: dict[int, asyncio.Future[Exit]] = {}
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap_orphans)

    def watch(self, pid: int) -> asyncio.Future[Exit]:
        """Return a future of the exit of ``pid``, which is or will become our child.

        Raises ProcessLookupError if there is no such process, not even a zombie.
        """
        pidfd = os.pidfd_open(pid)
        future: asyncio.Future[Exit] = self._loop.create_future()
        self._watched[pid] = future
        self._loop.add_reader(pidfd, self._on_exit, pid, pidfd)
        return future

    def _on_exit(self, pid: int, pidfd: int) -> None:
        result = None
        with contextlib.suppress(ChildProcessError):
            result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
            if result is None:
                return  # ended, but its parent is still alive: it becomes ours when that one ends
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        future = self._watched.pop(pid)
        status = 255 if result is None else _status(result)
        if not future.done():
            future.set_result(Exit(status, time.time_ns()))
        self._reap_orphans()

    def _reap_orphans(self) -> None:
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        with contextlib.suppress(ChildProcessError):
            while (result := os.waitid(os.P_ALL, 0, flags)) is not None:
                if result.si_pid in self._watched:
                    return  # its own pidfd wakes the loop; the next orphan is looked for then
                os.waitpid(result.si_pid, os.WNOHANG)


def _status(result: os.waitid_result) -> int:
    killed = result.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
    return 128 + result.si_status if killed else result.si_status
