"""Containers that several processes serve: how they start, stop and die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.errors import ShimError
from containerd_shimkit.testing import BundleBuilder, in_clean_process, running_service
from containerd_shimkit.workers import usable_processors

DEADLINE = 20.0
WORKERS = 3


@pytest.mark.parametrize(
    ("cpu", "available", "expected"),
    [
        (None, 8, 1),
        ({}, 8, 1),
        ({"shares": 1024}, 8, 1),
        ({"quota": -1, "period": 100_000}, 8, 1),
        ({"quota": 0}, 8, 1),
        ({"quota": 50_000, "period": 100_000}, 8, 1),
        ({"quota": 100_000, "period": 100_000}, 8, 1),
        ({"quota": 100_001, "period": 100_000}, 8, 2),
        ({"quota": 200_000}, 8, 2),
        ({"quota": 25_000, "period": 10_000}, 8, 3),
        ({"quota": 1_000_000, "period": 100_000}, 2, 2),
    ],
)
def test_processors_of_a_quota(cpu: Any, available: int, expected: int) -> None:
    resources = {} if cpu is None else {"cpu": cpu}
    assert usable_processors(resources, available) == expected


def builder(tmp_path: Path, namespace: str, **env: str) -> BundleBuilder:
    env = {"STUB_WORKERS": str(WORKERS), "STUB_CLOSED": "closed"} | env
    return BundleBuilder(tmp_path / "c", task_id="c", namespace=namespace, env=env)


def children_of(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def output(tmp_path: Path) -> dict[str, str]:
    return {"stdout": f"file://{tmp_path}/out", "stderr": f"file://{tmp_path}/err"}


async def until_delivered(pid: int) -> None:
    async with asyncio.timeout(DEADLINE):
        status = Path(f"/proc/{pid}/status")
        while re.search(r"^ShdPnd:.*[1-9a-f]", status.read_text(), re.M):  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.001)


@pytest.mark.root
@in_clean_process
async def test_start_returns_when_all_serve_and_stop_ends_all(
    tmp_path: Path, namespace: str
) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace, STUB_STDOUT="serving\n")
        pid = await running.run(bundle, **output(tmp_path))
        assert (tmp_path / "out").read_text() == "serving\n" * WORKERS
        workers = children_of(pid)
        assert len(workers) == WORKERS
        for number, worker in enumerate(workers, start=1):
            title = Path(f"/proc/{worker}/cmdline").read_bytes().rstrip(b"\0").decode()
            assert title.endswith(f" -id c worker {number}")
            assert len(list(Path(f"/proc/{worker}/task").iterdir())) == 1
        await running.kill("c", signal.SIGTERM)
        assert await asyncio.wait_for(running.wait("c"), DEADLINE) == 0
        # Once, and by whoever outlives the workers.
        assert (tmp_path / "out").read_text() == "serving\n" * WORKERS + "closed"
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.root
@in_clean_process
async def test_killed_worker_takes_the_container_down(
    tmp_path: Path, namespace: str, number: int
) -> None:
    async with running_service(namespace) as running:
        pid = await running.run(builder(tmp_path, namespace), **output(tmp_path))
        workers = children_of(pid)
        os.kill(workers[1], number)
        assert await asyncio.wait_for(running.wait("c"), DEADLINE) == 128 + number
        reason = f"worker 2 of {WORKERS} was killed by signal {number}"
        assert reason in (tmp_path / "err").read_text()
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.parametrize("code", [0, 7])
@pytest.mark.root
@in_clean_process
async def test_worker_that_ends_by_itself_ends_the_container(
    tmp_path: Path, namespace: str, code: int
) -> None:
    async with running_service(namespace) as running:
        await running.create(builder(tmp_path, namespace, STUB_EXIT=str(code)), **output(tmp_path))
        # With 7 it may end before the others serve, and then it fails the start.
        with contextlib.suppress(*(ShimError,) if code else ()):
            await running.start("c")
        assert await asyncio.wait_for(running.wait("c"), DEADLINE) == code


@pytest.mark.root
@in_clean_process
async def test_worker_that_cannot_serve_fails_the_start(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace, STUB_FAIL="serve", STUB_TEXT="the reason")
        await running.create(bundle, **output(tmp_path))
        with pytest.raises(ShimError, match="the reason"):
            await running.start("c")
        assert await asyncio.wait_for(running.wait("c"), DEADLINE) == 70
        assert "the reason" in (tmp_path / "err").read_text()


@pytest.mark.root
@in_clean_process
async def test_worker_that_dies_before_it_serves_fails_the_start(
    tmp_path: Path, namespace: str
) -> None:
    async with running_service(namespace) as running:
        await running.create(builder(tmp_path, namespace, STUB_DIE="serve"))
        with pytest.raises(ShimError):
            await running.start("c")
        assert await asyncio.wait_for(running.wait("c"), DEADLINE) == 9


@pytest.mark.root
@in_clean_process
async def test_second_signal_ends_at_once(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        # It never looks whether it is to stop.
        bundle = builder(tmp_path, namespace, STUB_HANG="ready")
        pid = await running.run(bundle)
        workers = children_of(pid)
        await running.kill("c", signal.SIGTERM)
        await until_delivered(pid)  # or the second is the same signal, still pending
        await running.kill("c", signal.SIGTERM)
        assert await asyncio.wait_for(running.wait("c"), DEADLINE) == 0
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.root
@in_clean_process
async def test_death_of_the_first_process_ends_workers_in_a_shared_pid_namespace(
    tmp_path: Path, namespace: str
) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace)
        bundle.namespaces = dict.fromkeys(("ipc", "uts", "mount", "network"))
        pid = await running.run(bundle)
        ends = [os.pidfd_open(worker) for worker in children_of(pid)]
        await running.kill("c")
        assert await asyncio.wait_for(running.wait("c"), DEADLINE) == 137
        loop = asyncio.get_running_loop()
        for end in ends:
            ended = asyncio.Event()
            loop.add_reader(end, ended.set)
            await asyncio.wait_for(ended.wait(), DEADLINE)
            loop.remove_reader(end)
            os.close(end)


@pytest.mark.root
@in_clean_process
async def test_as_many_workers_as_processes_are_allowed(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace)
        bundle.resources = {"pids": {"limit": 3}}
        pid = await running.run(bundle, **output(tmp_path))
        assert len(children_of(pid)) == 2
        log = (tmp_path / "err").read_text()
        assert re.search(r"2 of 3 workers: cannot fork", log), log
