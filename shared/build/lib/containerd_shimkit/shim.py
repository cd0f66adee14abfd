"""The shim: one process for a pod, which answers containerd and owns the pod's containers.

Single-threaded; it never runs guest code and never waits for anything but events.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Final

from containerd_shimkit import log as shim_log
from containerd_shimkit.bootstrap import StartArguments
from containerd_shimkit.errors import status_of
from containerd_shimkit.events import ContainerdPublisher, Publisher
from containerd_shimkit.linux.syscalls import set_child_subreaper
from containerd_shimkit.pod.service import SERVICE as SANDBOX_SERVICE
from containerd_shimkit.pod.service import SandboxService
from containerd_shimkit.proto import sandbox_pb2 as sandbox_api
from containerd_shimkit.proto import task_pb2 as api
from containerd_shimkit.reaper import Reaper
from containerd_shimkit.rpc.server import Method, Server
from containerd_shimkit.runtime import ShimKind
from containerd_shimkit.task.factory import ContainerFactory
from containerd_shimkit.task.service import SERVICES, TaskService

UNUSED_SECONDS: Final = 120.0
"""A shim that never gets a container ends by itself: containerd died between start and Create."""
_LOOK_SECONDS: Final = 2.0
# containerd closes right after the answer to Shutdown, and takes a closed one for a failure of
# ShutdownSandbox.
_LINGER_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


def run_shim(kind: ShimKind, arguments: StartArguments, listener: socket.socket) -> int:
    """Serve on ``listener`` until containerd shuts the shim down; remove its socket at the end."""
    path = listener.getsockname()
    level = logging.DEBUG if arguments.debug else logging.INFO
    shim_log.configure(level, Path(arguments.bundle) / "log", runtime=kind.runtime)
    kind.import_engine()  # what the containers run; forks of the zygote have it already
    os.chdir("/")
    set_child_subreaper(True)
    # Everything alive now is in every fork: the collector need not visit, and so copy, it.
    gc.collect()
    gc.freeze()
    try:
        asyncio.run(_serve(kind, arguments, listener))
    finally:
        with contextlib.suppress(OSError):
            Path(path).unlink()
    return 0


async def _serve(kind: ShimKind, arguments: StartArguments, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _ignore_signal, number)
    reaper = Reaper()
    publisher = _publisher(arguments, reaper)

    factory = ContainerFactory(reaper)
    service = TaskService(kind, arguments.namespace, publisher, factory, done.set)
    sandboxes = SandboxService(service)
    methods = {name: task_methods(service, sandboxes) for name in SERVICES}
    methods[SANDBOX_SERVICE] = sandbox_methods(sandboxes)
    server = Server(methods, status_of=status_of)
    await server.start(listener)
    unused = asyncio.create_task(_end_unused(service, Path(arguments.bundle), done))
    await done.wait()
    unused.cancel()
    await server.close(linger=_LINGER_SECONDS)
    await publisher.close()


async def _end_unused(service: TaskService, bundle: Path, done: asyncio.Event) -> None:
    """Set ``done`` if no container is asked for in time, or will not be: the bundle is gone.

    containerd does not end a shim that it could not write down, on a full disk for instance.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + UNUSED_SECONDS
    while not service.was_used:
        if loop.time() >= deadline or not bundle.exists():
            done.set()
            return
        await asyncio.sleep(_LOOK_SECONDS)


def _ignore_signal(number: int) -> None:
    log.info("signal %d ignored: a shim ends when containerd shuts it down", number)


def _publisher(arguments: StartArguments, reaper: Reaper) -> Publisher:
    return ContainerdPublisher(
        arguments.namespace,
        os.environ.get("TTRPC_ADDRESS"),
        arguments.publish_binary,
        arguments.address,
        reaper,
        log,
    )


def task_methods(service: TaskService, sandboxes: SandboxService) -> dict[str, Method]:
    """Return the RPCs of the Task service by name, versions 2 and 3 alike."""
    return {
        "Create": Method(api.CreateTaskRequest, sandboxes.create_task),
        "Start": Method(api.StartRequest, service.start),
        "Wait": Method(api.WaitRequest, service.wait, cancellable=True),
        "Kill": Method(api.KillRequest, service.kill),
        "Delete": Method(api.DeleteRequest, service.delete),
        "State": Method(api.StateRequest, service.state, cancellable=True),
        "Pids": Method(api.PidsRequest, service.pids, cancellable=True),
        "Stats": Method(api.StatsRequest, service.stats, cancellable=True),
        "Connect": Method(api.ConnectRequest, service.connect, cancellable=True),
        "Pause": Method(api.PauseRequest, service.pause),
        "Resume": Method(api.ResumeRequest, service.resume),
        "Update": Method(api.UpdateTaskRequest, service.update),
        "CloseIO": Method(api.CloseIORequest, service.close_io),
        "ResizePty": Method(api.ResizePtyRequest, service.resize_pty),
        "Exec": Method(api.ExecProcessRequest, service.exec),
        "Checkpoint": Method(api.CheckpointTaskRequest, service.checkpoint),
        "Shutdown": Method(api.ShutdownRequest, service.shutdown),
    }


def sandbox_methods(service: SandboxService) -> dict[str, Method]:
    """Return the RPCs of the Sandbox service by name."""
    return {
        "CreateSandbox": Method(sandbox_api.CreateSandboxRequest, service.create_sandbox),
        "StartSandbox": Method(sandbox_api.StartSandboxRequest, service.start_sandbox),
        "StopSandbox": Method(sandbox_api.StopSandboxRequest, service.stop_sandbox),
        "ShutdownSandbox": Method(sandbox_api.ShutdownSandboxRequest, service.shutdown_sandbox),
        "WaitSandbox": Method(
            sandbox_api.WaitSandboxRequest, service.wait_sandbox, cancellable=True
        ),
        "SandboxStatus": Method(
            sandbox_api.SandboxStatusRequest, service.sandbox_status, cancellable=True
        ),
        "Platform": Method(sandbox_api.PlatformRequest, service.platform, cancellable=True),
        "PingSandbox": Method(sandbox_api.PingRequest, service.ping_sandbox, cancellable=True),
        "SandboxMetrics": Method(
            sandbox_api.SandboxMetricsRequest, service.sandbox_metrics, cancellable=True
        ),
    }
