"""Ordinary Linux containers under the shim: what runc runs, and containerd sees of it."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import tarfile
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import DEADLINE, App, Node, end_process, eventually
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD
from containerd_shimkit.testing.leftovers import cgroup_directories, mount_points

pytestmark = [pytest.mark.root, pytest.mark.containerd]

BUSYBOX = Path("/bin/busybox")
GUESTS = Path(__file__).parents[1] / "guests"
ADDRESS = ("127.0.0.1", 1)  # nobody listens: the shim's setting is of no use to a program
APPLETS = ("cat", "echo", "kill", "ls", "sh", "sleep", "stty", "true")
MANIFEST = """\
spin_manifest_version = "1"
name = "mixed"
version = "1.0.0"
trigger = { type = "http", base = "/" }

[[component]]
id = "probe"
source = "probe.wasm"
[component.trigger]
route = "/..."
"""
SCRIPT = '#!/bin/busybox sh\necho "script $0 $*"\n'
# Signals that process 1 does not handle are lost, so it has to have handlers.
WAIT = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"


class Linux:
    """A node, and an image with busybox, a script and a wasm app."""

    def __init__(self, node: Node) -> None:
        self.node = node
        files = [
            ImageFile("bin/busybox", BUSYBOX.read_bytes(), 0o755),
            *(ImageFile(f"bin/{a}", kind=tarfile.SYMTYPE, link="busybox") for a in APPLETS),
            ImageFile("script", SCRIPT.encode(), 0o755),
            ImageFile("plain", SCRIPT.encode(), 0o644),
            ImageFile("opt/tools/hidden", SCRIPT.encode(), 0o755),
            ImageFile("data/file", b"data"),
            ImageFile("spin.toml", MANIFEST.encode()),
            ImageFile("probe.wasm", (GUESTS / "probe.wasm").read_bytes(), 0o755),
        ]
        self.image = node.image(files)

    def command(self, task_id: str, *command: str, options: Sequence[str] = ()) -> list[str]:
        return [*self.node.run_command(self.image, task_id, ADDRESS, *options), *command]

    def run(
        self,
        *command: str,
        options: Sequence[str] = (),
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a container to its end, attached to it."""
        arguments = self.command(self.node.new_id(), *command, options=["--rm", *options])
        return self.node.daemon.ctr(*arguments, check=False, input=input, timeout=DEADLINE)

    def sh(
        self, script: str, *, options: Sequence[str] = (), input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.run("/bin/sh", "-c", script, options=options, input=input)

    def start(self, *command: str, options: Sequence[str] = ("--null-io",)) -> App:
        """Run a container in the background."""
        task_id = self.node.new_id()
        self.node.daemon.ctr(*self.command(task_id, *command, options=["-d", *options]))
        return self.node.adopt(task_id, ADDRESS)

    def ended(self, *command: str, options: Sequence[str] = ("--null-io",)) -> str:
        """Run a container that ends by itself; return its id once it has."""
        task_id = self.node.new_id()
        self.node.daemon.ctr(*self.command(task_id, *command, options=["-d", *options]))
        eventually(lambda: self.node.task(task_id)[1] == "STOPPED", f"{task_id} has ended")
        return task_id

    def wait(self) -> App:
        """A container that ends with 7 at SIGTERM."""
        log = self.node.directory / "ready"
        log.unlink(missing_ok=True)
        mount = f"type=bind,src={self.node.directory},dst=/host,options=rbind:rw"
        app = self.start(
            "/bin/sh", "-c", f"{{ {WAIT}; }} >/host/ready", options=["--null-io", "--mount", mount]
        )
        eventually(lambda: log.exists() and log.read_text() == "ready\n", "the handler is set")
        return app

    def exec(
        self,
        app: App | str,
        *command: str,
        options: Sequence[str] = (),
        input: str | None = None,
        exec_id: str = "e1",
    ) -> subprocess.CompletedProcess[str]:
        """Run a process in a container to its end, attached to it."""
        task_id = app if isinstance(app, str) else app.id
        return self.node.daemon.ctr(
            *("task", "exec", "--exec-id", exec_id, *options, task_id, *command),
            check=False,
            input=input,
            timeout=DEADLINE,
        )


class Terminal:
    """A ``ctr`` that has a terminal of ours."""

    def __init__(self, node: Node, *arguments: str) -> None:
        self.master, slave = os.openpty()
        self.output = ""
        self.resize(100, 40)
        try:
            self.process = node.daemon.popen_ctr(
                *arguments, stdin=slave, stdout=slave, stderr=slave
            )
        finally:
            os.close(slave)

    def resize(self, width: int, height: int) -> None:
        size = struct.pack("HHHH", height, width, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def write(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str) -> None:
        """Return when ``text`` has appeared."""
        deadline = time.monotonic() + DEADLINE
        while text not in self.output:
            assert self._read(deadline), f"no {text!r} in {self.output!r}"

    def end(self) -> int:
        """Read to the end; return the exit code."""
        deadline = time.monotonic() + DEADLINE
        while self._read(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        left = max(0.0, deadline - time.monotonic())
        if not select.select([self.master], [], [], left)[0]:
            return False
        try:
            data = os.read(self.master, 4096)
        except OSError:  # EIO: ctr has closed its side
            return False
        self.output += data.decode(errors="replace")
        return True

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        os.close(self.master)


@contextmanager
def terminal(node: Node, *arguments: str) -> Iterator[Terminal]:
    opened = Terminal(node, *arguments)
    try:
        yield opened
    finally:
        opened.close()


def warm(node: Node) -> Linux:
    """Return the node's Linux; runc has made the cgroups above those of its containers."""
    if not BUSYBOX.exists():
        pytest.skip(f"needs {BUSYBOX}: apt-get install busybox-static")
    linux = Linux(node)
    assert linux.run("/bin/true").returncode == 0
    return linux


@pytest.fixture(scope="module")
def warm_linux(session_node: Node) -> Linux:
    return warm(session_node)


@pytest.fixture
def linux(warm_linux: Linux) -> Iterator[Linux]:
    """What a test starts must be gone at its end."""
    with warm_linux.node.leaving_nothing():
        yield warm_linux


@pytest.fixture
def own_linux(own_node: Node) -> Iterator[Linux]:
    """On a containerd for tests that restart it."""
    found = warm(own_node)
    with own_node.leaving_nothing():
        yield found
    # runc makes a cgroup for the namespace in more hierarchies than the shim, and leaves it.
    for cgroup in Path("/sys/fs/cgroup").glob(f"*/{own_node.daemon.namespace}"):
        with suppress(OSError):
            cgroup.rmdir()


# A program and its streams


def test_program_runs(linux: Linux) -> None:
    result = linux.run("/bin/busybox", "echo", "hello")
    assert (result.returncode, result.stdout, result.stderr) == (0, "hello\n", "")


def test_link_to_a_program_runs(linux: Linux) -> None:
    assert linux.run("/bin/echo", "hello").stdout == "hello\n"


def test_script_runs(linux: Linux) -> None:
    assert linux.run("/script", "a", "b").stdout == "script /script a b\n"


def test_name_is_looked_up_along_path(linux: Linux) -> None:
    result = linux.run("hidden", options=["--env", "PATH=/bin:/opt/tools"])
    assert result.stdout == "script /opt/tools/hidden \n", result.stderr


def test_relative_command_is_looked_up_from_the_working_directory(linux: Linux) -> None:
    result = linux.run("./hidden", options=["--cwd", "/opt/tools"])
    assert result.stdout == "script ./hidden \n", result.stderr


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code(linux: Linux, code: int) -> None:
    assert linux.sh(f"exit {code}").returncode == code


def test_end_by_a_signal_is_128_and_its_number(linux: Linux) -> None:
    app = linux.start("/bin/sleep", "600")
    assert app.stop("SIGKILL") == 137


def test_stderr_is_apart_from_stdout(linux: Linux) -> None:
    result = linux.sh("echo out; echo err >&2; exit 3")
    assert (result.returncode, result.stdout, result.stderr) == (3, "out\n", "err\n")


def test_stdin_is_passed_on_and_ends(linux: Linux) -> None:
    text = "".join(f"line {number}\n" for number in range(20_000))
    result = linux.run("/bin/cat", input=text)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == text


def test_without_input_it_ends_at_once(linux: Linux) -> None:
    """As a detached container has it."""
    assert linux.node.delete_task(linux.ended("/bin/cat")) == 0


def test_output_larger_than_a_pipe_arrives_whole(linux: Linux) -> None:
    result = linux.sh("i=0; while [ $i -lt 30000 ]; do echo $i; i=$((i+1)); done")
    assert result.stdout == "".join(f"{number}\n" for number in range(30_000))


def test_output_of_short_lived_containers_is_never_lost(linux: Linux) -> None:
    for turn in range(20):
        result = linux.run("/bin/echo", f"turn {turn}")
        assert (result.returncode, result.stdout) == (0, f"turn {turn}\n"), result.stderr


def test_output_that_nobody_reads_does_not_block_the_start(linux: Linux) -> None:
    """The FIFOs have no reader once ctr is gone, and hold 64 KiB."""
    app = linux.start("/bin/sh", "-c", "while :; do echo 0123456789; done", options=[])
    assert app.status == "RUNNING"
    assert app.stop("SIGKILL") == 137


def test_log_file_has_both_streams(linux: Linux) -> None:
    """--log-uri file:///…: containerd opens nothing, the shim does."""
    log = linux.node.directory / "linux.log"
    log.unlink(missing_ok=True)
    options = ["--log-uri", f"file://{log}"]
    task_id = linux.ended("/bin/sh", "-c", "echo out; echo err >&2; exit 6", options=options)
    assert linux.node.delete_task(task_id) == 6
    assert log.read_text() == "out\nerr\n"


# What is a program


@pytest.mark.parametrize("command", ["/", "/bin", "/plain", "/data/file", "/missing", "missing"])
def test_what_is_no_program_goes_to_the_engine(linux: Linux, command: str) -> None:
    app = linux_app(linux, command)
    assert "engine" in process_title(app), process_title(app)
    assert app.stop() == 0


def test_wasm_as_the_command_goes_to_the_engine(linux: Linux) -> None:
    app = linux_app(linux, "/probe.wasm")
    assert "engine" in process_title(app)
    assert app.stop() == 0


def linux_app(linux: Linux, command: str) -> App:
    task_id, address = linux.node.new_id(), ("127.0.0.1", 0)
    run = linux.node.run_command(linux.image, task_id, address, "-d", "--null-io")
    linux.node.daemon.ctr(*run, command)
    return linux.node.adopt(task_id, address)


def process_title(app: App) -> str:
    return Path(f"/proc/{app.pid}/cmdline").read_text()


def test_guest_and_program_side_by_side(linux: Linux) -> None:
    app = linux.node.run(linux.image)
    sidecar = linux.start("/bin/sleep", "600")
    assert app.get("/status?code=204").status == 204
    assert linux.run("/bin/echo", "beside").stdout == "beside\n"
    assert sidecar.stop("SIGKILL") == 137
    assert app.get("/status?code=204").status == 204
    assert app.stop() == 0


def test_signals_are_as_a_program_expects_them(linux: Linux) -> None:
    """The shim ignores SIGPIPE, and runc some more; without it `yes | head` would never end."""
    lines = linux.run("/bin/cat", "/proc/self/status").stdout.splitlines()
    signals = {
        name: int(value, 16)
        for name, value in (x.split(":") for x in lines if x[:3] == "Sig" and x[3] != "Q")
    }
    assert signals["SigBlk"] == 0
    assert not signals["SigIgn"] & 1 << signal.SIGPIPE - 1


def test_no_descriptor_of_the_shim_is_passed_on(linux: Linux) -> None:
    descriptors = linux.run("/bin/ls", "/proc/self/fd").stdout.split()
    assert descriptors == ["0", "1", "2", "3"]  # the last is the directory


# Looking at it and changing it


def test_task_ps_shows_every_process(linux: Linux) -> None:
    app = linux.start("/bin/sh", "-c", "sleep 600 & sleep 601 & wait")
    assert app.pid in eventually(lambda: pids_of(app, 3), "three processes")


def pids_of(app: App, count: int) -> list[int]:
    """Return the pids of a task once there are so many."""
    lines = app.node.daemon.ctr("task", "ps", app.id).stdout.splitlines()[1:]
    pids = [int(line.split()[0]) for line in lines]
    return pids if len(pids) == count else []


def test_pause_and_resume(linux: Linux) -> None:
    app = linux.wait()
    linux.node.daemon.ctr("task", "pause", app.id)
    assert app.status == "PAUSED"
    app.kill("SIGTERM")
    linux.node.daemon.ctr("task", "resume", app.id)
    app.wait()
    assert app.delete() == 7


def test_paused_container_can_be_killed(linux: Linux) -> None:
    app = linux.start("/bin/sleep", "600")
    linux.node.daemon.ctr("task", "pause", app.id)
    assert app.delete("-f") == 137


def test_sigterm_is_for_the_program(linux: Linux) -> None:
    assert linux.wait().stop("SIGTERM") == 7


def test_kill_of_all_processes(linux: Linux) -> None:
    app = linux.start("/bin/sh", "-c", "sleep 600 & sleep 601 & wait")
    linux.node.daemon.ctr("task", "kill", "-a", "-s", "SIGKILL", app.id)
    app.wait()
    assert app.delete() == 137


def test_kill_of_an_ended_task_is_not_found(linux: Linux) -> None:
    task_id = linux.ended("/bin/true")
    result = linux.node.daemon.ctr("task", "kill", task_id, check=False)
    assert "process already finished" in result.stderr or "not found" in result.stderr


def test_metrics(linux: Linux) -> None:
    app = linux.start("/bin/sleep", "600")
    lines = linux.node.daemon.ctr("task", "metrics", app.id).stdout.splitlines()
    memory = [line.split() for line in lines if line.startswith("memory.usage")]
    assert memory, lines
    assert int(memory[0][1]) > 0


def test_created_container_can_be_deleted(linux: Linux) -> None:
    """A task that never ran: runc has made everything and waits."""
    task_id = linux.node.new_id()
    _, *command = linux.command(task_id, "/bin/sleep", "600")
    linux.node.daemon.ctr("container", "create", *command)
    linux.node.daemon.ctr("task", "start", "-d", "--null-io", task_id)
    assert linux.node.delete_task(task_id, "-f") == 137


def test_reason_of_runc_is_told(linux: Linux) -> None:
    result = linux.run("/bin/true", options=["--cwd", "/data/file"])
    assert result.returncode != 0
    assert "data/file" in result.stderr
    assert "not a directory" in result.stderr


# Added processes


def test_exec(linux: Linux) -> None:
    app = linux.start("/bin/sleep", "600")
    result = linux.exec(app, "/bin/sh", "-c", "echo out; echo err >&2; exit 5")
    assert (result.returncode, result.stdout, result.stderr) == (5, "out\n", "err\n")
    assert app.status == "RUNNING"


def test_exec_reads_its_input_to_the_end(linux: Linux) -> None:
    app = linux.start("/bin/sleep", "600")
    text = "".join(f"line {number}\n" for number in range(20_000))
    result = linux.exec(app, "cat", input=text)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == text


def test_exec_sees_the_container(linux: Linux) -> None:
    app = linux.start("/bin/sleep", "600")
    assert linux.exec(app, "cat", "/proc/1/cmdline").stdout == "/bin/sleep\x00600\x00"


def test_exec_id_can_be_used_again(linux: Linux) -> None:
    """ctr deletes the process when it has ended; nothing of it stays in the bundle."""
    app = linux.start("/bin/sleep", "600")
    before = sorted(path.name for path in app.bundle.iterdir())
    for turn in range(3):
        assert linux.exec(app, "echo", str(turn)).stdout == f"{turn}\n"
    left = {path.name for path in app.bundle.iterdir()} - {*before, "runc.json"}
    assert not left


def test_exec_of_a_missing_program_says_so(linux: Linux) -> None:
    app = linux.start("/bin/sleep", "600")
    result = linux.exec(app, "nothing-like-this")
    assert result.returncode != 0
    assert "nothing-like-this" in result.stderr
    assert "not found" in result.stderr
    assert linux.exec(app, "echo", "next").stdout == "next\n"


def test_exec_id_cannot_be_taken_twice(linux: Linux) -> None:
    app = linux.start("/bin/sleep", "600")
    assert linux.exec(app, "sleep", "600", options=["--detach"]).returncode == 0
    result = linux.exec(app, "true")
    assert result.returncode != 0
    assert "exists" in result.stderr


def test_exec_ends_with_its_container(linux: Linux) -> None:
    app = linux.start("/bin/sleep", "600")
    command = linux.node.daemon.popen_ctr(
        "task", "exec", "--exec-id", "e1", app.id, "/bin/sh", "-c", "echo up; exec sleep 600"
    )
    with command:
        assert command.stdout is not None
        assert command.stdout.readline() == "up\n"
        assert app.stop("SIGKILL") == 137
        assert command.wait(DEADLINE) == 137


def test_exec_in_an_ended_container_is_refused(linux: Linux) -> None:
    result = linux.exec(linux.ended("/bin/true"), "true")
    assert result.returncode != 0
    assert "cannot exec in a task in stopped state" in result.stderr


def test_several_execs_at_once(linux: Linux) -> None:
    app = linux.start("/bin/sleep", "600")
    running = [
        linux.node.daemon.popen_ctr("task", "exec", "--exec-id", f"e{n}", app.id, "echo", f"{n}")
        for n in range(6)
    ]
    assert [ctr.communicate(timeout=DEADLINE)[0] for ctr in running] == [f"{n}\n" for n in range(6)]


# Terminals


def test_run_in_a_terminal(linux: Linux) -> None:
    task_id = linux.node.new_id()
    command = linux.command(task_id, "/bin/sh", options=["--rm", "-t"])
    with terminal(linux.node, *command) as screen:
        screen.write("echo $((6 * 7))\n")
        screen.expect("42")
        screen.write("test -t 0 && test -t 1 && exit 9\n")
        assert screen.end() == 9


def test_terminal_has_the_size_of_ours(linux: Linux) -> None:
    script = (
        'until [ "$(stty size)" = "40 100" ]; do sleep 0.02; done; echo first;'
        'until [ "$(stty size)" = "50 120" ]; do sleep 0.02; done; echo second'
    )
    task_id = linux.node.new_id()
    command = linux.command(task_id, "/bin/sh", "-c", script, options=["--rm", "-t"])
    with terminal(linux.node, *command) as screen:
        screen.expect("first")
        screen.resize(120, 50)
        screen.process.send_signal(signal.SIGWINCH)
        screen.expect("second")
        assert screen.end() == 0


def test_exec_in_a_terminal(linux: Linux) -> None:
    app = linux.start("/bin/sleep", "600")
    command = ["task", "exec", "-t", "--exec-id", "e1", app.id, "/bin/sh"]
    with terminal(linux.node, *command) as screen:
        screen.write("echo $((6 * 7))\n")
        screen.expect("42")
        screen.write("test -t 0 && test -t 1 && exit 9\n")
        assert screen.end() == 9
    assert app.status == "RUNNING"


def test_terminal_output_of_a_short_lived_program_is_not_lost(linux: Linux) -> None:
    for turn in range(5):
        command = linux.command(
            linux.node.new_id(), "/bin/echo", f"turn-{turn}", options=["--rm", "-t"]
        )
        with terminal(linux.node, *command) as screen:
            assert screen.end() == 0
            assert screen.output.split() == [f"turn-{turn}"]


# Events


def test_events_in_order(linux: Linux) -> None:
    node, output = linux.node, linux.node.directory / "events-linux"
    with output.open("w") as file, node.daemon.popen_ctr("events", stdout=file) as ctr:
        try:

            def is_seen() -> bool:
                node.daemon.ctr("namespaces", "label", node.daemon.namespace, "seen=1")
                return "/namespaces/update" in output.read_text()

            eventually(is_seen, "ctr events has subscribed")
            app = linux.start("/bin/sleep", "600")
            assert linux.exec(app, "/bin/sh", "-c", "exit 4").returncode == 4
            app.stop("SIGKILL")
            eventually(lambda: f'/containers/delete {{"id":"{app.id}"' in output.read_text())
        finally:
            ctr.kill()
    events = [line.split(" ", 6)[-2:] for line in output.read_text().splitlines()]
    tasks = [
        (topic.removeprefix("/tasks/"), json.loads(data))
        for topic, data in events
        if topic.startswith("/tasks/") and f'"{app.id}"' in data
    ]
    topics = ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"]
    assert [topic for topic, _ in tasks] == topics
    exits = [(data["id"], data["exit_status"]) for topic, data in tasks if topic == "exit"]
    assert exits == [("e1", 4), (app.id, 137)]


# Parts that end in the middle


@pytest.mark.parametrize("end", ["terminate", "kill"])
@ON_EACH_CONTAINERD
def test_container_survives_a_restart_of_containerd(own_linux: Linux, end: str) -> None:
    app = own_linux.wait()
    assert own_linux.exec(app, "echo", "before").stdout == "before\n"
    getattr(own_linux.node.daemon, end)()
    own_linux.node.daemon.start()
    assert app.status == "RUNNING"
    assert own_linux.exec(app, "echo", "after").stdout == "after\n"
    assert app.stop("SIGTERM") == 7


@ON_EACH_CONTAINERD
def test_exit_while_containerd_is_down_is_seen_after(own_linux: Linux) -> None:
    app = own_linux.wait()
    own_linux.node.daemon.terminate()
    end_process(app.pid, signal.SIGTERM)
    own_linux.node.daemon.start()
    eventually(lambda: app.status == "STOPPED", "it is stopped")
    assert app.delete() == 7


def test_nothing_is_left_of_a_killed_shim(linux: Linux) -> None:
    """containerd's `delete` ends the processes and removes runc's state, cgroup and mount."""
    app = linux.start("/bin/sh", "-c", "sleep 600 & sleep 601 & wait")
    bundle, node = app.bundle, linux.node
    processes = eventually(lambda: pids_of(app, 3), "three processes")
    assert (node.daemon.runc_dir / app.id).exists()
    assert any(str(bundle / "rootfs") in mount for mount in mount_points())
    end_process(app.shim_pid, signal.SIGKILL)
    app.wait_for_process()

    def is_stopped() -> bool:
        tasks = node.daemon.ctr("task", "ls").stdout
        return app.id not in tasks or "STOPPED" in tasks

    eventually(is_stopped, "containerd knows")
    assert node.delete_task(app.id) in (137, None)

    def is_gone() -> bool:
        assert not (node.daemon.runc_dir / app.id).exists()
        assert not [mount for mount in mount_points() if str(bundle) in mount]
        assert not [cgroup for cgroup in cgroup_directories() if cgroup.name == app.id]
        assert not [process for process in processes if Path(f"/proc/{process}").exists()]
        return True

    eventually(is_gone, "everything is gone")  # containerd says so before its `delete` has ended


def test_shim_killed_while_paused(linux: Linux) -> None:
    app = linux.start("/bin/sleep", "600")
    linux.node.daemon.ctr("task", "pause", app.id)
    end_process(app.shim_pid, signal.SIGKILL)
    app.wait_for_process()
