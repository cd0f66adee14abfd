"""A Task service without a transport: its methods, real containers, a publisher that remembers.

It forks, so it needs a process without threads (``testing.clean``) and, for the containers, root.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from containerd_shimkit.control import SandboxRequest
from containerd_shimkit.errors import NotFoundError
from containerd_shimkit.linux.syscalls import set_child_subreaper
from containerd_shimkit.proto import task_pb2 as api
from containerd_shimkit.reaper import Reaper
from containerd_shimkit.runtime import ShimKind
from containerd_shimkit.task.factory import ContainerFactory
from containerd_shimkit.task.options import RuntimeOptions
from containerd_shimkit.task.process import Container
from containerd_shimkit.task.service import TaskService
from containerd_shimkit.testing.bundles import BundleBuilder
from containerd_shimkit.testing.publisher import MemoryPublisher
from containerd_shimkit.testing.stub_engine import STUB_KIND


class RememberingFactory(ContainerFactory):
    """Keeps what it has made."""

    def __init__(self, reaper: Reaper) -> None:
        super().__init__(reaper)
        self.containers: dict[str, Container] = {}

    async def create(self, request: SandboxRequest, options: RuntimeOptions) -> Container:
        container = await super().create(request, options)
        self.containers[request.task_id] = container
        return container


class RunningService:
    """A service and the short forms of what tests ask of it."""

    def __init__(self, kind: ShimKind, namespace: str) -> None:
        self.namespace = namespace
        self.publisher = MemoryPublisher()
        self.shut_down = asyncio.Event()
        self.reaper = Reaper()
        self.factory = RememberingFactory(self.reaper)
        self.service = TaskService(
            kind, namespace, self.publisher, self.factory, self.shut_down.set
        )

    async def create(self, bundle: BundleBuilder, **fields: Any) -> int:
        """Write the bundle and create its task; return the pid. fields: of the request."""
        request = api.CreateTaskRequest(
            id=bundle.task_id, bundle=str(bundle.write()), rootfs=bundle.rootfs_mounts, **fields
        )
        return (await self.service.create(request)).pid

    async def start(self, task_id: str) -> None:
        await self.service.start(api.StartRequest(id=task_id))

    async def run(self, bundle: BundleBuilder, **fields: Any) -> int:
        """Create and start; return the pid."""
        pid = await self.create(bundle, **fields)
        await self.start(bundle.task_id)
        return pid

    async def state(self, task_id: str) -> api.StateResponse:
        return await self.service.state(api.StateRequest(id=task_id))

    async def wait(self, task_id: str) -> int:
        """Return the exit code when the task has ended."""
        return (await self.service.wait(api.WaitRequest(id=task_id))).exit_status

    async def kill(self, task_id: str, number: int = signal.SIGKILL, *, all: bool = False) -> None:
        await self.service.kill(api.KillRequest(id=task_id, signal=number, all=all))

    async def delete(self, task_id: str) -> api.DeleteResponse:
        return await self.service.delete(api.DeleteRequest(id=task_id))

    async def remove(self, task_id: str) -> None:
        """Kill and delete a task, whatever state it is in; nothing if there is none."""
        with contextlib.suppress(NotFoundError):
            await self.kill(task_id)
        with contextlib.suppress(NotFoundError):
            await self.wait(task_id)
            await self.delete(task_id)


@asynccontextmanager
async def running_service(
    namespace: str, kind: ShimKind = STUB_KIND
) -> AsyncIterator[RunningService]:
    """A service whose containers are gone afterwards."""
    set_child_subreaper(True)
    running = RunningService(kind, namespace)
    try:
        yield running
    finally:
        for task_id, container in running.factory.containers.items():
            await running.remove(task_id)
            if not container.exit.done() and container.pid:
                await container.kill(signal.SIGKILL)
        await running.publisher.close()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
