"""Every RPC of the Sandbox service, on a real pause container."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2

from containerd_shimkit.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    ShimError,
)
from containerd_shimkit.linux.mounts import unmount
from containerd_shimkit.pod.service import SandboxService
from containerd_shimkit.proto import cgroups_v1_pb2, cgroups_v2_pb2
from containerd_shimkit.proto import pod_pb2 as cri
from containerd_shimkit.proto import sandbox_pb2 as api
from containerd_shimkit.proto import task_pb2 as task_api
from containerd_shimkit.testing import BundleBuilder, in_clean_process, running_service
from containerd_shimkit.testing.leftovers import cgroup_directories, mount_points
from containerd_shimkit.testing.service import RunningService

pytestmark = pytest.mark.root

DEADLINE = 20.0


class Pod:
    """A pod in the making: what containerd knows of it, and the service it asks."""

    def __init__(self, directory: Path, running: RunningService) -> None:
        self.running = running
        self.service = SandboxService(running.service)
        self.bundle = directory / "pod"
        (self.bundle / "rootfs").mkdir(parents=True)

    async def create(self, **linux: Any) -> None:
        options = cri.NamespaceOption(network=cri.NODE)
        security = cri.LinuxSandboxSecurityContext(namespace_options=options)
        parent = f"/{self.running.namespace}"
        pod = cri.LinuxPodSandboxConfig(cgroup_parent=parent, security_context=security, **linux)
        config = cri.PodSandboxConfig(linux=pod)
        packed = any_pb2.Any(type_url=config.DESCRIPTOR.full_name, value=config.SerializeToString())
        await self.service.create_sandbox(
            api.CreateSandboxRequest(sandbox_id="pod", bundle_path=str(self.bundle), options=packed)
        )

    async def start(self) -> int:
        request = api.StartSandboxRequest(sandbox_id="pod")
        return (await self.service.start_sandbox(request)).pid

    async def status(self) -> api.SandboxStatusResponse:
        request = api.SandboxStatusRequest(sandbox_id="pod", verbose=True)
        return await self.service.sandbox_status(request)

    async def wait(self) -> int:
        request = api.WaitSandboxRequest(sandbox_id="pod")
        answer = await asyncio.wait_for(self.service.wait_sandbox(request), DEADLINE)
        return answer.exit_status

    async def stop(self) -> None:
        request = api.StopSandboxRequest(sandbox_id="pod", timeout_secs=10)
        await self.service.stop_sandbox(request)

    async def shut_down(self) -> None:
        request = api.ShutdownSandboxRequest(sandbox_id="pod")
        await self.service.shutdown_sandbox(request)


@asynccontextmanager
async def running_pod(tmp_path: Path, namespace: str) -> AsyncIterator[Pod]:
    async with running_service(namespace) as running:
        pod = Pod(tmp_path, running)
        try:
            yield pod
        finally:
            unmount(str(pod.bundle / "rootfs"))
    # It is the pod's cgroup, which kubelet makes and removes.
    for directory in cgroup_directories():
        if directory.name == namespace:
            directory.rmdir()


@in_clean_process
async def test_life_of_a_pod(tmp_path: Path, namespace: str) -> None:
    async with running_pod(tmp_path, namespace) as pod:
        await pod.create()
        assert (await pod.status()).state == "SANDBOX_NOTREADY"
        pid = await pod.start()
        status = await pod.status()
        assert (status.state, status.pid) == ("SANDBOX_READY", pid)
        assert json.loads(status.info["info"])["pid"] == pid
        assert Path(f"/proc/{pid}/ns/ipc").readlink() != Path("/proc/self/ns/ipc").readlink()
        waiting = asyncio.create_task(pod.wait())
        await pod.stop()
        assert await waiting == await pod.wait() == 137
        await pod.stop()
        status = await pod.status()
        assert status.state == "SANDBOX_NOTREADY"
        assert status.exited_at.ToNanoseconds() > status.created_at.ToNanoseconds()
        assert not pod.running.shut_down.is_set()
        await pod.shut_down()
        assert pod.running.shut_down.is_set()
        assert not any(str(pod.bundle) in mount for mount in mount_points())


@in_clean_process
async def test_pod_is_a_task_too(tmp_path: Path, namespace: str) -> None:
    """After its restart containerd asks for a task with the pod's id, to see who is alive."""
    async with running_pod(tmp_path, namespace) as pod:
        await pod.create()
        pid = await pod.start()
        connected = await pod.running.service.connect(task_api.ConnectRequest(id="pod"))
        assert (connected.shim_pid, connected.task_pid) == (os.getpid(), pid)
        pids = await pod.running.service.pids(task_api.PidsRequest(id="pod"))
        assert [process.pid for process in pids.processes] == [pid]


