"""An ordinary Linux container in a Wasm pod: the pause container, sidecars, init containers.

Run by the node's runc or crun. The shim's part is what containerd's own shim does for runc:
rootfs, streams, terminals, exit statuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Awaitable
from pathlib import Path
from typing import Final

from containerd_shimkit.control import SandboxRequest
from containerd_shimkit.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ShimError,
)
from containerd_shimkit.linux.cgroups import systemd_unit
from containerd_shimkit.linux.mounts import mount_rootfs, unmount
from containerd_shimkit.reaper import Exit, Reaper
from containerd_shimkit.stdio import StdioNames
from containerd_shimkit.task.options import RuntimeOptions
from containerd_shimkit.task.process import Container, Process
from containerd_shimkit.task.record import InitRecord
from containerd_shimkit.task.runc import Runc, StandardStreams
from containerd_shimkit.task.state import TaskState, require
from containerd_shimkit.task.streams import ProcessStreams

_MAX_EXEC_SPEC_BYTES: Final = 4 << 20


class LinuxContainer(Container):
    """A container run by the node's OCI runtime."""

    def __init__(self, request: SandboxRequest, reaper: Reaper, options: RuntimeOptions) -> None:
        super().__init__(request, reaper)
        path = request.bundle.spec.linux.cgroups_path
        self._runc = Runc(
            reaper,
            request.namespace,
            binary=options.binary_name,
            root=options.root,
            systemd_cgroup=options.systemd_cgroup or systemd_unit(path) is not None,
        )
        self._streams = ProcessStreams(request.stdio, terminal=request.terminal)
        self._execs: dict[str, ExecProcess] = {}
        self._exec_number = 0

    @property
    def _bundle(self) -> Path:
        return self.request.bundle.path

    async def create(self) -> None:
        """Mount the rootfs and have the runtime create the container. Raises ShimError."""
        rootfs = str(self.request.bundle.rootfs)
        if self.request.rootfs:
            mount_rootfs(self.request.rootfs, rootfs)

        def create(streams: StandardStreams | None, console: Path | None) -> Awaitable[int]:
            return self._runc.create(self.request.task_id, self._bundle, streams, console)

        try:
            with self._reaper.keeping_orphans():  # the init is one until its pid is known
                self.pid = await self._streams.run(create)
                self.follow(self._reaper.watch(self.pid))
            self.exit.add_done_callback(self._kill_the_rest)
            path = self.request.bundle.spec.linux.cgroups_path
            InitRecord.of(self.pid, path, self._runc.command).save(self._bundle)
        except BaseException:
            await self._streams.close()
            await self._runc.delete(self.request.task_id, self._bundle)
            unmount(rootfs)
            raise

    def _kill_the_rest(self, _exit: asyncio.Future[Exit]) -> None:
        """Let what the init has started end with it, where it is not process 1.

        In the pid namespace of the pod or the host it would go on, and keep the streams open: who
        reads them, as CRI does before it deletes a container, would wait for good.
        """
        namespaces = self.request.bundle.spec.linux.namespaces
        is_process_1 = any(n.type == "pid" and not n.path for n in namespaces)
        if self._cgroup is not None and not is_process_1:
            with contextlib.suppress(ShimError, OSError):
                self._cgroup.kill_all()

    async def start(self) -> None:
        require(self.state, "start")
        await self._runc.start(self.request.task_id, self._bundle)
        self.started()

    async def kill(self, number: int, *, everything: bool = False) -> None:
        if everything and not self.exit.done():
            self._was_killed |= number == signal.SIGKILL
            await self._runc.kill(self.request.task_id, self._bundle, number, everything=True)
        else:
            await super().kill(number, everything=everything)

    def close_stdin(self) -> None:
        self._streams.close_stdin()

    def resize(self, width: int, height: int) -> None:
        self._streams.resize(width, height)

    async def delete(self) -> Exit:
        require(self.state, "delete")
        if not self.exit.done():
            await super().kill(signal.SIGKILL)
        exit_ = await self.exit
        for process in list(self._execs.values()):
            await process.close_streams()
        await self._streams.close()
        await self._runc.delete(self.request.task_id, self._bundle)
        unmount(str(self.request.bundle.rootfs))
        return exit_

    # Added processes

    def add_exec(self, exec_id: str, spec: bytes, stdio: StdioNames, *, terminal: bool) -> None:
        if exec_id in self._execs:
            raise AlreadyExistsError(f"exec {exec_id!r} exists already")
        if self.state is not TaskState.RUNNING:
            raise FailedPreconditionError(f"cannot exec in a task in {self.state.value} state")
        process = ExecProcess(self, exec_id, check_process(spec), stdio, terminal=terminal)
        self._execs[exec_id] = process

    def get_exec(self, exec_id: str) -> Process:
        try:
            return self._execs[exec_id]
        except KeyError:
            raise NotFoundError(f"exec {exec_id!r} does not exist") from None

    def forget_exec(self, exec_id: str) -> None:
        """Drop a process that was deleted."""
        self._execs.pop(exec_id, None)

    async def start_exec(
        self, spec: bytes, streams: ProcessStreams
    ) -> tuple[int, asyncio.Future[Exit]]:
        """Run a process in the container; return its pid and its exit."""
        self._exec_number += 1  # names the file: an exec id may hold any character
        path = self._bundle / f"exec-{self._exec_number}.json"
        path.write_bytes(spec)

        def run(piped: StandardStreams | None, console: Path | None) -> Awaitable[int]:
            return self._runc.exec(self.request.task_id, self._bundle, path, piped, console)

        try:
            with self._reaper.keeping_orphans():
                pid = await streams.run(run)
                return pid, self._reaper.watch(pid)
        finally:
            path.unlink(missing_ok=True)
            path.with_suffix(".pid").unlink(missing_ok=True)


class ExecProcess(Process):
    """A process added to a Linux container."""

    def __init__(
        self,
        container: LinuxContainer,
        exec_id: str,
        spec: bytes,
        stdio: StdioNames,
        *,
        terminal: bool,
    ) -> None:
        super().__init__(stdio, terminal=terminal)
        self._container = container
        self._exec_id = exec_id
        self._spec = spec
        self._streams = ProcessStreams(stdio, terminal=terminal)

    async def start(self) -> None:
        require(self.state, "start")
        async with self._container.lock:  # it is not deleted meanwhile
            self.pid, exited = await self._container.start_exec(self._spec, self._streams)
        self.follow(exited)
        self.started()

    def close_stdin(self) -> None:
        self._streams.close_stdin()

    def resize(self, width: int, height: int) -> None:
        self._streams.resize(width, height)

    async def delete(self) -> Exit:
        require(self.state, "delete")
        if self.pid and not self.exit.done():
            await self.kill(signal.SIGKILL)
        exit_ = await self.exit if self.pid else Exit(0, 0)
        await self.close_streams()
        self._container.forget_exec(self._exec_id)
        return exit_

    async def close_streams(self) -> None:
        """Let containerd see the end of the output."""
        await self._streams.close()


def check_process(spec: bytes) -> bytes:
    """Return ``spec`` if it is a JSON object. Raises InvalidArgumentError; runc checks the rest."""
    if len(spec) > _MAX_EXEC_SPEC_BYTES:
        raise InvalidArgumentError(f"process spec of {len(spec)} bytes is too large")
    try:
        data = json.loads(spec)
    except ValueError as exc:
        raise InvalidArgumentError(f"process spec: not JSON: {exc}") from exc
    if not isinstance(data, dict):
        raise InvalidArgumentError("process spec: not an object")
    return spec
