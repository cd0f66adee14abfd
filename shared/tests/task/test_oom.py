"""Kills for want of memory: told when they happen, whether or not the container ends."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from containerd_shimkit.linux.cgroups import open_cgroup
from containerd_shimkit.testing import BundleBuilder, in_clean_process, running_service
from containerd_shimkit.testing.leftovers import open_files

pytestmark = pytest.mark.root

DEADLINE = 20.0
LIMIT = 64 << 20


def limited(tmp_path: Path, namespace: str) -> BundleBuilder:
    return BundleBuilder(
        tmp_path / "c",
        task_id="c",
        namespace=namespace,
        resources={"memory": {"limit": LIMIT, "swap": LIMIT}},
    )


def run_out_of_memory(namespace: str) -> int:
    """Let a process in the container's cgroup take more than there is; return its wait status."""
    child = os.fork()
    if child == 0:
        try:
            open_cgroup(f"/{namespace}/c", "c").add(0)
            bytearray(os.urandom(1) * (2 * LIMIT))
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


@in_clean_process
async def test_kill_is_told_while_the_container_lives(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        await running.run(limited(tmp_path, namespace))
        for count in (1, 2):
            assert os.WTERMSIG(run_out_of_memory(namespace)) == signal.SIGKILL
            await asyncio.wait_for(running.publisher.until("/tasks/oom", count), DEADLINE)
        await running.kill("c", signal.SIGTERM)
        await running.wait("c")
        await running.delete("c")
        topics = [topic.removeprefix("/tasks/") for topic in running.publisher.topics]
        assert topics == ["create", "start", "oom", "oom", "exit", "delete"]


@in_clean_process
async def test_container_without_memory_limit_can_be_watched(
    tmp_path: Path, namespace: str
) -> None:
    """And nothing of the watch is left open."""
    async with running_service(namespace) as running:
        before = open_files(os.getpid())
        await running.run(BundleBuilder(tmp_path / "c", task_id="c", namespace=namespace))
        await running.kill("c", signal.SIGKILL)
        await running.wait("c")
        await running.delete("c")
        assert open_files(os.getpid()) == before
        assert "/tasks/oom" not in running.publisher.topics
