"""One container: its sandbox process, its state, its exit. What a task of the service is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from containerd_shimkit.control import SandboxRequest
from containerd_shimkit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ShimError,
    Status,
)
from containerd_shimkit.linux.cgroups import Cgroup, open_cgroup
from containerd_shimkit.oci.spec import parse_resources
from containerd_shimkit.reaper import Exit, Reaper
from containerd_shimkit.sandbox import fork_stage
from containerd_shimkit.task.record import InitRecord
from containerd_shimkit.task.state import TaskState, require

_MAX_PACKET: Final = 64 << 10
_MAX_SIGNAL: Final = 64
_CGROUP_SECONDS: Final = 2.0
_CGROUP_RETRY_SECONDS: Final = 0.005

log = logging.getLogger(__name__)


class SandboxFailure(ShimError):
    """What the sandbox process reported, with the status it gave."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = Status(status)  # type: ignore[misc]  # the reporter's class decided it


class Container:
    """A container from Create to Delete. Calls, but ``kill``, are made one at a time (``lock``)."""

    def __init__(self, request: SandboxRequest, reaper: Reaper) -> None:
        self.request = request
        self.state = TaskState.CREATED
        self.lock = asyncio.Lock()
        self.pid = 0
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._reaper = reaper
        self._control: socket.socket | None = None
        self._cgroup: Cgroup | None = None
        path = request.bundle.spec.linux.cgroups_path
        if path:
            self._cgroup = open_cgroup(path, request.task_id)

    # Create and Start

    async def create(self) -> None:
        """Fork the sandbox and wait until the app is prepared, or the sandbox failed.

        Raises ShimError; nothing is left then.
        """
        shim_end, sandbox_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        shim_end.setblocking(False)
        self._control = shim_end
        with sandbox_end:
            try:
                stage = self._reaper.watch(fork_stage(self.request, shim_end, sandbox_end))
            except OSError:
                await self.clean_up()
                raise
        try:
            with self._reaper.keeping_orphans():
                await self._await_prepared()
            await stage
        except BaseException:
            if self.pid:
                self.kill(signal.SIGKILL)
            await stage
            if self.pid:
                await self.exit
            await self.clean_up()
            raise

    async def _await_prepared(self) -> None:
        """Return when the pid is known and the app prepared.

        The stage says the one, the init the other, and nobody knows who is first.
        """
        prepared, failure = False, None
        while not (self.pid and (prepared or failure)):
            message = await self._receive()
            if message is None:
                break
            event = message["event"]
            if event == "pid":
                self.pid = message["pid"]
                self._follow(self._reaper.watch(self.pid))
                bundle = self.request.bundle
                InitRecord.of(self.pid, bundle.spec.linux.cgroups_path).save(bundle.path)
            elif event == "created":
                for warning in message["warnings"]:
                    log.warning("%s", warning)
            elif event == "prepared":
                prepared = True
            elif event == "failed":
                failure = SandboxFailure(message["message"], message["status"])
        if failure is not None:
            raise failure
        if not (self.pid and prepared):
            raise ShimError("the sandbox process ended before it said why")

    def _follow(self, exited: asyncio.Future[Exit]) -> None:
        def on_exit(future: asyncio.Future[Exit]) -> None:
            self.state = TaskState.STOPPED
            if not self.exit.done():
                self.exit.set_result(future.result())

        exited.add_done_callback(on_exit)

    async def start(self) -> None:
        """Let the app serve; return when it does. Raises ShimError with the app's reason."""
        require(self.state, "start")
        assert self._control is not None
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(self._control, b"start")
        message = await self._receive()
        if message is None or message["event"] == "failed":
            exit_ = await self.exit
            if message is None:
                raise FailedPreconditionError(
                    f"the container ended with status {exit_.status} before it was ready"
                )
            raise SandboxFailure(message["message"], message["status"])
        if self.state is TaskState.CREATED:
            self.state = TaskState.RUNNING

    async def _receive(self) -> dict[str, Any] | None:
        """Return the sandbox's next message, None when it has closed its end."""
        assert self._control is not None
        try:
            data = await asyncio.get_running_loop().sock_recv(self._control, _MAX_PACKET)
        except ConnectionError:
            return None
        if not data:
            return None
        message: dict[str, Any] = json.loads(data)
        return message

    # A life

    def kill(self, number: int, *, everything: bool = False) -> None:
        """Send a signal to the init, or to every process of the container's cgroup.

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
        if number == signal.SIGKILL and self.state is TaskState.PAUSED and self._cgroup is not None:
            self._cgroup.thaw()  # frozen by version 1, it would not even die

    def pids(self) -> list[int]:
        """Return the pids of the container's processes; of an ended one, the pid it had.

        containerd 1.7 and later delete, when they start, a task without pids as leaked: what ended
        while they were down would lose its exit status.
        """
        if self.exit.done():
            return [self.pid]
        pids = self._cgroup.pids() if self._cgroup is not None else []
        return pids or [self.pid]

    def pause(self) -> None:
        """Freeze the container."""
        require(self.state, "pause")
        self._needed_cgroup().freeze()
        self.state = TaskState.PAUSED

    def resume(self) -> None:
        """Thaw the container."""
        require(self.state, "resume")
        self._needed_cgroup().thaw()
        self.state = TaskState.RUNNING

    def update(self, resources: dict[str, Any]) -> None:
        """Apply changed ``linux.resources``."""
        require(self.state, "update")
        for warning in self._needed_cgroup().apply(parse_resources(resources)):
            log.warning("%s", warning)

    def cgroup(self) -> Cgroup:
        """Return the cgroup, for statistics. Raises NotFoundError if there is none."""
        return self._needed_cgroup()

    def _needed_cgroup(self) -> Cgroup:
        if self._cgroup is None:
            raise NotFoundError("the container has no cgroup: its config.json names none")
        return self._cgroup

    # The end

    async def delete(self) -> Exit:
        """Remove what is left of the container; return how it ended."""
        require(self.state, "delete")
        if not self.exit.done():
            self.kill(signal.SIGKILL)
        exit_ = await self.exit
        await self.clean_up()
        return exit_

    async def clean_up(self) -> None:
        """Remove cgroup and socket. The rootfs went with the init's mount namespace."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._cgroup is None:
            return
        # The kernel takes a moment to empty a cgroup whose last process was just reaped.
        deadline = time.monotonic() + _CGROUP_SECONDS
        while not self._cgroup.try_delete():
            if time.monotonic() > deadline:
                log.warning("cgroup %s is still in use: left behind", self._cgroup.path)
                return
            await asyncio.sleep(_CGROUP_RETRY_SECONDS)


ContainerFactory = Callable[[SandboxRequest], Container]
