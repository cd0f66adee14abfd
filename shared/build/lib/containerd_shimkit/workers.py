"""Several processes that serve one app, and the process that looks after them.

A container that may use more than one processor has a *worker* for each, because Python runs on one
at a time. They are forks of the container's first process, made when the app is prepared and its
address bound, and before there are threads; that process itself serves nobody then. It

- says that the app can be reached when all workers serve,
- passes a stop on, and ends with 0 when all have ended with 0,
- ends all of them as soon as one ends in any other way, or without having been told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import ceil
from typing import Any, Final

from setproctitle import getproctitle, setproctitle

from containerd_shimkit.errors import EngineError, ExitCode
from containerd_shimkit.linux.syscalls import set_pdeathsig
from containerd_shimkit.reaper import Exit, Reaper

_DEFAULT_PERIOD: Final = 100_000  # microseconds, the kernel's for a quota without period
_KILLED: Final = 128

MAX_WORKERS: Final = 64

Serve = Callable[[Callable[[], None]], int]
"""``serve(ready)``: serve in a worker, call ``ready`` when it does; return the exit code."""

log = logging.getLogger(__name__)


class WorkerKilledError(EngineError):
    """A worker was killed; the container ends with its status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status


def usable_processors(resources: Mapping[str, Any], available: int) -> int:
    """Return how many processors a container's CPU quota amounts to, rounded up; 1 without quota.

    resources: ``linux.resources``.  available: those that the container may run on.
    """
    cpu = resources.get("cpu") or {}
    quota, period = cpu.get("quota") or 0, cpu.get("period") or _DEFAULT_PERIOD
    if quota <= 0:
        return 1
    return max(1, min(ceil(quota / period), available))


class Workers:
    """Forked workers."""

    def __init__(self, count: int, serve: Serve) -> None:
        """Fork ``count`` workers, or as many as the container's limit of processes allows."""
        self.pids: list[int] = []
        self._serving: set[int] = set()
        """Pids of those that have said so."""
        self._running: set[int] = set()
        """Pids that are ours for sure: not reaped yet."""
        self._ended = False
        """Whether one has ended by itself, and well."""
        self._ready, told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        parent = os.getpid()
        for index in range(count):
            try:
                pid = os.fork()
            except OSError as exc:
                log.warning("%d of %d workers: cannot fork: %s", index, count, exc.strerror)
                break
            if pid == 0:
                _work(index + 1, parent, partial(os.write, told, bytes((index,))), serve)
            self.pids.append(pid)
            self._running.add(pid)
        os.close(told)

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> int:
        """Look after the workers; return the exit code when all have ended.

        Raises WorkerKilledError if one was killed.
        """
        reaper = Reaper()  # as process 1 of a pid namespace this one has orphans to reap as well
        loop = asyncio.get_running_loop()
        loop.add_reader(self._ready, self._count_ready, ready, stop)
        running: dict[asyncio.Future[Any], int] = {reaper.watch(pid): pid for pid in self.pids}
        stopping: asyncio.Future[Any] = loop.create_task(stop.wait())
        first: tuple[int, Exit] | None = None
        while running:
            events = {*running} if stopping.done() else {*running, stopping}
            done, _ = await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            if stopping in done:
                _signal(running.values(), signal.SIGTERM)
            for future in done - {stopping}:
                pid, ended = running.pop(future), future.result()
                self._running.discard(pid)
                self._count_ready(ready, stop)
                if ended.status == 0 and (stop.is_set() or pid in self._serving):
                    self._ended = True
                    self._stop_with_the_first(stop)
                elif first is None:
                    first = pid, ended
                    _signal(running.values(), signal.SIGKILL)
        stopping.cancel()
        if first is None:
            return ExitCode.OK
        return self._code(*first)

    def kill(self) -> None:
        """End all at once."""
        _signal(self._running, signal.SIGKILL)

    def _count_ready(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        if len(self._serving) == len(self.pids):
            return
        with contextlib.suppress(BlockingIOError):
            self._serving |= {self.pids[index] for index in os.read(self._ready, MAX_WORKERS)}
        if len(self._serving) == len(self.pids):
            asyncio.get_running_loop().remove_reader(self._ready)
            ready()
            self._stop_with_the_first(stop)

    def _stop_with_the_first(self, stop: asyncio.Event) -> None:
        """An app may end by itself. All workers do so then, but not before all have served."""
        if self._ended and len(self._serving) == len(self.pids):
            stop.set()

    def _code(self, pid: int, ended: Exit) -> int:
        number = self.pids.index(pid) + 1
        if ended.status > _KILLED:
            raise WorkerKilledError(
                f"worker {number} of {len(self.pids)} was killed by signal"
                f" {ended.status - _KILLED}; the others were ended",
                ended.status,
            )
        # It has said itself why, as an engine without workers does.
        return ended.status


def _work(number: int, parent: int, ready: Callable[[], Any], serve: Serve) -> None:
    """Be a worker; never returns."""
    code: int = ExitCode.INTERNAL
    try:
        set_pdeathsig(signal.SIGKILL)
        if os.getppid() == parent:  # else it was too late for that
            gc.freeze()
            setproctitle(f"{getproctitle()} worker {number}")
            code = serve(ready)
    except BaseException:
        log.exception("worker %d failed", number)
    finally:
        os._exit(code)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
