"""What a container's init and every process added to it have in common."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from abc import ABC, abstractmethod
from typing import Any, Final

from containerd_shimkit.control import SandboxRequest
from containerd_shimkit.errors import InvalidArgumentError, NotFoundError, ShimError
from containerd_shimkit.linux.cgroups import Cgroup, open_cgroup
from containerd_shimkit.oci.spec import parse_resources
from containerd_shimkit.reaper import Exit, Reaper
from containerd_shimkit.stdio import StdioNames
from containerd_shimkit.task.errand import run_errand
from containerd_shimkit.task.state import TaskState, require

_MAX_SIGNAL: Final = 64
_KILLED: Final = 128 + signal.SIGKILL

log = logging.getLogger(__name__)


class Process(ABC):
    """A process from its creation to its deletion. Calls, but ``kill``, are made one at a time."""

    def __init__(self, stdio: StdioNames, *, terminal: bool = False) -> None:
        self.stdio = stdio
        self.terminal = terminal
        self.state = TaskState.CREATED
        self.lock = asyncio.Lock()
        self.pid = 0
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @abstractmethod
    async def start(self) -> None:
        """Let it run. Raises ShimError with the reason if it cannot."""

    @abstractmethod
    async def delete(self) -> Exit:
        """Remove what is left of it; return how it ended."""

    @abstractmethod
    def close_stdin(self) -> None:
        """Let it see the end of its input."""

    @abstractmethod
    def resize(self, width: int, height: int) -> None:
        """Set the size of its terminal, in characters."""

    def follow(self, exited: asyncio.Future[Exit]) -> None:
        """Take the exit of the process from ``exited``, which is the reaper's."""

        def on_exit(future: asyncio.Future[Exit]) -> None:
            self.state = TaskState.STOPPED
            if not self.exit.done():
                self.exit.set_result(future.result())

        exited.add_done_callback(on_exit)

    def started(self) -> None:
        """Note that it runs, unless it has ended already."""
        if self.state is TaskState.CREATED:
            self.state = TaskState.RUNNING

    async def kill(self, number: int, *, everything: bool = False) -> None:
        """Send a signal. everything: to all processes of the container.

        Raises NotFoundError if it has ended, InvalidArgumentError for what is no signal.
        """
        if not 0 < number <= _MAX_SIGNAL:
            raise InvalidArgumentError(f"signal {number} is not between 1 and {_MAX_SIGNAL}")
        if self.exit.done() or not self.pid:
            if everything:
                return  # CRI sends SIGKILL to all of an ended container and expects it to be fine
            raise NotFoundError("process already finished")
        # Not reaped yet, so the pid cannot belong to anybody else.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Container(Process):
    """A container: its init, its cgroup, and the processes added to it."""

    def __init__(self, request: SandboxRequest, reaper: Reaper) -> None:
        super().__init__(request.stdio, terminal=request.terminal)
        self.request = request
        self._reaper = reaper
        self._out_of_memory = False
        self._was_killed = False
        self._cgroup: Cgroup | None = None
        path = request.bundle.spec.linux.cgroups_path
        if path:
            self._cgroup = open_cgroup(path, request.task_id)

    @abstractmethod
    async def create(self) -> None:
        """Make everything up to the point where ``start`` lets the init run.

        Raises ShimError; nothing is left then.
        """

    @abstractmethod
    def add_exec(self, exec_id: str, spec: bytes, stdio: StdioNames, *, terminal: bool) -> None:
        """Prepare another process; its ``start`` starts it. ``spec``: JSON of an OCI process."""

    @abstractmethod
    def get_exec(self, exec_id: str) -> Process:
        """Return an added process. Raises NotFoundError."""

    @property
    def has_cgroup(self) -> bool:
        """Whether its config.json names one."""
        return self._cgroup is not None

    def follow(self, exited: asyncio.Future[Exit]) -> None:
        # First of all: systemd removes the cgroup of what has ended.
        exited.add_done_callback(self._note_memory)
        super().follow(exited)

    def _note_memory(self, exited: asyncio.Future[Exit]) -> None:
        """Look at the cgroup's counter, which may be gone when somebody asks.

        If it is gone already, kills of others are counted with its own: then a death counts only
        if it looks like one and nobody asked for it.
        """
        if self._cgroup is None:
            return
        with contextlib.suppress(ShimError, OSError):
            kills = self._cgroup.oom_kills()
            unasked = exited.result().status == _KILLED and not self._was_killed
            self._out_of_memory = kills > 0 and (self._cgroup.exists() or unasked)

    def out_of_memory(self) -> bool:
        """Whether the kernel killed a process of the ended container for want of memory."""
        return self._out_of_memory

    def pids(self) -> list[int]:
        """Return the pids of the container's processes; of an ended one, the pid it had.

        containerd 1.7 and later delete, when they start, a task without pids as leaked: what ended
        while they were down would lose its exit status.
        """
        if self.exit.done():
            return [self.pid]
        pids = self._cgroup.pids() if self._cgroup is not None else []
        return pids or [self.pid]

    # The kernel may take its time for these: to stop what is in the middle of a system call, or to
    # reclaim memory down to a new limit before it takes it.

    async def pause(self) -> None:
        """Freeze every process."""
        require(self.state, "pause")
        await run_errand(self._reaper, self.cgroup().freeze)
        if not self.exit.done():
            self.state = TaskState.PAUSED
        if self._was_killed:  # meanwhile
            await self._let_die()

    async def resume(self) -> None:
        """Thaw every process."""
        require(self.state, "resume")
        await run_errand(self._reaper, self.cgroup().thaw)
        if not self.exit.done():
            self.state = TaskState.RUNNING

    async def update(self, resources: dict[str, Any]) -> None:
        """Apply changed ``linux.resources``."""
        require(self.state, "update")
        cgroup, changed = self.cgroup(), parse_resources(resources)
        for warning in await run_errand(self._reaper, lambda: cgroup.apply(changed)):
            log.warning("%s", warning)

    def cgroup(self) -> Cgroup:
        """Return the cgroup. Raises NotFoundError if there is none."""
        if self._cgroup is None:
            raise NotFoundError("the container has no cgroup: its config.json names none")
        return self._cgroup

    async def kill(self, number: int, *, everything: bool = False) -> None:
        self._was_killed |= number == signal.SIGKILL
        await super().kill(number, everything=everything)
        if number == signal.SIGKILL and self.state is TaskState.PAUSED:
            await self._let_die()

    async def _let_die(self) -> None:
        """Thaw: what is frozen by version 1 does not even die."""
        if self._cgroup is not None:
            await run_errand(self._reaper, self._cgroup.thaw)
