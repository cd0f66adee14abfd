"""The Task service: one method for each RPC of containerd's shim API, callable without a transport.

Source: containerd ``api/runtime/task/v2/shim.proto``; version 3 has the same messages under
another name. Calls that make no sense for a WebAssembly guest answer UNIMPLEMENTED with a
sentence.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from containerd_shimkit.control import SandboxRequest
from containerd_shimkit.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from containerd_shimkit.events import Publisher
from containerd_shimkit.metrics import metrics_any
from containerd_shimkit.oci.bundle import Bundle
from containerd_shimkit.proto import events_pb2 as events
from containerd_shimkit.proto import process_pb2 as types
from containerd_shimkit.proto import task_pb2 as api
from containerd_shimkit.reaper import Exit
from containerd_shimkit.runtime import ShimKind
from containerd_shimkit.stdio import StdioNames
from containerd_shimkit.task.container import Container, ContainerFactory
from containerd_shimkit.task.state import TaskState

SERVICES: Final = ("containerd.task.v2.Task", "containerd.task.v3.Task")

_STATUS: Final = {
    TaskState.CREATED: types.CREATED,
    TaskState.RUNNING: types.RUNNING,
    TaskState.PAUSED: types.PAUSED,
    TaskState.STOPPED: types.STOPPED,
}
_NO_EXEC: Final = (
    "cannot exec: a WebAssembly container has one process, the engine, and no other program to run"
)


class TaskService:
    """The containers of one shim, by task id."""

    def __init__(
        self,
        kind: ShimKind,
        namespace: str,
        publisher: Publisher,
        new_container: ContainerFactory,
        shut_down: Callable[[], None],
    ) -> None:
        """shut_down: called when containerd wants the shim to end and no container is left."""
        self._kind = kind
        self._namespace = namespace
        self._publisher = publisher
        self._new_container = new_container
        self._shut_down = shut_down
        self._containers: dict[str, Container] = {}
        self._exits: dict[str, asyncio.Task[None]] = {}
        self.was_used = False
        """Whether a container was ever asked for."""

    # A task's life, in order

    async def create(self, request: api.CreateTaskRequest) -> api.CreateTaskResponse:
        """Make the container and prepare its app; it runs at ``start``."""
        self.was_used = True
        if request.id in self._containers:
            raise AlreadyExistsError(f"task {request.id!r} exists already")
        if request.terminal:
            raise InvalidArgumentError("a WebAssembly container has no terminal: run it without -t")
        if request.checkpoint:
            raise UnimplementedError("cannot restore: a WebAssembly guest cannot be checkpointed")
        bundle = Bundle.load(Path(request.bundle))
        stdio = StdioNames(request.stdin, request.stdout, request.stderr)
        container = self._new_container(
            SandboxRequest(
                self._kind, self._namespace, request.id, bundle, tuple(request.rootfs), stdio
            )
        )
        self._containers[request.id] = container
        async with container.lock:
            try:
                await container.create()
            except BaseException:
                del self._containers[request.id]
                raise
            self._publisher.publish(
                events.TaskCreate(
                    container_id=request.id,
                    bundle=request.bundle,
                    rootfs=request.rootfs,
                    io=events.TaskIO(
                        stdin=request.stdin, stdout=request.stdout, stderr=request.stderr
                    ),
                    pid=container.pid,
                )
            )
        self._exits[request.id] = asyncio.create_task(self._publish_exit(request.id, container))
        return api.CreateTaskResponse(pid=container.pid)

    async def start(self, request: api.StartRequest) -> api.StartResponse:
        """Return when the app can be reached."""
        container = self._init_of(request.id, request.exec_id)
        async with container.lock:
            await container.start()
            self._publisher.publish(events.TaskStart(container_id=request.id, pid=container.pid))
        return api.StartResponse(pid=container.pid)

    async def _publish_exit(self, task_id: str, container: Container) -> None:
        exit_ = await asyncio.shield(container.exit)
        async with container.lock:  # TaskStart, if it comes at all, comes first
            event = events.TaskExit(
                container_id=task_id, id=task_id, pid=container.pid, exit_status=exit_.status
            )
            event.exited_at.CopyFrom(_timestamp(exit_.time_ns))
            self._publisher.publish(event)

    async def wait(self, request: api.WaitRequest) -> api.WaitResponse:
        """Return how the task ended, now or when it does. May come before ``start``."""
        container = self._init_of(request.id, request.exec_id)
        exit_ = await asyncio.shield(container.exit)
        return api.WaitResponse(exit_status=exit_.status, exited_at=_timestamp(exit_.time_ns))

    async def kill(self, request: api.KillRequest) -> Empty:
        """Send a signal. An ended task is NOT_FOUND, as runc has it, unless ``all`` is asked."""
        container = self._init_of(request.id, request.exec_id)
        container.kill(request.signal, everything=request.all)
        return Empty()

    async def delete(self, request: api.DeleteRequest) -> api.DeleteResponse:
        """Remove an ended task, or one that never ran."""
        container = self._init_of(request.id, request.exec_id)
        async with container.lock:
            self._get(request.id)  # another delete may have been first
            exit_ = await container.delete()
            del self._containers[request.id]
        await self._exits.pop(request.id)  # TaskExit comes before TaskDelete
        response = api.DeleteResponse(
            pid=container.pid, exit_status=exit_.status, exited_at=_timestamp(exit_.time_ns)
        )
        self._publisher.publish(
            events.TaskDelete(
                container_id=request.id,
                id=request.id,
                pid=container.pid,
                exit_status=exit_.status,
                exited_at=response.exited_at,
            )
        )
        return response

    # Looking at it

    async def state(self, request: api.StateRequest) -> api.StateResponse:
        """Return what the task is doing; works after its end too."""
        container = self._init_of(request.id, request.exec_id)
        stdio = container.request.stdio
        response = api.StateResponse(
            id=request.id,
            bundle=str(container.request.bundle.path),
            pid=container.pid,
            status=_STATUS[container.state],
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
        )
        if container.exit.done():
            exit_: Exit = container.exit.result()
            response.exit_status = exit_.status
            response.exited_at.CopyFrom(_timestamp(exit_.time_ns))
        return response

    async def pids(self, request: api.PidsRequest) -> api.PidsResponse:
        """Return the pids of the task, as the host numbers them."""
        container = self._get(request.id)
        processes = [types.ProcessInfo(pid=pid) for pid in container.pids()]
        return api.PidsResponse(processes=processes)

    async def stats(self, request: api.StatsRequest) -> api.StatsResponse:
        """Return the cgroup's metrics in containerd's form for its cgroup version."""
        return api.StatsResponse(stats=metrics_any(self._get(request.id).cgroup().stats()))

    async def connect(self, request: api.ConnectRequest) -> api.ConnectResponse:
        """Return the pids of shim and task; containerd asks after its own restart."""
        container = self._get(request.id)
        return api.ConnectResponse(
            shim_pid=os.getpid(), task_pid=container.pid, version=self._kind.version
        )

    # Changing it

    async def pause(self, request: api.PauseRequest) -> Empty:
        """Freeze the task."""
        container = self._get(request.id)
        async with container.lock:
            container.pause()
            self._publisher.publish(events.TaskPaused(container_id=request.id))
        return Empty()

    async def resume(self, request: api.ResumeRequest) -> Empty:
        """Thaw the task."""
        container = self._get(request.id)
        async with container.lock:
            container.resume()
            self._publisher.publish(events.TaskResumed(container_id=request.id))
        return Empty()

    async def update(self, request: api.UpdateTaskRequest) -> Empty:
        """Apply changed limits. ``resources`` holds the JSON of the spec's ``linux.resources``."""
        container = self._get(request.id)
        try:
            resources: Any = json.loads(request.resources.value or b"{}")
        except ValueError as exc:
            raise InvalidArgumentError(f"resources: not JSON: {exc}") from exc
        if not isinstance(resources, dict):
            raise InvalidArgumentError("resources: not an object")
        async with container.lock:
            container.update(resources)
        return Empty()

    async def close_io(self, request: api.CloseIORequest) -> Empty:
        """Nothing to close: the container's process holds its standard input, the shim does not."""
        self._init_of(request.id, request.exec_id)
        return Empty()

    async def resize_pty(self, request: api.ResizePtyRequest) -> NoReturn:
        """Refuse: there is no terminal."""
        self._init_of(request.id, request.exec_id)
        raise UnimplementedError("cannot resize: a WebAssembly container has no terminal")

    async def exec(self, request: api.ExecProcessRequest) -> NoReturn:
        """Refuse: there is nothing to execute."""
        self._get(request.id)
        raise UnimplementedError(_NO_EXEC)

    async def checkpoint(self, request: api.CheckpointTaskRequest) -> NoReturn:
        """Refuse: the state of a guest cannot be saved."""
        self._get(request.id)
        raise UnimplementedError("cannot checkpoint: the state of a WebAssembly guest is not saved")

    # The shim

    async def shutdown(self, request: api.ShutdownRequest) -> Empty:
        """End the shim once nobody needs it: containerd asks for each container of a pod."""
        if not self._containers:
            self._shut_down()
        return Empty()

    def _get(self, task_id: str) -> Container:
        try:
            return self._containers[task_id]
        except KeyError:
            raise NotFoundError(f"task {task_id!r} does not exist") from None

    def _init_of(self, task_id: str, exec_id: str) -> Container:
        container = self._get(task_id)
        if exec_id:
            raise NotFoundError(f"exec {exec_id!r} does not exist: {_NO_EXEC}")
        return container


def _timestamp(time_ns: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(time_ns)
    return timestamp
