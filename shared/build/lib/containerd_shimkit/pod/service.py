"""The Sandbox service: a pod made by the shim (containerd 2.x, ``sandboxer = "shim"``).

The pod's sandbox is a task of its own, named as the pod: its pause container. What containerd
asks of a task whose id is the pod's, as after its own restart, is answered like for any other.
Source: containerd ``api/runtime/sandbox/v1/sandbox.proto``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from containerd_shimkit.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
)
from containerd_shimkit.linux.cgroups import open_cgroup
from containerd_shimkit.metrics import metrics_any
from containerd_shimkit.pod.files import PodFiles
from containerd_shimkit.pod.spec import pause_spec
from containerd_shimkit.proto import pod_pb2 as cri
from containerd_shimkit.proto import process_pb2 as types
from containerd_shimkit.proto import sandbox_pb2 as api
from containerd_shimkit.proto import task_pb2 as task_api
from containerd_shimkit.proto import types_pb2
from containerd_shimkit.task.service import TaskService

SERVICE: Final = "containerd.runtime.sandbox.v1.Sandbox"
_SPEC_TYPE: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
_READY, _NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"
# GOARCH by what uname(2) says, for the processors Kubernetes runs on.
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


class SandboxService:
    """The one pod of a shim; none as long as nobody has asked for one."""

    def __init__(self, tasks: TaskService) -> None:
        self._tasks = tasks
        self._id = ""
        self._spec: dict[str, Any] = {}
        self._bundle = Path()
        self._cgroup_parent = ""
        self._files: PodFiles | None = None
        self._created_ns = 0

    # A pod's life, in order

    async def create_sandbox(self, request: api.CreateSandboxRequest) -> api.CreateSandboxResponse:
        """Write down what the pod is to be: the bundle of its pause container, and its files."""
        if self._id:
            raise AlreadyExistsError(f"sandbox {self._id!r} exists already")
        config = _pod_config(request.options)
        bundle = Path(request.bundle_path)
        spec = pause_spec(request.sandbox_id, config, request.netns_path)
        files = PodFiles(bundle)
        files.write(config)
        try:
            (bundle / "config.json").write_text(json.dumps(spec))
        except OSError:
            files.remove()
            raise
        self._id, self._spec, self._bundle = request.sandbox_id, spec, bundle
        self._cgroup_parent = config.linux.cgroup_parent
        self._files = files
        self._created_ns = time.time_ns()
        return api.CreateSandboxResponse()

    async def start_sandbox(self, request: api.StartSandboxRequest) -> api.StartSandboxResponse:
        """Run the pause container; what cannot be started is gone afterwards."""
        self._require(request.sandbox_id)
        create = task_api.CreateTaskRequest(id=self._id, bundle=str(self._bundle))
        pid = (await self._tasks.create(create)).pid
        try:
            await self._tasks.start(task_api.StartRequest(id=self._id))
        except BaseException:
            await self._tasks.delete(task_api.DeleteRequest(id=self._id))
            raise
        response = api.StartSandboxResponse(pid=pid)
        response.created_at.FromNanoseconds(self._created_ns)
        response.spec.type_url, response.spec.value = _SPEC_TYPE, json.dumps(self._spec).encode()
        return response

    async def create_task(self, request: task_api.CreateTaskRequest) -> task_api.CreateTaskResponse:
        """Create a container, in a pod of ours with the pod's files."""
        if self._files is not None and request.id != self._id:
            self._files.add_to(Path(request.bundle))
        return await self._tasks.create(request)

    async def wait_sandbox(self, request: api.WaitSandboxRequest) -> api.WaitSandboxResponse:
        """Return how the pause container ended, now or when it does."""
        self._require(request.sandbox_id)
        exit_ = await self._tasks.wait(task_api.WaitRequest(id=self._id))
        return api.WaitSandboxResponse(exit_status=exit_.exit_status, exited_at=exit_.exited_at)

    async def stop_sandbox(self, request: api.StopSandboxRequest) -> api.StopSandboxResponse:
        """Kill the pause container, which needs no grace period; fine if it has ended."""
        self._require(request.sandbox_id)
        with contextlib.suppress(NotFoundError):
            kill = task_api.KillRequest(id=self._id, signal=signal.SIGKILL)
            await self._tasks.kill(kill)
            async with asyncio.timeout(request.timeout_secs or None):
                await self._tasks.wait(task_api.WaitRequest(id=self._id))
        return api.StopSandboxResponse()

    async def shutdown_sandbox(
        self, request: api.ShutdownSandboxRequest
    ) -> api.ShutdownSandboxResponse:
        """Remove the pod with whatever is in it, and end the shim."""
        self._require(request.sandbox_id)
        await self._tasks.remove_all()
        if self._files is not None:
            self._files.remove()
        self._id = ""
        await self._tasks.shutdown(task_api.ShutdownRequest(id=request.sandbox_id))
        return api.ShutdownSandboxResponse()

    # Looking at it

    async def sandbox_status(self, request: api.SandboxStatusRequest) -> api.SandboxStatusResponse:
        """Return whether the pod is ready: whether its pause container runs."""
        self._require(request.sandbox_id)
        response = api.SandboxStatusResponse(sandbox_id=self._id, state=_NOT_READY)
        response.created_at.FromNanoseconds(self._created_ns)
        with contextlib.suppress(NotFoundError):  # before its start
            state = await self._tasks.state(task_api.StateRequest(id=self._id))
            response.pid = state.pid
            response.exited_at.CopyFrom(state.exited_at)
            if state.status in (types.RUNNING, types.PAUSED):
                response.state = _READY
        if request.verbose:
            info = {"pid": response.pid, "runtimeSpec": self._spec}
            response.info["info"] = json.dumps(info)
        return response

    async def platform(self, request: api.PlatformRequest) -> api.PlatformResponse:
        """Return what the pod's ordinary containers are built for: this machine."""
        self._require(request.sandbox_id)
        machine = os.uname().machine
        architecture = _ARCHITECTURES.get(machine, machine)
        return api.PlatformResponse(
            platform=types_pb2.Platform(os="linux", architecture=architecture)
        )

    async def ping_sandbox(self, request: api.PingRequest) -> api.PingResponse:
        """Answer."""
        self._require(request.sandbox_id)
        return api.PingResponse()

    async def sandbox_metrics(
        self, request: api.SandboxMetricsRequest
    ) -> api.SandboxMetricsResponse:
        """Return the counters of the pod's cgroup; of the pause container's if it has none."""
        self._require(request.sandbox_id)
        if self._cgroup_parent:
            data = metrics_any(open_cgroup(self._cgroup_parent, self._id).stats())
        else:
            data = (await self._tasks.stats(task_api.StatsRequest(id=self._id))).stats
        metric = types_pb2.Metric(id=self._id, data=data)
        metric.timestamp.GetCurrentTime()
        return api.SandboxMetricsResponse(metrics=metric)

    def _require(self, sandbox_id: str) -> None:
        if not self._id or sandbox_id != self._id:
            raise NotFoundError(f"sandbox {sandbox_id!r} does not exist")


def _pod_config(options: any_pb2.Any) -> cri.PodSandboxConfig:
    if not options.type_url:
        return cri.PodSandboxConfig()
    if options.type_url.rpartition("/")[2] != cri.PodSandboxConfig.DESCRIPTOR.full_name:
        raise InvalidArgumentError(
            f"options: {options.type_url!r} is not {cri.PodSandboxConfig.DESCRIPTOR.full_name}"
        )
    try:
        return cri.PodSandboxConfig.FromString(options.value)
    except DecodeError as exc:
        raise InvalidArgumentError(f"options: {exc}") from exc
