"""A container from Create to Delete, as ``ctr`` sees it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.testing.apps import App, Node, eventually
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD

pytestmark = [pytest.mark.root, pytest.mark.containerd]

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGKILL}


# The end


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP"])
def test_stop_signal_ends_with_0(probe: App, number: str) -> None:
    assert probe.get("/status?code=204").status == 204
    assert probe.stop(number) == 0


@ON_EACH_CONTAINERD
def test_sigkill_ends_with_137(probe: App) -> None:
    assert probe.stop("SIGKILL") == 137


@ON_EACH_CONTAINERD
def test_kill_of_all_processes(node: Node, probe: App) -> None:
    node.daemon.ctr("task", "kill", "-a", "-s", "SIGKILL", probe.id)
    probe.wait()
    assert probe.delete() == 137


def test_request_in_flight_ends_while_new_ones_are_refused(probe: App) -> None:
    connection = probe.connect()
    connection.request("GET", "/sleep?ms=1500")
    wait_until_in_flight(probe)
    probe.kill("SIGTERM")
    eventually(lambda: not accepts(probe.address), "nobody listens")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"1500\n")
    connection.close()
    probe.wait()
    assert probe.delete() == 0


def test_idle_connection_does_not_hold_the_end_up(probe: App) -> None:
    connection = probe.connect()
    connection.request("GET", "/status?code=204")
    assert connection.getresponse().read() == b""
    assert probe.stop() == 0
    connection.close()


def test_drain_ends_at_its_limit(node: Node, probe_image: str) -> None:
    """Whoever is still served then is cut off."""
    app = node.run(probe_image, env={"SPIN_SHUTDOWN_TIMEOUT_SECONDS": "0.3"})
    connection = app.connect()
    connection.request("GET", "/sleep?ms=60000")
    wait_until_in_flight(app)
    assert app.stop() == 0
    response = connection.getresponse()
    assert (response.status, response.read()) == (503, b"the app stops\n")
    connection.close()
    assert "GET /sleep is cut off: the app stops" in app.log
    assert "Traceback" not in app.log


def test_second_signal_ends_at_once(probe: App) -> None:
    connection = probe.connect()
    connection.request("GET", "/sleep?ms=60000")
    wait_until_in_flight(probe)
    probe.kill("SIGTERM")
    eventually(lambda: not accepts(probe.address), "nobody listens")
    assert probe.stop() == 0
    connection.close()


def accepts(address: tuple[str, int]) -> bool:
    with socket.socket() as client:
        return client.connect_ex(address) == 0


def wait_until_in_flight(app: App) -> None:
    """Return when a request sent before has been taken up: answers come in the order of arrival."""
    assert app.get("/status?code=204").status == 204


# Signals


def test_every_other_signal_is_accepted_and_ignored(probe: App) -> None:
    """As PID 1 of its namespace it is not even killed by SIGSEGV."""
    stopping = STOP_SIGNALS | {signal.SIGSTOP}
    for number in range(1, 65):
        if number not in stopping:
            probe.kill(number)
    assert probe.get("/status?code=204").status == 204
    assert probe.status == "RUNNING"
    assert probe.stop() == 0


def test_stopped_process_goes_on(probe: App) -> None:
    probe.kill("SIGSTOP")
    probe.kill("SIGCONT")
    assert probe.get("/status?code=204").status == 204


@pytest.mark.parametrize("number", ["65", "1000"])
def test_number_that_is_no_signal_is_refused(node: Node, probe: App, number: str) -> None:
    result = node.daemon.ctr("task", "kill", "-s", number, probe.id, check=False)
    assert result.returncode != 0
    assert f"signal {number} is not between 1 and 64" in result.stderr
    assert probe.status == "RUNNING"


@ON_EACH_CONTAINERD
def test_kill_of_an_ended_task_is_not_found(node: Node, probe: App) -> None:
    probe.kill("SIGTERM")
    probe.wait()
    result = node.daemon.ctr("task", "kill", probe.id, check=False)
    assert "process already finished" in result.stderr or "not found" in result.stderr


# Looking at it


@ON_EACH_CONTAINERD
def test_pids(node: Node, probe: App) -> None:
    lines = node.daemon.ctr("task", "ps", probe.id).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [str(probe.pid)]


@ON_EACH_CONTAINERD
def test_pause_and_resume(node: Node, probe: App) -> None:
    node.daemon.ctr("task", "pause", probe.id)
    assert probe.status == "PAUSED"
    with pytest.raises(TimeoutError):
        probe.get("/status?code=204", timeout=0.2)
    node.daemon.ctr("task", "resume", probe.id)
    assert probe.status == "RUNNING"
    assert probe.get("/status?code=204").status == 204
    assert probe.stop() == 0


@ON_EACH_CONTAINERD
def test_paused_container_can_be_killed(node: Node, probe: App) -> None:
    node.daemon.ctr("task", "pause", probe.id)
    assert probe.delete("-f") == 137


@ON_EACH_CONTAINERD
def test_events_in_order(node: Node, probe_image: str) -> None:
    """create, start, exit, delete, and only these; the exit code is in the last two."""
    output = node.directory / "events"
    with (
        output.open("w") as file,
        node.daemon.popen_ctr("events", stdout=file) as ctr,
    ):
        try:
            await_subscription(node, output)
            app = node.run(probe_image)
            node.daemon.ctr("task", "pause", app.id)
            node.daemon.ctr("task", "resume", app.id)
            app.stop("SIGKILL")
            eventually(lambda: f'/containers/delete {{"id":"{app.id}"' in output.read_text())
        finally:
            ctr.kill()
    tasks = task_events(output, app)
    assert [topic.removeprefix("/tasks/") for topic, _ in tasks] == [
        "create",
        "start",
        "paused",
        "resumed",
        "exit",
        "delete",
    ]
    assert {data["container_id"] for _, data in tasks} == {app.id}
    assert {data["pid"] for _, data in tasks if "pid" in data} == {app.pid}
    assert [data["exit_status"] for _, data in tasks if "exit_status" in data] == [137, 137]


@ON_EACH_CONTAINERD
def test_container_beyond_its_memory_is_killed_and_the_event_says_so(
    node: Node, probe_image: str
) -> None:
    """The guest may have as much as the container; its answer, copied once more, is too much."""
    output = node.directory / "oom-events"
    with (
        output.open("w") as file,
        node.daemon.popen_ctr("events", stdout=file) as ctr,
    ):
        try:
            await_subscription(node, output)
            app = node.run(probe_image, "--memory-limit", str(32 << 20))
            with pytest.raises(OSError):  # noqa: PT011 - reset, or closed without an answer
                app.get("/big?bytes=20000000")
            app.wait()
            assert app.delete() == 137
            eventually(lambda: "/tasks/delete" in output.read_text())
        finally:
            ctr.kill()
    topics = [topic.removeprefix("/tasks/") for topic, _ in task_events(output, app)]
    assert topics == ["create", "start", "oom", "exit", "delete"]


def task_events(output: Path, app: App) -> list[tuple[str, dict[str, Any]]]:
    """Return topic and content of what ``ctr events`` printed of a task."""
    events = [line.split(" ", 6)[-2:] for line in output.read_text().splitlines()]
    seen = [(topic, json.loads(data)) for topic, data in events if f'"{app.id}"' in data]
    return [(topic, data) for topic, data in seen if topic.startswith("/tasks/")]


def await_subscription(node: Node, output: Path) -> None:
    """Make events until the first one is seen."""

    def is_seen() -> bool:
        node.daemon.ctr("namespaces", "label", node.daemon.namespace, "seen=1")
        return "/namespaces/update" in output.read_text()

    eventually(is_seen, "ctr events has subscribed")


@ON_EACH_CONTAINERD
def test_containerd_has_nothing_to_complain_of(own_node: Node, own_image: str) -> None:
    """Not even of what it goes on without: -info, the form of the answer, a second delete."""
    app = own_node.run(own_image)
    own_node.daemon.restart()
    assert app.stop() == 0
    complaints = [
        line
        for line in own_node.daemon.log().splitlines()
        if re.search("level=(warning|error)", line)
        and re.search("shim|task|runtime info|bootstrap", line)
        and "cleaning up after shim disconnected" not in line  # 1.6, of every shim that ends
    ]
    assert complaints == []


# What is refused


@ON_EACH_CONTAINERD
def test_exec_is_refused_with_a_sentence(node: Node, probe: App) -> None:
    result = node.daemon.ctr("task", "exec", "--exec-id", "e1", probe.id, "ls", check=False)
    assert result.returncode != 0
    assert (
        "cannot exec: a WebAssembly container has one process, the engine, and no other program"
        in result.stderr
    )
    assert probe.get("/status?code=204").status == 204
    assert probe.stop() == 0


def test_terminal_is_refused_with_a_sentence(node: Node, probe_image: str) -> None:
    ours, theirs = os.openpty()
    command = node.run_command(probe_image, node.new_id(), ("127.0.0.1", 0), "--rm", "-t")
    with node.daemon.popen_ctr(*command, stdin=theirs, stdout=theirs) as ctr:
        assert "a WebAssembly container has no terminal: run it without -t" in ctr.communicate()[1]
    assert ctr.returncode != 0
    os.close(ours)
    os.close(theirs)


def test_checkpoint_is_refused_with_a_sentence(node: Node, probe: App) -> None:
    result = node.daemon.ctr("task", "checkpoint", probe.id, check=False)
    assert result.returncode != 0
    assert "cannot checkpoint" in result.stderr
    assert probe.stop() == 0


@ON_EACH_CONTAINERD
def test_delete_of_a_running_task_is_refused(node: Node, probe: App) -> None:
    result = node.daemon.ctr("task", "rm", probe.id, check=False)
    assert result.returncode != 0
    assert "must be stopped before deletion" in result.stderr
    assert probe.get("/status?code=204").status == 204


@ON_EACH_CONTAINERD
def test_forced_delete_of_a_running_task(probe: App) -> None:
    assert probe.delete("-f") == 137


@ON_EACH_CONTAINERD
def test_id_cannot_be_taken_twice(node: Node, probe: App, probe_image: str) -> None:
    command = node.run_command(probe_image, probe.id, ("127.0.0.1", 0), "-d", "--null-io")
    result = node.daemon.ctr(*command, check=False)
    assert "already exists" in result.stderr
    assert probe.get("/status?code=204").status == 204


# Several


def test_two_containers_at_once(node: Node, probe_image: str, hello_image: str) -> None:
    first, second = node.run(probe_image), node.run(hello_image)
    assert first.get("/status?code=204").status == 204
    assert second.get("/hello").text == "Hello world from Spin!"
    assert first.stop() == 0
    assert second.get("/hello").text == "Hello world from Spin!"
    assert second.stop("SIGKILL") == 137


def test_many_starts_at_once(node: Node, probe_image: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        apps = list(pool.map(lambda _: node.run(probe_image), range(8)))
    assert {app.get("/status?code=204").status for app in apps} == {204}
    assert len({app.pid for app in apps}) == 8


def test_created_container_waits_for_its_start(node: Node, probe_image: str) -> None:
    """Create prepares the app, and a task that never ran can be deleted."""
    task_id = node.new_id()
    _, *command = node.run_command(probe_image, task_id, ("127.0.0.1", 0))
    node.daemon.ctr("container", "create", *command)
    created = node.daemon.popen_ctr("task", "start", "--null-io", "-d", task_id)
    assert created.communicate(timeout=20)[1] == ""
    assert node.task(task_id)[1] == "RUNNING"
    assert node.delete_task(task_id, "-f") == 137
