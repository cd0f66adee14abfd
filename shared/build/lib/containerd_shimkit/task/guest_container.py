"""A container with a WebAssembly guest: its sandbox process, from Create to Delete."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import signal
import socket
import time
from functools import cache
from typing import Any, Final

from containerd_shimkit.control import SandboxRequest
from containerd_shimkit.errors import (
    FailedPreconditionError,
    NotFoundError,
    ShimError,
    UnimplementedError,
)
from containerd_shimkit.hooks import ContainerHooks
from containerd_shimkit.linux.seccomp import NOT_APPLIED, seccomp_available
from containerd_shimkit.reaper import Exit, Reaper
from containerd_shimkit.sandbox import fork_stage
from containerd_shimkit.stdio import StdioNames
from containerd_shimkit.task.errand import ReportedError, run_errand
from containerd_shimkit.task.process import Container, Process
from containerd_shimkit.task.record import InitRecord
from containerd_shimkit.task.state import require

_MAX_PACKET: Final = 64 << 10
_CGROUP_SECONDS: Final = 2.0
_CGROUP_RETRY_SECONDS: Final = 0.005
_SCOPE_SECONDS: Final = 5.0  # for systemd, which may be reading its units again
_NO_EXEC: Final = (
    "cannot exec: a WebAssembly container has one process, the engine, and no other program to run"
)

log = logging.getLogger(__name__)


@cache
def _warn_of_seccomp() -> None:
    """Say it once: it is the node that lacks it, not a container."""
    log.warning("%s", NOT_APPLIED)


class OrdinaryContainer(Exception):
    """The image's command is an ordinary program: no container for an engine."""


class GuestContainer(Container):
    """A container whose init is the engine."""

    def __init__(self, request: SandboxRequest, reaper: Reaper) -> None:
        super().__init__(request, reaper)
        self._control: socket.socket | None = None
        self._stage: asyncio.Future[Exit] | None = None
        self._hooks = ContainerHooks(request.bundle, request.task_id, reaper)

    # Create and Start

    async def create(self) -> None:
        """Fork the sandbox and wait until the app is prepared, or the sandbox failed.

        Raises ShimError or OrdinaryContainer; nothing is left then.
        """
        shim_end, sandbox_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        shim_end.setblocking(False)
        self._control = shim_end
        with sandbox_end:
            try:
                stage = self._reaper.watch(fork_stage(self.request, shim_end, sandbox_end))
                self._stage = stage
            except OSError:
                await self.clean_up()
                raise
        try:
            with self._reaper.keeping_orphans():
                await self._await_prepared()
        except BaseException:
            if self.pid:
                await self.kill(signal.SIGKILL)
            await stage
            if self.pid:
                await self.exit
            await self.clean_up()
            await self._hooks.poststop()
            raise

    async def _await_prepared(self) -> None:
        """Return when the pid is known and the app prepared.

        The stage says the one, the init the other, and nobody knows who is first.
        """
        prepared = hooks_wait = False
        failure: Exception | None = None
        while not (self.pid and (prepared or failure)):
            message = await self._receive()
            if message is None:
                break
            event = message["event"]
            if event == "pid":
                self.pid = message["pid"]
                self.follow(self._reaper.watch(self.pid))
                bundle = self.request.bundle
                InitRecord.of(self.pid, bundle.spec.linux.cgroups_path).save(bundle.path)
            elif event == "hooks":
                hooks_wait = True
            elif event == "created":
                if self.request.bundle.spec.linux.seccomp and not seccomp_available():
                    _warn_of_seccomp()
                for warning in message["warnings"]:
                    log.warning("%s", warning)
            elif event == "prepared":
                prepared = True
            elif event == "ordinary":
                failure = OrdinaryContainer()
            elif event == "failed":
                failure = ReportedError(message["message"], message["status"])
            if hooks_wait and self.pid:
                hooks_wait = False
                await self._hooks.create_runtime(self.pid)
                await self._send(b"continue")
        if failure is not None:
            raise failure
        if not (self.pid and prepared):
            raise ShimError("the sandbox process ended before it said why")

    async def start(self) -> None:
        """Let the app serve; return when it does. Raises ShimError with the app's reason."""
        require(self.state, "start")
        if self._stage is not None:
            # Not in Create: its end takes milliseconds, in which containerd asks for Start. The
            # init, told to start, wants to die with its parent: that is to be the shim by then.
            await self._stage
        await self._send(b"start")
        message = await self._receive()
        if message is None or message["event"] == "failed":
            exit_ = await self.exit
            if message is None:
                raise FailedPreconditionError(
                    f"the container ended with status {exit_.status} before it was ready"
                )
            raise ReportedError(message["message"], message["status"])
        self.started()
        await self._hooks.poststart(self.pid)

    async def _send(self, word: bytes) -> None:
        """Tell the sandbox; that it has ended is noticed when it is listened to."""
        assert self._control is not None
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(self._control, word)

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
        log.debug("the sandbox reports %s", message["event"])
        return message

    # What a guest has not

    def close_stdin(self) -> None:
        """Nothing to close: the container's process holds its standard input, the shim does not."""

    def resize(self, width: int, height: int) -> None:
        raise UnimplementedError("cannot resize: a WebAssembly container has no terminal")

    def add_exec(self, exec_id: str, spec: bytes, stdio: StdioNames, *, terminal: bool) -> None:
        raise UnimplementedError(_NO_EXEC)

    def get_exec(self, exec_id: str) -> Process:
        raise NotFoundError(f"exec {exec_id!r} does not exist: {_NO_EXEC}")

    # The end

    async def delete(self) -> Exit:
        """Remove what is left of the container; return how it ended."""
        require(self.state, "delete")
        if not self.exit.done():
            await self.kill(signal.SIGKILL)
        exit_ = await self.exit
        await self.clean_up()
        await self._hooks.poststop()
        return exit_

    async def clean_up(self) -> None:
        """Remove cgroup and socket. The rootfs went with the init's mount namespace."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._cgroup is None:
            return
        if self._cgroup.needs_systemd:
            delete = functools.partial(self._cgroup.delete, _SCOPE_SECONDS)
            try:
                await run_errand(self._reaper, delete)
            except (ShimError, OSError) as exc:
                log.warning("%s: left behind", exc)
            return
        # The kernel takes a moment to empty a cgroup whose last process was just reaped.
        deadline = time.monotonic() + _CGROUP_SECONDS
        while not self._cgroup.try_delete():
            if time.monotonic() > deadline:
                log.warning("cgroup %s is still in use: left behind", self._cgroup.path)
                return
            await asyncio.sleep(_CGROUP_RETRY_SECONDS)
