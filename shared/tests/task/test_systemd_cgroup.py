"""Containers whose cgroup a real systemd makes, as a Task service runs them.

The fixture ``slice_name`` skips where no systemd runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2

from containerd_shimkit.bootstrap import delete_task
from containerd_shimkit.errors import ShimError
from containerd_shimkit.linux.cgroups import Cgroup, open_cgroup
from containerd_shimkit.proto import process_pb2 as types
from containerd_shimkit.proto import task_pb2 as api
from containerd_shimkit.task.guest_container import GuestContainer
from containerd_shimkit.task.linux_container import LinuxContainer
from containerd_shimkit.testing import BundleBuilder, in_clean_process, running_service
from containerd_shimkit.testing.commands import ShimCommand

pytestmark = pytest.mark.root

BUSYBOX = Path("/bin/busybox")
DEADLINE = 20.0
DELETE_SECONDS = 5.0  # what containerd gives the command


def builder(tmp_path: Path, slice_name: str, **fields: Any) -> BundleBuilder:
    namespace = slice_name.removesuffix(".slice")
    path = f"{slice_name}:{namespace}:c"
    return BundleBuilder(
        tmp_path / "c", task_id="c", namespace=namespace, cgroups_path=path, **fields
    )


def ordinary(tmp_path: Path, slice_name: str, *command: str, **fields: Any) -> BundleBuilder:
    bundle = builder(tmp_path, slice_name, args=["/bin/busybox", *command], **fields)
    bundle.write()
    program = bundle.rootfs / "bin/busybox"
    program.parent.mkdir()
    program.write_bytes(BUSYBOX.read_bytes())
    program.chmod(0o755)
    return bundle


def cgroup_of(bundle: BundleBuilder) -> Cgroup:
    return open_cgroup(bundle.config()["linux"]["cgroupsPath"], bundle.task_id)


def load_state(bundle: BundleBuilder) -> str:
    unit = f"{bundle.namespace}-c.scope"
    command = ["systemctl", "show", "--property=LoadState", "--value", unit]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def assert_nothing_left_of(bundle: BundleBuilder) -> None:
    assert load_state(bundle) == "not-found"
    assert [str(d) for d in cgroup_of(bundle).directories.values() if d.exists()] == []


def update(resources: object) -> api.UpdateTaskRequest:
    value = any_pb2.Any(type_url="x", value=json.dumps(resources).encode())
    return api.UpdateTaskRequest(id="c", resources=value)


@in_clean_process
async def test_guest_lives_in_a_scope(tmp_path: Path, slice_name: str) -> None:
    bundle = builder(tmp_path, slice_name, resources={"memory": {"limit": 256 << 20}})
    async with running_service(bundle.namespace) as running:
        pid = await running.run(bundle)
        assert isinstance(running.factory.containers["c"], GuestContainer)
        assert load_state(bundle) == "loaded"
        pids = await running.service.pids(api.PidsRequest(id="c"))
        assert [process.pid for process in pids.processes] == [pid]
        stats = cgroup_of(bundle).stats()
        assert stats.memory.limit == 256 << 20
        assert stats.memory.usage > 0
        await running.service.pause(api.PauseRequest(id="c"))
        assert (await running.state("c")).status == types.PAUSED
        await running.service.resume(api.ResumeRequest(id="c"))
        await running.remove("c")
    assert_nothing_left_of(bundle)


@in_clean_process
async def test_update_outlives_a_daemon_reload(tmp_path: Path, slice_name: str) -> None:
    bundle = builder(tmp_path, slice_name, resources={"memory": {"limit": 256 << 20}})
    async with running_service(bundle.namespace) as running:
        await running.run(bundle)
        changed = {"memory": {"limit": 300 << 20}, "pids": {"limit": 77}}
        await running.service.update(update(changed))
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        await running.service.update(update({}))  # systemd has done the rest when it answers
        stats = cgroup_of(bundle).stats()
        assert (stats.memory.limit, stats.pids_limit) == (300 << 20, 77)


@in_clean_process
async def test_state_is_told_during_an_update(tmp_path: Path, slice_name: str) -> None:
    bundle = builder(tmp_path, slice_name)
    async with running_service(bundle.namespace) as running:
        await running.run(bundle)
        updating = asyncio.create_task(running.service.update(update({"pids": {"limit": 77}})))
        await asyncio.sleep(0)
        begin = time.monotonic()
        assert (await running.state("c")).status == types.RUNNING
        assert time.monotonic() - begin < 2.0
        assert not updating.done()
        await updating


@in_clean_process
async def test_update_that_systemd_refuses_is_said(tmp_path: Path, slice_name: str) -> None:
    bundle = builder(tmp_path, slice_name)
    async with running_service(bundle.namespace) as running:
        await running.run(bundle)
        with pytest.raises(ShimError, match=r"set properties of unit .*: .*range"):
            await running.service.update(update({"blockIO": {"weight": 50_000}}))
        assert (await running.state("c")).status == types.RUNNING


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"env": {"STUB_FAIL": "prepare"}}, id="app"),
        pytest.param({"env": {"STUB_DIE": "prepare"}}, id="init"),
        pytest.param({"resources": {"blockIO": {"weight": 50_000}}}, id="limit"),
        pytest.param({"hostname": "x" * 100}, id="isolation"),
    ],
)
@in_clean_process
async def test_failed_start_leaves_nothing(
    tmp_path: Path, slice_name: str, fields: dict[str, Any]
) -> None:
    bundle = builder(tmp_path, slice_name, **fields)
    async with running_service(bundle.namespace) as running:
        with pytest.raises(ShimError):
            await running.run(bundle)
    assert_nothing_left_of(bundle)


@in_clean_process
async def test_ended_container_can_be_asked_and_made_again(tmp_path: Path, slice_name: str) -> None:
    bundle = builder(tmp_path, slice_name, env={"STUB_EXIT": "3"})
    async with running_service(bundle.namespace) as running:
        for _ in range(2):
            await running.run(bundle)
            assert await asyncio.wait_for(running.wait("c"), DEADLINE) == 3
            await running.service.stats(api.StatsRequest(id="c"))
            await running.service.pids(api.PidsRequest(id="c"))
            await running.delete("c")
            assert_nothing_left_of(bundle)


@in_clean_process
async def test_runc_makes_a_scope_for_an_ordinary_container(
    tmp_path: Path, slice_name: str
) -> None:
    """The same name as that of the guest it was thought to be at first."""
    bundle = ordinary(tmp_path, slice_name, "sleep", "1000")
    async with running_service(bundle.namespace) as running:
        pid = await running.run(bundle)
        assert isinstance(running.factory.containers["c"], LinuxContainer)
        assert load_state(bundle) == "loaded"
        assert cgroup_of(bundle).pids() == [pid]
        await running.service.update(update({"pids": {"limit": 55}}))
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        await running.service.update(update({}))
        assert cgroup_of(bundle).stats().pids_limit == 55
        await running.remove("c")
    assert_nothing_left_of(bundle)


@in_clean_process
async def test_kill_for_want_of_memory_is_published(tmp_path: Path, slice_name: str) -> None:
    """The counter is in a cgroup that systemd removes as soon as it is empty."""
    limits = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]
    async with running_service(slice_name.removesuffix(".slice")) as running:
        for _ in range(5):
            bundle = ordinary(tmp_path, slice_name, *command, resources=limits)
            await running.run(bundle)
            assert await asyncio.wait_for(running.wait("c"), DEADLINE) == 137
            await running.delete("c")
            (bundle.rootfs / "bin/busybox").unlink()
            (bundle.rootfs / "bin").rmdir()
        topics = running.publisher.topics
        assert topics.count("/tasks/oom") == 5


@in_clean_process
async def test_kill_that_was_asked_for_is_not(tmp_path: Path, slice_name: str) -> None:
    async with running_service(slice_name.removesuffix(".slice")) as running:
        await running.run(builder(tmp_path, slice_name))
        await running.kill("c")
        assert await asyncio.wait_for(running.wait("c"), DEADLINE) == 137
        await running.delete("c")
        assert "/tasks/oom" not in running.publisher.topics


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_delete_after_the_shim_was_killed(stub: ShimCommand, slice_name: str, paused: bool) -> None:
    bundle = builder(stub.directory, slice_name)
    stub.start(bundle.write())
    create = api.CreateTaskRequest(id="c", bundle=str(bundle.path))
    stub.call("Create", create, api.CreateTaskResponse)
    stub.call("Start", api.StartRequest(id="c"), api.StartResponse)
    assert load_state(bundle) == "loaded"
    if paused:
        cgroup_of(bundle).freeze()
    [shim] = stub.shims()
    os.kill(shim.pid, signal.SIGKILL)
    begin = time.monotonic()
    response = delete_task(stub.address, stub.namespace, "c", str(bundle.path))
    assert time.monotonic() - begin < DELETE_SECONDS
    assert response.exit_status == 137
    assert_nothing_left_of(bundle)
    assert stub.delete(bundle.path).exit_status == 137
