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
from collections.abc import Iterator
from dataclasses import dataclass

from containerd_shimkit.linux.constants import P_PIDFD
from containerd_shimkit.linux.syscalls import pidfd_open, pidfd_send_signal


@dataclass(frozen=True, slots=True)
class Exit:
    """How and when a process ended."""

    status: int
    """0..255, or 128 + the signal's number."""
    time_ns: int
    """Since the epoch."""


class Reaper:
    """Waits for the children of this process within its event loop."""

    def __init__(self, *, subreaper: bool = True) -> None:
        """subreaper: reap every child, known or not; else those that are watched."""
        self._loop = asyncio.get_running_loop()
        self._subreaper = subreaper
        self._watched: dict[int, tuple[int, asyncio.Future[Exit]]] = {}
        """By pid: the pidfd, who is told."""
        self._others: set[int] = set()
        """Watched, ended, and still the zombie of a parent that lives."""
        self._keeping = 0
        if subreaper:
            self._loop.add_signal_handler(signal.SIGCHLD, self._reap)

    def watch(self, pid: int) -> asyncio.Future[Exit]:
        """Return a future of the exit of ``pid``, which is or will become our child.

        Raises ProcessLookupError if there is no such process, not even a zombie.
        """
        pidfd = pidfd_open(pid)
        future: asyncio.Future[Exit] = self._loop.create_future()
        self._watched[pid] = (pidfd, future)
        self._loop.add_reader(pidfd, self._on_exit, pid)
        return future

    @contextlib.contextmanager
    def keeping_orphans(self) -> Iterator[None]:
        """Reap nobody unknown inside: a pid that is about to be told could be lost, or reused."""
        self._keeping += 1
        try:
            yield
        finally:
            self._keeping -= 1
            self._reap()

    def _on_exit(self, pid: int) -> None:
        pidfd, future = self._watched[pid]
        self._loop.remove_reader(pidfd)
        try:
            result = os.waitid(P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            result = None
            if _exists(pidfd):
                self._others.add(pid)  # SIGCHLD comes when its parent has ended: it is ours then
                return
        os.close(pidfd)
        del self._watched[pid]
        self._others.discard(pid)
        status = 255 if result is None else _status(result)
        if not future.done():
            future.set_result(Exit(status, time.time_ns()))
        self._reap()

    def _reap(self) -> None:
        for pid in list(self._others):
            if pid in self._others:
                self._on_exit(pid)
        if not self._subreaper:
            return
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        with contextlib.suppress(ChildProcessError):
            while (result := os.waitid(os.P_ALL, 0, flags)) is not None:
                if self._keeping or result.si_pid in self._watched:
                    return  # its own pidfd wakes the loop; the next orphan is looked for then
                os.waitpid(result.si_pid, os.WNOHANG)


def _exists(pidfd: int) -> bool:
    """Whether the process is still there, if only as a zombie."""
    try:
        pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    return True


def _status(result: os.waitid_result) -> int:
    killed = result.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
    return 128 + result.si_status if killed else result.si_status
