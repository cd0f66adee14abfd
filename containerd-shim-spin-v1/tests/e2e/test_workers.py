"""An app that may use two processors, on a real containerd."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from containerd_shimkit.testing.apps import App, Node, eventually
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD

pytestmark = [pytest.mark.root, pytest.mark.containerd]

TWO_CPUS = ("--cpu-quota", "200000", "--cpu-period", "100000")


def run(node: Node, image: str, *options: str, workers: int = 2) -> tuple[App, list[int]]:
    app = node.run(image, *options, env={"SPIN_HTTP_WORKERS": str(workers)} if workers else {})
    pid = app.pid
    return app, [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def accepted(pid: int) -> int:
    """Return how many connections a worker has: sockets beside its listening and control ones."""
    return sum("socket:" in str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
@ON_EACH_CONTAINERD
def test_quota_of_two_processors_gives_two_workers(node: Node, probe_image: str) -> None:
    app, workers = run(node, probe_image, *TWO_CPUS, workers=0)
    assert len(workers) == 2
    assert app.stop() == 0


def test_no_quota_is_no_worker(node: Node, probe_image: str) -> None:
    app, workers = run(node, probe_image, workers=0)
    assert workers == []
    assert app.stop() == 0


def test_every_worker_answers(node: Node, probe_image: str) -> None:
    app, workers = run(node, probe_image)
    before = [accepted(pid) for pid in workers]
    connections = [app.connect() for _ in range(20)]
    for connection in connections:
        connection.request("GET", "/.well-known/spin/health")
    for connection in connections:
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"OK")
    shares = [accepted(pid) - n for pid, n in zip(workers, before, strict=True)]
    assert sum(shares) == 20
    for connection in connections:
        connection.close()
    assert app.stop() == 0


def test_killed_worker_ends_the_container(node: Node, probe_image: str) -> None:
    app, workers = run(node, probe_image)
    os.kill(workers[0], signal.SIGKILL)
    app.wait()
    assert "worker 1 of 2 was killed by signal 9; the others were ended" in app.log
    assert app.delete() == 137


def test_stop_drains_every_worker(node: Node, probe_image: str) -> None:
    app, workers = run(node, probe_image)
    before = [accepted(pid) for pid in workers]
    connections = [app.connect() for _ in range(8)]
    for connection in connections:
        connection.request("GET", "/sleep?ms=1000")

    def all_taken() -> bool:
        return sum(map(accepted, workers)) - sum(before) == len(connections)

    eventually(all_taken, "all requests are taken up")
    app.kill("SIGTERM")
    for connection in connections:
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"1000\n")
        connection.close()
    app.wait()
    assert app.delete() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
