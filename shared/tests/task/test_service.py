"""Every RPC of the Task service on real containers of the stub engine."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2

from containerd_shimkit.errors import (
    AlreadyExistsError,
    BundleError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ShimError,
    Status,
    UnimplementedError,
)
from containerd_shimkit.linux.cgroups import Cgroup, open_cgroup
from containerd_shimkit.proto import cgroups_v1_pb2, cgroups_v2_pb2, types_pb2
from containerd_shimkit.proto import events_pb2 as events
from containerd_shimkit.proto import process_pb2 as types
from containerd_shimkit.proto import task_pb2 as api
from containerd_shimkit.task import service
from containerd_shimkit.task.record import InitRecord
from containerd_shimkit.testing import BundleBuilder, in_clean_process, running_service

pytestmark = pytest.mark.root

LIFE = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
DEADLINE = 20.0


def builder(tmp_path: Path, namespace: str, task_id: str = "c", **fields: Any) -> BundleBuilder:
    return BundleBuilder(tmp_path / task_id, task_id=task_id, namespace=namespace, **fields)


def cgroup_of(bundle: BundleBuilder) -> Cgroup:
    return open_cgroup(f"/{bundle.namespace}/{bundle.task_id}", bundle.task_id)


async def soon(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, DEADLINE)


async def refused(
    awaitable: Awaitable[object], error: type[ShimError], status: Status, text: str
) -> str:
    """Assert that the call is refused with this status and a sentence with ``text`` in it."""
    with pytest.raises(error) as caught:
        await soon(awaitable)
    message = str(caught.value)
    assert caught.value.status is status, caught.value
    assert text in message, message
    assert "\n" not in message.strip(), message
    return message


# A life


@in_clean_process
async def test_life_of_a_task(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace, env={"STUB_EXIT": "7"})
        pid = await running.create(bundle)
        assert (await running.state("c")).status == types.CREATED
        started = await running.service.start(api.StartRequest(id="c"))
        assert started.pid == pid
        assert await soon(running.wait("c")) == 7
        state = await running.state("c")
        assert (state.status, state.exit_status, state.pid) == (types.STOPPED, 7, pid)
        deleted = await running.delete("c")
        assert (deleted.pid, deleted.exit_status) == (pid, 7)
        assert deleted.exited_at == state.exited_at
        assert not cgroup_of(bundle).exists()
        assert running.publisher.topics == LIFE


@in_clean_process
async def test_events_say_what_happened(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace, env={"STUB_EXIT": "7"}, overlay=True)
        pid = await running.run(bundle, stdout="", stderr=f"file://{tmp_path}/err")
        await soon(running.wait("c"))
        deleted = await running.delete("c")
    create, start, exit_, delete = (event for _, event in running.publisher.published)
    assert create == events.TaskCreate(
        container_id="c",
        bundle=str(bundle.path),
        rootfs=bundle.rootfs_mounts,
        io=events.TaskIO(stderr=f"file://{tmp_path}/err"),
        pid=pid,
    )
    assert start == events.TaskStart(container_id="c", pid=pid)
    ended: dict[str, Any] = {"container_id": "c", "id": "c", "pid": pid, "exit_status": 7}
    assert exit_ == events.TaskExit(**ended, exited_at=deleted.exited_at)
    assert delete == events.TaskDelete(**ended, exited_at=deleted.exited_at)


@in_clean_process
async def test_events_of_a_task_that_ends_at_once_are_in_order(
    tmp_path: Path, namespace: str
) -> None:
    async with running_service(namespace) as running:
        for number in range(5):
            bundle = builder(tmp_path, namespace, f"c{number}", env={"STUB_EXIT": "0"})
            await running.create(bundle)
            waiting = asyncio.create_task(running.wait(bundle.task_id))
            await running.start(bundle.task_id)
            await soon(waiting)
            await running.delete(bundle.task_id)
        assert running.publisher.topics == LIFE * 5


@in_clean_process
async def test_wait_before_start_and_by_many(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        await running.create(builder(tmp_path, namespace, env={"STUB_EXIT": "3"}))
        waiters = [asyncio.create_task(running.wait("c")) for _ in range(20)]
        await asyncio.sleep(0)
        assert not any(waiter.done() for waiter in waiters)
        await running.start("c")
        assert await soon(asyncio.gather(*waiters)) == [3] * 20
        assert await soon(running.wait("c")) == 3


@in_clean_process
async def test_waiter_that_goes_away_does_no_harm(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace))
        waiter = asyncio.create_task(running.wait("c"))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.wait([waiter])
        await running.kill("c")
        assert await soon(running.wait("c")) == 137


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGTERM, 0, id="SIGTERM"),
        pytest.param(signal.SIGINT, 0, id="SIGINT"),
        pytest.param(signal.SIGKILL, 137, id="SIGKILL"),
    ],
)
@in_clean_process
async def test_signal_ends_a_running_task(
    tmp_path: Path, namespace: str, number: int, status: int
) -> None:
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace))
        await running.kill("c", number)
        assert await soon(running.wait("c")) == status


@pytest.mark.parametrize(
    ("number", "status"),
    [pytest.param(signal.SIGTERM, 143, id="SIGTERM"), pytest.param(signal.SIGKILL, 137, id="KILL")],
)
@in_clean_process
async def test_killed_before_start(
    tmp_path: Path, namespace: str, number: int, status: int
) -> None:
    async with running_service(namespace) as running:
        await running.create(builder(tmp_path, namespace))
        await running.kill("c", number)
        assert await soon(running.wait("c")) == status
        await refused(
            running.start("c"),
            FailedPreconditionError,
            Status.FAILED_PRECONDITION,
            "cannot start a task in stopped state",
        )
        await running.delete("c")
        assert running.publisher.topics == ["/tasks/create", "/tasks/exit", "/tasks/delete"]


@in_clean_process
async def test_starting_twice_is_refused(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace))
        text = "cannot start a task in running state"
        await refused(running.start("c"), FailedPreconditionError, Status.FAILED_PRECONDITION, text)
        assert (await running.state("c")).status == types.RUNNING


# Kill


@pytest.mark.parametrize("number", [0, 65, 1000])
@in_clean_process
async def test_what_is_no_signal_is_refused(tmp_path: Path, namespace: str, number: int) -> None:
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace))
        text = f"signal {number} is not between 1 and 64"
        await refused(
            running.kill("c", number), InvalidArgumentError, Status.INVALID_ARGUMENT, text
        )
        assert (await running.state("c")).status == types.RUNNING


@in_clean_process
async def test_kill_of_an_ended_task(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace, env={"STUB_EXIT": "0"}))
        await soon(running.wait("c"))
        await refused(
            running.kill("c"), NotFoundError, Status.NOT_FOUND, "process already finished"
        )
        await running.kill("c", all=True)


@in_clean_process
async def test_kill_all_ends_a_running_task(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace))
        await running.kill("c", all=True)
        assert await soon(running.wait("c")) == 137


# Delete


@in_clean_process
async def test_delete_of_a_running_task_is_refused(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace))
        await refused(
            running.delete("c"),
            FailedPreconditionError,
            Status.FAILED_PRECONDITION,
            "cannot delete a task in running state",
        )
        assert (await running.state("c")).status == types.RUNNING


@in_clean_process
async def test_delete_of_a_created_task_ends_it(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace)
        pid = await running.create(bundle)
        assert (await soon(running.delete("c"))).exit_status == 137
        assert not Path(f"/proc/{pid}").exists()
        assert not cgroup_of(bundle).exists()
        assert running.publisher.topics == ["/tasks/create", "/tasks/exit", "/tasks/delete"]


@in_clean_process
async def test_delete_twice(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        await running.create(builder(tmp_path, namespace))
        answers = await soon(
            asyncio.gather(running.delete("c"), running.delete("c"), return_exceptions=True)
        )
        assert [type(answer) for answer in answers] == [api.DeleteResponse, NotFoundError]
        await refused(running.delete("c"), NotFoundError, Status.NOT_FOUND, "task 'c'")
        assert running.publisher.topics.count("/tasks/delete") == 1


@in_clean_process
async def test_id_can_be_used_again_after_delete(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        for _ in range(2):
            await running.run(builder(tmp_path, namespace, env={"STUB_EXIT": "0"}))
            await soon(running.wait("c"))
            await running.delete("c")
        assert running.publisher.topics == LIFE * 2


# Looking at it


@in_clean_process
async def test_state_in_each_state(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace)
        names = {name: f"file://{tmp_path}/{name}" for name in ("stdout", "stderr")}
        pid = await running.create(bundle, **names)
        seen = []

        async def look() -> None:
            state = await running.state("c")
            assert (state.id, state.bundle, state.pid) == ("c", str(bundle.path), pid)
            assert (state.stdout, state.stderr) == (names["stdout"], names["stderr"])
            assert state.HasField("exited_at") is (state.status == types.STOPPED)
            seen.append(state.status)

        await look()
        await running.start("c")
        await look()
        await running.service.pause(api.PauseRequest(id="c"))
        await look()
        await running.service.resume(api.ResumeRequest(id="c"))
        await look()
        await running.kill("c", signal.SIGTERM)
        await soon(running.wait("c"))
        await look()
        assert seen == [types.CREATED, types.RUNNING, types.PAUSED, types.RUNNING, types.STOPPED]


@in_clean_process
async def test_pids(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        pid = await running.run(builder(tmp_path, namespace))
        pids = await running.service.pids(api.PidsRequest(id="c"))
        assert [process.pid for process in pids.processes] == [pid]
        await running.kill("c")
        await soon(running.wait("c"))
        # An ended task keeps its pid: containerd deletes as leaked what has none.
        assert (await running.service.pids(api.PidsRequest(id="c"))) == pids


@in_clean_process
async def test_pids_without_a_cgroup(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        pid = await running.run(builder(tmp_path, namespace, cgroups_path=""))
        pids = await running.service.pids(api.PidsRequest(id="c"))
        assert [process.pid for process in pids.processes] == [pid]
        await refused(
            running.service.stats(api.StatsRequest(id="c")),
            NotFoundError,
            Status.NOT_FOUND,
            "no cgroup",
        )


@in_clean_process
async def test_stats_are_the_metrics_of_the_cgroup(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        limit = 256 << 20
        bundle = builder(tmp_path, namespace, resources={"memory": {"limit": limit}})
        await running.run(bundle)
        stats = (await running.service.stats(api.StatsRequest(id="c"))).stats
        version = cgroup_of(bundle).version
        assert stats.type_url == f"io.containerd.cgroups.v{version}.Metrics"
        if version == 1:
            v1 = cgroups_v1_pb2.Metrics.FromString(stats.value)
            assert v1.memory.usage.limit == limit
            assert v1.memory.usage.usage > 0
            assert v1.cpu.usage.total > 0
            assert v1.pids.current >= 1
        else:
            v2 = cgroups_v2_pb2.Metrics.FromString(stats.value)
            assert v2.memory.usage_limit == limit
            assert v2.memory.usage > 0


@in_clean_process
async def test_stats_and_connect_of_an_ended_task(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        pid = await running.run(builder(tmp_path, namespace, env={"STUB_EXIT": "0"}))
        await soon(running.wait("c"))
        stats = await running.service.stats(api.StatsRequest(id="c"))
        assert stats.stats.type_url.endswith(".Metrics")
        connect = await running.service.connect(api.ConnectRequest(id="c"))
        assert (connect.shim_pid, connect.task_pid) == (os.getpid(), pid)


# Changing it


def resources(value: object) -> any_pb2.Any:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return any_pb2.Any(type_url="types.containerd.io/opencontainers/...", value=raw)


@in_clean_process
async def test_update_changes_the_cgroup(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace, resources={"memory": {"limit": 256 << 20}})
        await running.run(bundle)
        change = resources({"memory": {"limit": 128 << 20}, "pids": {"limit": 77}})
        await running.service.update(api.UpdateTaskRequest(id="c", resources=change))
        cgroup = cgroup_of(bundle)
        name = "memory.limit_in_bytes" if cgroup.version == 1 else "memory.max"
        directory = cgroup.directories.get("memory", cgroup.main)
        assert int((directory / name).read_text()) == 128 << 20
        pids = cgroup.directories.get("pids", cgroup.main)
        assert int((pids / "pids.max").read_text()) == 77


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        pytest.param(b"{", "resources: not JSON", id="no-json"),
        pytest.param(b"\xff\xfe{", "resources: not JSON", id="no-text"),
        pytest.param(b"[]", "resources: not an object", id="list"),
        pytest.param(b'{"memory": 7}', "memory", id="section"),
        pytest.param(b'{"memory": {"limit": "1g"}}', "memory.limit", id="value"),
    ],
)
@in_clean_process
async def test_bad_update_is_refused(tmp_path: Path, namespace: str, raw: bytes, text: str) -> None:
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace))
        request = api.UpdateTaskRequest(id="c", resources=resources(raw))
        await refused(
            running.service.update(request), InvalidArgumentError, Status.INVALID_ARGUMENT, text
        )
        assert (await running.state("c")).status == types.RUNNING


@in_clean_process
async def test_update_of_an_ended_task_is_refused(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace, env={"STUB_EXIT": "0"}))
        await soon(running.wait("c"))
        await refused(
            running.service.update(api.UpdateTaskRequest(id="c", resources=resources({}))),
            FailedPreconditionError,
            Status.FAILED_PRECONDITION,
            "cannot update a task in stopped state",
        )


@in_clean_process
async def test_pause_and_resume(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        pause = api.PauseRequest(id="c")
        resume = api.ResumeRequest(id="c")
        await running.create(builder(tmp_path, namespace))
        precondition = FailedPreconditionError, Status.FAILED_PRECONDITION
        await refused(running.service.pause(pause), *precondition, "cannot pause a task in created")
        await running.start("c")
        await refused(running.service.resume(resume), *precondition, "cannot resume a task in run")
        await running.service.pause(pause)
        await refused(running.service.pause(pause), *precondition, "cannot pause a task in paused")
        await refused(running.delete("c"), *precondition, "cannot delete a task in paused")
        await running.service.resume(resume)
        await running.kill("c", signal.SIGTERM)
        assert await soon(running.wait("c")) == 0
        await running.delete("c")
        topics = [*LIFE[:2], "/tasks/paused", "/tasks/resumed", *LIFE[2:]]
        assert running.publisher.topics == topics


@in_clean_process
async def test_sigkill_ends_a_paused_task(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace))
        await running.service.pause(api.PauseRequest(id="c"))
        await running.kill("c")
        assert await soon(running.wait("c")) == 137
        assert (await running.delete("c")).exit_status == 137


@in_clean_process
async def test_close_io(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace))
        await running.service.close_io(api.CloseIORequest(id="c", stdin=True))
        await running.kill("c")
        await soon(running.wait("c"))
        await running.service.close_io(api.CloseIORequest(id="c", stdin=True))


@in_clean_process
async def test_calls_that_make_no_sense_for_a_guest(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace))
        service = running.service
        unimplemented = UnimplementedError, Status.UNIMPLEMENTED
        await refused(
            service.exec(api.ExecProcessRequest(id="c", exec_id="e")), *unimplemented, "cannot exec"
        )
        await refused(
            service.resize_pty(api.ResizePtyRequest(id="c")), *unimplemented, "no terminal"
        )
        await refused(
            service.checkpoint(api.CheckpointTaskRequest(id="c")), *unimplemented, "checkpoint"
        )
        assert (await running.state("c")).status == types.RUNNING


@pytest.mark.parametrize("method", ["start", "wait", "kill", "delete", "state", "close_io"])
@in_clean_process
async def test_exec_is_not_found(tmp_path: Path, namespace: str, method: str) -> None:
    requests: dict[str, Any] = {
        "start": api.StartRequest,
        "wait": api.WaitRequest,
        "kill": api.KillRequest,
        "delete": api.DeleteRequest,
        "state": api.StateRequest,
        "close_io": api.CloseIORequest,
    }
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace))
        request = requests[method](id="c", exec_id="e")
        await refused(
            getattr(running.service, method)(request), NotFoundError, Status.NOT_FOUND, "exec 'e'"
        )
        assert (await running.state("c")).status == types.RUNNING


@in_clean_process
async def test_unknown_task_is_not_found_by_any_call(namespace: str) -> None:
    async with running_service(namespace) as running:
        service = running.service
        calls = [
            service.start(api.StartRequest(id="x")),
            service.wait(api.WaitRequest(id="x")),
            service.kill(api.KillRequest(id="x", signal=9)),
            service.kill(api.KillRequest(id="x", signal=9, all=True)),
            service.delete(api.DeleteRequest(id="x")),
            service.state(api.StateRequest(id="x")),
            service.pids(api.PidsRequest(id="x")),
            service.stats(api.StatsRequest(id="x")),
            service.connect(api.ConnectRequest(id="x")),
            service.pause(api.PauseRequest(id="x")),
            service.resume(api.ResumeRequest(id="x")),
            service.update(api.UpdateTaskRequest(id="x")),
            service.close_io(api.CloseIORequest(id="x")),
            service.resize_pty(api.ResizePtyRequest(id="x")),
            service.exec(api.ExecProcessRequest(id="x", exec_id="e")),
            service.checkpoint(api.CheckpointTaskRequest(id="x")),
        ]
        for call in calls:
            await refused(call, NotFoundError, Status.NOT_FOUND, "task 'x' does not exist")


# Shutdown


@in_clean_process
async def test_shutdown_waits_for_the_last_task(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        shutdown = api.ShutdownRequest(id="c", now=True)
        await running.create(builder(tmp_path, namespace))
        await running.service.shutdown(shutdown)
        assert not running.shut_down.is_set()
        await running.delete("c")
        await running.service.shutdown(shutdown)
        assert running.shut_down.is_set()


@in_clean_process
async def test_shutdown_of_an_unused_shim(namespace: str) -> None:
    async with running_service(namespace) as running:
        await running.service.shutdown(api.ShutdownRequest(id="c"))
        assert running.shut_down.is_set()
        assert not running.service.was_used


# Create


@in_clean_process
async def test_concurrent_creates_of_one_id(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace)
        answers = await soon(
            asyncio.gather(*(running.create(bundle) for _ in range(5)), return_exceptions=True)
        )
        kinds = [type(answer) for answer in answers]
        assert kinds == [int, *[AlreadyExistsError] * 4]
        await running.start("c")
        assert running.publisher.topics == LIFE[:2]


@in_clean_process
async def test_many_tasks_at_once(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundles = [
            builder(tmp_path, namespace, f"c{n}", env={"STUB_EXIT": str(n)}) for n in range(8)
        ]
        await soon(asyncio.gather(*(running.run(bundle) for bundle in bundles)))
        codes = await soon(asyncio.gather(*(running.wait(bundle.task_id) for bundle in bundles)))
        assert codes == list(range(8))
        await soon(asyncio.gather(*(running.delete(bundle.task_id) for bundle in bundles)))
        for n in range(8):
            mine = [
                topic
                for topic, event in running.publisher.published
                if getattr(event, "container_id", None) == f"c{n}"
            ]
            assert mine == LIFE


@pytest.mark.parametrize(
    ("fields", "error", "status", "text"),
    [
        pytest.param({"terminal": True}, ShimError, 3, "no terminal", id="terminal"),
        pytest.param({"checkpoint": "/c"}, UnimplementedError, 12, "restore", id="checkpoint"),
        pytest.param({"stdout": "/missing/fifo"}, ShimError, 5, "does not exist", id="fifo"),
        pytest.param({"stdout": "https://x/y"}, ShimError, 3, "scheme 'https'", id="scheme"),
        pytest.param({"stdout": "binary:///missing"}, ShimError, 5, "'/missing'", id="logger"),
    ],
)
@in_clean_process
async def test_create_with_bad_request(
    tmp_path: Path,
    namespace: str,
    fields: dict[str, Any],
    error: type[ShimError],
    status: int,
    text: str,
) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace)
        await refused(running.create(bundle, **fields), error, Status(status), text)
        assert not cgroup_of(bundle).exists()
        await refused(running.state("c"), NotFoundError, Status.NOT_FOUND, "task 'c'")
        assert running.publisher.topics == []


MISSING_BIND = {"destination": "/data", "type": "bind", "source": "/missing", "options": ["rbind"]}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        pytest.param({"mounts": [MISSING_BIND]}, "/missing", id="bind-source"),
        pytest.param(
            {"mounts": [{"destination": "/data", "type": "nofs", "source": "x"}]},
            'mount "/data"',
            id="file-system",
        ),
        pytest.param({"namespaces": {"mount": None, "network": "/missing/ns"}}, "/missing/ns"),
        pytest.param({"namespaces": {"mount": None, "pid": "/dev/null"}}, "/dev/null"),
        pytest.param({"cwd": "/file", "files": {"file": ""}}, "/file", id="cwd"),
        pytest.param({"changes": {"root": {"path": "gone"}}}, "gone", id="rootfs"),
        pytest.param({"env": {"STUB_CRASH": "prepare", "STUB_TEXT": "boom"}}, "boom", id="engine"),
        pytest.param({"env": {"STUB_DIE": "prepare"}}, "ended before it said why", id="death"),
    ],
)
@in_clean_process
async def test_failed_create_leaves_nothing(
    tmp_path: Path, namespace: str, changes: dict[str, Any], text: str
) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace, overlay="changes" not in changes, **changes)
        with pytest.raises(ShimError) as caught:
            await soon(running.create(bundle))
        assert text in str(caught.value), caught.value
        assert not cgroup_of(bundle).exists()
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
        await refused(running.state("c"), NotFoundError, Status.NOT_FOUND, "task 'c'")
        assert running.publisher.topics == []
        # The id is free again.
        await running.run(builder(tmp_path, namespace, env={"STUB_EXIT": "0"}))
        await soon(running.wait("c"))


@in_clean_process
async def test_create_with_a_bad_overlay_leaves_nothing(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace)
        bundle.write()
        request = api.CreateTaskRequest(
            id="c",
            bundle=str(bundle.path),
            rootfs=[types_pb2.Mount(type="overlay", source="o", options=["lowerdir=/missing"])],
        )
        with pytest.raises(ShimError, match=r'mount rootfs \(overlay "o"\)'):
            await soon(running.service.create(request))
        assert not cgroup_of(bundle).exists()


@in_clean_process
async def test_failing_creates_at_the_same_time_all_say_why(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundles = [builder(tmp_path, namespace, f"c{n}", mounts=[MISSING_BIND]) for n in range(12)]
        answers = await soon(
            asyncio.gather(*(running.create(b) for b in bundles), return_exceptions=True)
        )
        assert all("/missing" in str(answer) for answer in answers), answers
        assert not any(cgroup_of(b).exists() for b in bundles)


@in_clean_process
async def test_create_without_config(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        request = api.CreateTaskRequest(id="c", bundle=str(tmp_path / "none"))
        text = "config.json: No such file or directory"
        await refused(running.service.create(request), BundleError, Status.INVALID_ARGUMENT, text)


# Start that fails


@pytest.mark.parametrize(
    ("env", "status", "text", "code"),
    [
        pytest.param({"STUB_FAIL": "prepare"}, Status.UNKNOWN, "no app", 70, id="prepare"),
        pytest.param({"STUB_FAIL": "serve"}, Status.UNKNOWN, "no app", 70, id="serve"),
        pytest.param({"STUB_CRASH": "serve"}, Status.UNKNOWN, "no app", 70, id="crash"),
        pytest.param(
            {"STUB_DIE": "serve"},
            Status.FAILED_PRECONDITION,
            "the container ended with status 9 before it was ready",
            9,
            id="death",
        ),
    ],
)
@in_clean_process
async def test_failed_start(
    tmp_path: Path, namespace: str, env: dict[str, str], status: Status, text: str, code: int
) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace, env={**env, "STUB_TEXT": "no app"})
        await running.create(bundle, stderr=f"file://{tmp_path}/stderr")
        waiting = asyncio.create_task(running.wait("c"))
        await refused(running.start("c"), ShimError, status, text)
        assert await soon(waiting) == code
        assert (await running.state("c")).status == types.STOPPED
        assert (await running.delete("c")).exit_status == code
        assert running.publisher.topics == ["/tasks/create", "/tasks/exit", "/tasks/delete"]
        if "STUB_DIE" not in env:
            assert "no app" in (tmp_path / "stderr").read_text()


@in_clean_process
async def test_engine_that_crashes_while_serving(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace, env={"STUB_CRASH": "ready", "STUB_TEXT": "boom"})
        await running.run(bundle, stderr=f"file://{tmp_path}/stderr")
        assert await soon(running.wait("c")) == 70
        log = (tmp_path / "stderr").read_text()
        assert "RuntimeError: boom" in log


@in_clean_process
async def test_kill_ends_a_start_that_hangs(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        await running.create(builder(tmp_path, namespace, env={"STUB_HANG": "serve"}))
        starting = asyncio.create_task(running.start("c"))
        await asyncio.sleep(0)
        assert (await soon(running.state("c"))).status == types.CREATED
        await running.kill("c")
        assert await soon(running.wait("c")) == 137
        text = "ended with status 137 before it was ready"
        await refused(starting, FailedPreconditionError, Status.FAILED_PRECONDITION, text)


@in_clean_process
async def test_other_tasks_are_served_while_one_is_being_created(
    tmp_path: Path, namespace: str
) -> None:
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace, "quick"))
        slow = builder(tmp_path, namespace, "slow", env={"STUB_HANG": "prepare"})
        creating = asyncio.create_task(running.create(slow))
        # Nothing is published before a task is made; what its init is stands in the bundle.
        while (record := InitRecord.load(slow.path)) is None:  # noqa: ASYNC110 - a file appears
            await asyncio.sleep(0)
        assert (await soon(running.state("quick"))).status == types.RUNNING
        os.kill(record.pid, signal.SIGKILL)
        await refused(creating, ShimError, Status.UNKNOWN, "ended before it said why")


@in_clean_process
async def test_container_deleted_behind_our_back_is_forgotten(
    tmp_path: Path, namespace: str
) -> None:
    """containerd ran ``delete`` and removed the bundle: the shim ends by itself."""
    service.ABANDONED_SECONDS = 0.01
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace)
        await running.run(bundle)
        shutil.rmtree(bundle.path)
        assert not running.shut_down.is_set()
        await running.kill("c")
        await soon(running.shut_down.wait())
        await refused(running.state("c"), NotFoundError, Status.NOT_FOUND, "task 'c'")