@in_clean_process
async def test_container_sees_the_files_of_its_pod(tmp_path: Path, namespace: str) -> None:
    async with running_pod(tmp_path, namespace) as pod:
        await pod.create()
        pause = await pod.start()
        for name in ("one", "two"):
            bundle = BundleBuilder(
                tmp_path / name,
                task_id=name,
                namespace=namespace,
                namespaces={"mount": None, "ipc": f"/proc/{pause}/ns/ipc"},
            )
            bundle.write()
            request = task_api.CreateTaskRequest(id=name, bundle=str(bundle.path))
            pid = (await pod.service.create_task(request)).pid
            root = Path(f"/proc/{pid}/root")
            assert (root / "etc/hosts").read_text() == Path("/etc/hosts").read_text()
            (root / "dev/shm" / name).touch()
        assert {file.name for file in (root / "dev/shm").iterdir()} == {"one", "two"}
        await pod.shut_down()  # with whatever is in it
        assert pod.running.shut_down.is_set()


@in_clean_process
async def test_metrics_are_the_pods(tmp_path: Path, namespace: str) -> None:
    async with running_pod(tmp_path, namespace) as pod:
        await pod.create()
        await pod.start()
        request = api.SandboxMetricsRequest(sandbox_id="pod")
        metrics = (await pod.service.sandbox_metrics(request)).metrics
        kinds = {
            m.DESCRIPTOR.full_name: m for m in (cgroups_v1_pb2.Metrics, cgroups_v2_pb2.Metrics)
        }
        assert metrics.id == "pod"
        counters = kinds[metrics.data.type_url].FromString(metrics.data.value)
        assert counters.ByteSize() > 0
        assert metrics.timestamp.seconds > 0


@in_clean_process
async def test_platform_is_this_machine(tmp_path: Path, namespace: str) -> None:
    async with running_pod(tmp_path, namespace) as pod:
        await pod.create()
        platform = (await pod.service.platform(api.PlatformRequest(sandbox_id="pod"))).platform
        assert platform.os == "linux"
        assert platform.architecture in ("amd64", "arm64")
        await pod.service.ping_sandbox(api.PingRequest(sandbox_id="pod"))


@in_clean_process
async def test_pod_that_cannot_start_leaves_nothing(tmp_path: Path, namespace: str) -> None:
    async with running_pod(tmp_path, namespace) as pod:
        await pod.create(sysctls={"kernel.no_such_thing": "1"})
        with pytest.raises(ShimError, match="no_such_thing"):
            await pod.start()
        with pytest.raises(NotFoundError):
            await pod.running.state("pod")
        await pod.shut_down()
        assert pod.running.shut_down.is_set()


@in_clean_process
async def test_killed_pause_container_makes_the_pod_not_ready(
    tmp_path: Path, namespace: str
) -> None:
    async with running_pod(tmp_path, namespace) as pod:
        await pod.create()
        os.kill(await pod.start(), signal.SIGKILL)
        assert await pod.wait() == 137
        assert (await pod.status()).state == "SANDBOX_NOTREADY"


@in_clean_process
async def test_one_pod_a_shim(tmp_path: Path, namespace: str) -> None:
    async with running_pod(tmp_path, namespace) as pod:
        for call in (pod.start, pod.status, pod.wait, pod.stop, pod.shut_down):
            with pytest.raises(NotFoundError, match="sandbox 'pod' does not exist"):
                await call()
        await pod.create()
        with pytest.raises(AlreadyExistsError):
            await pod.create()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (any_pb2.Any(type_url="other.Message"), "'other.Message' is not"),
        (any_pb2.Any(type_url="runtime.v1.PodSandboxConfig", value=b"\xff"), "options: "),
    ],
)
@in_clean_process
async def test_options_of_another_kind_are_refused(
    tmp_path: Path, namespace: str, options: any_pb2.Any, message: str
) -> None:
    async with running_pod(tmp_path, namespace) as pod:
        request = api.CreateSandboxRequest(
            sandbox_id="pod", bundle_path=str(pod.bundle), options=options
        )
        with pytest.raises(InvalidArgumentError, match=message):
            await pod.service.create_sandbox(request)
