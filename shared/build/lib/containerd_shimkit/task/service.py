"""The Task service: one method for each RPC of containerd's shim API, callable without a transport.

Source: containerd ``api/runtime/task/v2/shim.proto``; version 3 has the same messages under
another name. Calls that make no sense for a WebAssembly guest answer UNIMPLEMENTED with a
sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
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
from containerd_shimkit.task.factory import ContainerFactory
from containerd_shimkit.task.oom import OomWatch
from containerd_shimkit.task.options import RuntimeOptions
from containerd_shimkit.task.process import Container, Process
from containerd_shimkit.task.state import TaskState

SERVICES: Final = ("containerd.task.v2.Task", "containerd.task.v3.Task")

_STATUS: Final = {
    TaskState.CREATED: types.CREATED,
    TaskState.RUNNING: types.RUNNING,
    TaskState.PAUSED: types.PAUSED,
    TaskState.STOPPED: types.STOPPED,
}
ABANDONED_SECONDS = 30.0
"""How often an ended container that nobody deletes is looked at."""

_NO_CHECKPOINT: Final = "cannot checkpoint or restore: the state of a guest is not saved"

log = logging.getLogger(__name__)


class TaskService:
    """The containers of one shim, by task id."""

    def __init__(
        self,
        kind: ShimKind,
        namespace: str,
        publisher: Publisher,
        factory: ContainerFactory,
        shut_down: Callable[[], None],
    ) -> None:
        """shut_down: called when containerd wants the shim to end and no container is left."""
        self._kind = kind
        self._namespace = namespace
        self._publisher = publisher
        self._factory = factory
        self._shut_down = shut_down
        self._containers: dict[str, Container] = {}
        self._creating: set[str] = set()
        self._exits: dict[Process, asyncio.Task[None]] = {}
        self._oom_watches: dict[Process, OomWatch] = {}
        self._watching: set[asyncio.Task[None]] = set()
        self.was_used = False
        """Whether a container was ever asked for."""

    # A task's life, in order

    async def create(self, request: api.CreateTaskRequest) -> api.CreateTaskResponse:
        """Make the container up to the point where ``start`` lets it run."""
        self.was_used = True
        if request.id in self._containers or request.id in self._creating:
            raise AlreadyExistsError(f"task {request.id!r} exists already")
        if request.checkpoint:
            raise UnimplementedError(_NO_CHECKPOINT)
        sandbox = SandboxRequest(
            kind=self._kind,
            namespace=self._namespace,
            task_id=request.id,
            bundle=Bundle.load(Path(request.bundle)),
            rootfs=tuple(request.rootfs),
            stdio=StdioNames(request.stdin, request.stdout, request.stderr),
            terminal=request.terminal,
        )
        options = RuntimeOptions.parse(request.options)
        self._creating.add(request.id)
        try:
            container = await self._factory.create(sandbox, options)
        finally:
            self._creating.discard(request.id)
        self._containers[request.id] = container
        self._publisher.publish(
            events.TaskCreate(
                container_id=request.id,
                bundle=request.bundle,
                rootfs=request.rootfs,
                io=events.TaskIO(
                    stdin=request.stdin,
                    stdout=request.stdout,
                    stderr=request.stderr,
                    terminal=request.terminal,
                ),
                pid=container.pid,
            )
        )
        if container.has_cgroup:
            oom = events.TaskOOM(container_id=request.id)
            watch = OomWatch(container.cgroup(), lambda: self._publisher.publish(oom))
            self._oom_watches[container] = watch
        self._follow_exit(request.id, request.id, container)
        watching = asyncio.create_task(self._forget_if_abandoned(request.id, container))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)
        return api.CreateTaskResponse(pid=container.pid)

    async def start(self, request: api.StartRequest) -> api.StartResponse:
        """Let it run; for an app, return when it can be reached."""
        process = self._process(request.id, request.exec_id)
        async with process.lock:
            await process.start()
            event: Message
            if request.exec_id:
                event = events.TaskExecStarted(
                    container_id=request.id, exec_id=request.exec_id, pid=process.pid
                )
                self._follow_exit(request.id, request.exec_id, process)
            else:
                event = events.TaskStart(container_id=request.id, pid=process.pid)
            self._publisher.publish(event)
        return api.StartResponse(pid=process.pid)

    def _follow_exit(self, task_id: str, process_id: str, process: Process) -> None:
        """Publish the exit of a process when it comes. process_id: of the task, or the exec id."""
        publishing = asyncio.create_task(self._publish_exit(task_id, process_id, process))
        self._exits[process] = publishing

    async def _publish_exit(self, task_id: str, process_id: str, process: Process) -> None:
        exit_ = await asyncio.shield(process.exit)
        async with process.lock:  # TaskStart, if it comes at all, comes first
            # CRI takes the reason OOMKilled from this event; it looks at no counter itself.
            if (watch := self._oom_watches.pop(process, None)) is not None:
                watch.finish(killed=isinstance(process, Container) and process.out_of_memory())
            event = events.TaskExit(
                container_id=task_id, id=process_id, pid=process.pid, exit_status=exit_.status
            )
            event.exited_at.CopyFrom(_timestamp(exit_.time_ns))
            self._publisher.publish(event)

    async def _forget_if_abandoned(self, task_id: str, container: Container) -> None:
        """Drop an ended container whose bundle is gone: nobody will ever delete it here.

        containerd cleans up with the ``delete`` command when a shim does not answer in time, and
        does not ask that shim again.
        """
        await asyncio.shield(container.exit)
        while self._containers.get(task_id) is container:
            await asyncio.sleep(ABANDONED_SECONDS)
            if container.request.bundle.path.exists() or container.lock.locked():
                continue
            if self._containers.get(task_id) is container:
                log.warning("task %s was deleted behind our back: forgotten", task_id)
                await self.delete(api.DeleteRequest(id=task_id))
                await self.shutdown(api.ShutdownRequest(id=task_id))

    async def wait(self, request: api.WaitRequest) -> api.WaitResponse:
        """Return how the process ended, now or when it does. May come before ``start``."""
        process = self._process(request.id, request.exec_id)
        exit_ = await asyncio.shield(process.exit)
        return api.WaitResponse(exit_status=exit_.status, exited_at=_timestamp(exit_.time_ns))

    async def kill(self, request: api.KillRequest) -> Empty:
        """Send a signal. An ended task is NOT_FOUND, as runc has it, unless ``all`` is asked."""
        process = self._process(request.id, request.exec_id)
        await process.kill(request.signal, everything=request.all)
        return Empty()

    async def delete(self, request: api.DeleteRequest) -> api.DeleteResponse:
        """Remove an ended process, or one that never ran."""
        process = self._process(request.id, request.exec_id)
        async with process.lock:
            self._process(request.id, request.exec_id)  # another delete may have been first
            exit_ = await process.delete()
            if not request.exec_id:
                del self._containers[request.id]
        if (publishing := self._exits.pop(process, None)) is not None:
            await publishing  # TaskExit comes before TaskDelete
        response = api.DeleteResponse(
            pid=process.pid, exit_status=exit_.status, exited_at=_timestamp(exit_.time_ns)
        )
        if not request.exec_id:
            self._publisher.publish(
                events.TaskDelete(
                    container_id=request.id,
                    id=request.id,
                    pid=process.pid,
                    exit_status=exit_.status,
                    exited_at=response.exited_at,
                )
            )
        return response

    async def exec(self, request: api.ExecProcessRequest) -> Empty:
        """Prepare another process in an ordinary container; ``start`` starts it."""
        container = self._get(request.id)
        if not request.exec_id:
            raise InvalidArgumentError("exec: no exec id")
        stdio = StdioNames(request.stdin, request.stdout, request.stderr)
        async with container.lock:
            container.add_exec(
                request.exec_id, request.spec.value, stdio, terminal=request.terminal
            )
            event = events.TaskExecAdded(container_id=request.id, exec_id=request.exec_id)
            self._publisher.publish(event)
        return Empty()

    # Looking at it

    async def state(self, request: api.StateRequest) -> api.StateResponse:
        """Return what the process is doing; works after its end too."""
        process = self._process(request.id, request.exec_id)
        container = self._get(request.id)
        response = api.StateResponse(
            id=request.id,
            bundle=str(container.request.bundle.path),
            pid=process.pid,
            status=_STATUS[process.state],
            stdin=process.stdio.stdin,
            stdout=process.stdio.stdout,
            stderr=process.stdio.stderr,
            terminal=process.terminal,
            exec_id=request.exec_id,
        )
        if process.exit.done():
            exit_: Exit = process.exit.result()
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
            await container.pause()
            self._publisher.publish(events.TaskPaused(container_id=request.id))
        return Empty()

    async def resume(self, request: api.ResumeRequest) -> Empty:
        """Thaw the task."""
        container = self._get(request.id)
        async with container.lock:
            await container.resume()
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
            await container.update(resources)
        return Empty()

    async def close_io(self, request: api.CloseIORequest) -> Empty:
        """Let the process see the end of its input."""
        process = self._process(request.id, request.exec_id)
        if request.stdin:
            process.close_stdin()
        return Empty()

    async def resize_pty(self, request: api.ResizePtyRequest) -> Empty:
        """Set the size of the terminal of an ordinary process."""
        self._process(request.id, request.exec_id).resize(request.width, request.height)
        return Empty()

    async def checkpoint(self, request: api.CheckpointTaskRequest) -> NoReturn:
        """Refuse: the state of a guest cannot be saved."""
        self._get(request.id)
        raise UnimplementedError(_NO_CHECKPOINT)

    # The shim

    async def shutdown(self, request: api.ShutdownRequest) -> Empty:
        """End the shim once nobody needs it: containerd asks for each container of a pod."""
        if not self._containers:
            self._shut_down()
        return Empty()

    async def remove_all(self) -> None:
        """Kill and delete every container: the pod they belong to is at its end."""
        for task_id, container in list(self._containers.items()):
            with contextlib.suppress(NotFoundError):  # ended, or deleted, meanwhile
                await container.kill(signal.SIGKILL, everything=True)
                await asyncio.shield(container.exit)
                await self.delete(api.DeleteRequest(id=task_id))

    def _get(self, task_id: str) -> Container:
        try:
            return self._containers[task_id]
        except KeyError:
            raise NotFoundError(f"task {task_id!r} does not exist") from None

    def _process(self, task_id: str, exec_id: str) -> Process:
        container = self._get(task_id)
        return container.get_exec(exec_id) if exec_id else container


def _timestamp(time_ns: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(time_ns)
    return timestamp
