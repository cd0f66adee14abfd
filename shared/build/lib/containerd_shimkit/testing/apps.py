"""Whole apps on a real containerd: images made on the fly, containers, requests, and no traces.

A ``Node`` is a containerd with one of the shims. What a test starts on it is removed at the end of
``leaving_nothing``, which then fails if anything is left on the machine. The zygote may stay: it
belongs to the node, not to a container, and has to end with its containerd.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import secrets
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from email.message import Message
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from containerd_shimkit.bootstrap import socket_path
from containerd_shimkit.oci.archive import ImageFile, write_image_archive
from containerd_shimkit.testing.containerd import Containerd
from containerd_shimkit.testing.leftovers import (
    Machine,
    Process,
    assert_nothing_left,
    find_processes,
    snapshot_machine,
)

DEADLINE = 20.0
"""For anything that has to happen; a healthy machine takes milliseconds."""

_POLL_SECONDS = 0.005
_EXIT_CODE = re.compile(r"exit with non-zero exit code (\d+)")

T = TypeVar("T")


def eventually(look: Callable[[], T], what: str = "", seconds: float = DEADLINE) -> T:
    """Return what ``look`` returns once that is true; AssertionError if it never is.

    For states that nobody announces; ``look`` may raise AssertionError or OSError until then.
    """
    deadline = time.monotonic() + seconds
    while True:
        reason: Exception | None = None
        try:
            if result := look():
                return result
        except (AssertionError, OSError) as exc:
            reason = exc
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or look}") from reason
        time.sleep(_POLL_SECONDS)


def free_address() -> tuple[str, int]:
    """Return a loopback address and port that nobody listens on.

    The address is one of 16 million: tests that run at once do not take each other's port.
    """
    host = "127." + ".".join(str(1 + secrets.randbelow(254)) for _ in range(3))
    with socket.socket() as listener:
        listener.bind((host, 0))
        return host, int(listener.getsockname()[1])


def end_process(pid: int, number: int) -> None:
    """Send a signal to a process and return when it has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        os.kill(pid, number)
        wait_for_end(descriptor)
    finally:
        os.close(descriptor)


def wait_for_end(pidfd: int, seconds: float = DEADLINE) -> None:
    """Return when the process of ``pidfd`` has ended."""
    ready, _, _ = select.select([pidfd], [], [], seconds)
    assert ready, f"a process is still there after {seconds:g} s"


@dataclass(frozen=True)
class Answer:
    """A response, read to its end."""

    status: int
    body: bytes
    headers: Message

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


@dataclass(frozen=True)
class Refusal:
    """How a container that could not be started ended."""

    error: str
    """What ``ctr run`` printed."""
    exit_code: int | None
    """None if there was no task."""
    log: str
    """The container's standard output and error."""


class App:
    """A container of a node that serves HTTP."""

    def __init__(self, node: Node, task_id: str, address: tuple[str, int], log_file: Path) -> None:
        self.node = node
        self.id = task_id
        self.address = address
        self.log_file = log_file
        self.pid = node.task(task_id)[0]
        self._pidfd = os.pidfd_open(self.pid)

    def connect(self, timeout: float = DEADLINE) -> http.client.HTTPConnection:
        """Return a connection; the caller closes it."""
        connection = http.client.HTTPConnection(*self.address, timeout=timeout)
        connection.connect()
        return connection

    def get(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        timeout: float = DEADLINE,
    ) -> Answer:
        """Make one request on a connection of its own."""
        connection = self.connect(timeout)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return Answer(response.status, response.read(), response.headers)
        finally:
            connection.close()

    @property
    def log(self) -> str:
        """What the container has written so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    @property
    def status(self) -> str:
        """``RUNNING``, ``STOPPED``, ``PAUSED``, as containerd has it."""
        return self.node.task(self.id)[1]

    @property
    def bundle(self) -> Path:
        return self.node.daemon.bundle(self.id)

    @property
    def shim_pid(self) -> int:
        """The pid of the shim: the parent of the engine."""
        (process,) = [
            p for p in find_processes([f"{self.node.daemon.runtime_dir}/"]) if p.pid == self.pid
        ]
        return process.parent

    def kill(self, number: int | str) -> None:
        self.node.daemon.ctr("task", "kill", "-s", str(number), self.id)

    def wait(self, seconds: float = DEADLINE) -> None:
        """Return when the first process has ended and containerd knows it."""
        self.wait_for_process(seconds)
        eventually(lambda: self.status == "STOPPED", f"{self.id} is stopped")

    def wait_for_process(self, seconds: float = DEADLINE) -> None:
        """Return when the first process has ended, whatever containerd knows."""
        wait_for_end(self._pidfd, seconds)

    def delete(self, *options: str) -> int:
        """Remove task and container; return the exit code."""
        code = self.node.delete_task(self.id, *options)
        assert code is not None, f"{self.id} has no task"
        self.close()
        self.node.daemon.ctr("container", "rm", self.id)
        return code

    def stop(self, number: int | str = "SIGTERM") -> int:
        """Signal, wait, delete; return the exit code."""
        self.kill(number)
        self.wait()
        return self.delete()

    def close(self) -> None:
        """Let go of the process; the container is not touched."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class Node:
    """A containerd and one kind of shim."""

    def __init__(self, daemon: Containerd, directory: Path, kind: str, setting: str) -> None:
        """directory: for archives and logs; setting: the variable that says where to listen."""
        self.daemon = daemon
        self.directory = directory
        self.runtime = f"io.containerd.{kind}.v1"
        self._setting = setting
        self._images: set[str] = set()
        self._apps: list[App] = []
        self._ids: list[str] = []

    # Images

    def image(self, files: Iterable[ImageFile], user: str = "") -> str:
        """Return the reference of an image with these files, imported."""
        files = list(files)
        digest = hashlib.sha256(repr((files, user)).encode()).hexdigest()[:16]
        reference = f"docker.io/library/app-{digest}:latest"
        if reference not in self._images:
            archive = self.directory / f"{digest}.tar"
            write_image_archive(archive, reference, files, entrypoint=["/"], user=user)
            self.daemon.import_image(archive)
            archive.unlink()
            self._images.add(reference)
        return reference

    def import_archive(self, archive: Path, reference: str) -> str:
        """Import an image that is there already, once."""
        if reference not in self._images:
            self.daemon.import_image(archive)
            self._images.add(reference)
        return reference

    # Containers

    def new_id(self) -> str:
        """Return the id for a container; nothing of it may be left in the end."""
        self._ids.append(f"t-{secrets.token_hex(4)}")
        return self._ids[-1]

    def run_command(
        self,
        image: str,
        task_id: str,
        address: tuple[str, int],
        *options: str,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> list[str]:
        """Return the arguments of ``ctr`` that run ``image`` in the host's network."""
        variables = {self._setting: f"{address[0]}:{address[1]}"} | dict(env)
        pairs = [part for k, v in variables.items() for part in ("--env", f"{k}={v}")]
        return ["run", "--net-host", "--runtime", self.runtime, *pairs, *options, image, task_id]

    def run(
        self,
        image: str,
        *options: str,
        env: Mapping[str, str] = MappingProxyType({}),
        address: tuple[str, int] | None = None,
        log_uri: str | None = None,
    ) -> App:
        """Start a container in the background; it serves when this returns."""
        task_id, address = self.new_id(), address or free_address()
        log_file = self.directory / f"{task_id}.log"
        logging = ["-d", "--log-uri", log_uri or f"file://{log_file}"]
        command = self.run_command(image, task_id, address, *logging, *options, env=env)
        self.daemon.ctr(*command)
        return self.adopt(task_id, address, log_file)

    def adopt(
        self, task_id: str, address: tuple[str, int], log_file: Path = Path("/nowhere")
    ) -> App:
        """Return the app of a task that was started in another way."""
        self._apps.append(App(self, task_id, address, log_file))
        return self._apps[-1]

    def run_refused(
        self,
        image: str,
        *options: str,
        env: Mapping[str, str] = MappingProxyType({}),
        address: tuple[str, int] | None = None,
        command: Sequence[str] = (),
    ) -> Refusal:
        """Start a container that cannot serve; remove it and return what was said."""
        task_id = self.new_id()
        log_file = self.directory / f"{task_id}.log"
        logging = ["-d", "--log-uri", f"file://{log_file}"]
        address = address or free_address()
        run = self.run_command(image, task_id, address, *logging, *options, env=env)
        result = self.daemon.ctr(*run, *command, check=False)
        assert result.returncode != 0, "it runs"
        code = self.delete_task(task_id)
        self.daemon.ctr("container", "rm", task_id, check=False)
        log = log_file.read_text(errors="replace") if log_file.exists() else ""
        return Refusal(result.stderr, code, log)

    @contextmanager
    def foreground(
        self,
        image: str,
        *options: str,
        env: Mapping[str, str] = MappingProxyType({}),
        address: tuple[str, int] | None = None,
    ) -> Iterator[Foreground]:
        """Run ``ctr run --rm`` as a person would."""
        task_id, address = self.new_id(), address or free_address()
        command = self.run_command(image, task_id, address, "--rm", *options, env=env)
        stdout, stderr = (self.directory / f"{task_id}.{name}" for name in ("out", "err"))
        with (
            stdout.open("w") as out,
            stderr.open("w") as err,
            self.daemon.popen_ctr(*command, stdout=out, stderr=err) as process,
        ):
            try:
                yield Foreground(self, process, task_id, address, stdout, stderr)
            finally:
                if process.poll() is None:
                    self.daemon.ctr("task", "kill", "-s", "KILL", task_id, check=False)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(DEADLINE)
                process.kill()

    def task(self, task_id: str) -> tuple[int, str]:
        """Return pid and status of a task. AssertionError if there is none."""
        for line in self.daemon.ctr("task", "ls").stdout.splitlines():
            columns = line.split()
            if columns[0] == task_id:
                return int(columns[1]), columns[2]
        raise AssertionError(f"no task {task_id}")

    def delete_task(self, task_id: str, *options: str) -> int | None:
        """Remove a task; return its exit code, None if there is no such task."""
        result = self.daemon.ctr("task", "rm", *options, task_id, check=False)
        if match := _EXIT_CODE.search(result.stderr):
            return int(match[1])
        if "not found" in result.stderr:
            return None
        assert result.returncode == 0, result.stderr
        return 0

    # Traces

    def zygotes(self) -> list[Process]:
        """The zygotes of this node that run now."""
        return [p for p in find_processes(self.daemon.scope) if _is_zygote(p.command)]

    @contextmanager
    def leaving_nothing(self) -> Iterator[None]:
        """Remove what is started inside; AssertionError if anything else is there afterwards."""
        before = self.snapshot()
        self._ids.clear()
        try:
            yield
        finally:
            self._remove_all()

        def is_as_before() -> bool:
            assert_nothing_left(before, self.snapshot())
            return True

        eventually(is_as_before, "nothing is left")

    def snapshot(self) -> Machine:
        """Return what is there of the node's containers."""
        daemon = self.daemon
        work = daemon.directory / "root" / "io.containerd.runtime.v2.task"
        directories = [daemon.state_dir, work, daemon.shims_runtime_dir, daemon.runc_dir]
        machine = snapshot_machine(daemon.scope, directories)
        sockets = {socket_path(daemon.address, daemon.namespace, i) for i in self._ids}
        runtime = f"{daemon.shims_runtime_dir}/"
        daemon_itself = str(daemon.pid)
        return replace(
            machine,
            processes=frozenset(
                line
                for line in machine.processes
                if not _is_zygote(line) and line.split(" ", 1)[0] != daemon_itself
            ),
            # The zygote's and its lock; every other socket counts.
            sockets=frozenset(s for s in machine.sockets if not s.startswith(runtime)),
            files=frozenset(f for f in machine.files if not _is_zygotes_file(f, runtime))
            | {path for path in sockets if Path(path).exists()},
        )

    def _remove_all(self) -> None:
        tasks = self.daemon.ctr("task", "ls", "-q").stdout.split()
        if tasks:
            self.daemon.ctr("task", "rm", "-f", *tasks, check=False)
        containers = self.daemon.ctr("container", "ls", "-q").stdout.split()
        if containers:
            self.daemon.ctr("container", "rm", *containers)
        for app in self._apps:
            app.close()
        self._apps.clear()


class Foreground:
    """A ``ctr run`` that is attached to its container."""

    def __init__(
        self,
        node: Node,
        process: subprocess.Popen[str],
        task_id: str,
        address: tuple[str, int],
        stdout: Path,
        stderr: Path,
    ) -> None:
        self.node = node
        self.process = process
        self.id = task_id
        self.address = address
        self._stdout = stdout
        self._stderr = stderr

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    def app(self) -> App:
        """Return the container once it serves."""

        def serves() -> bool:
            assert self.process.poll() is None, self.stderr
            with socket.socket() as client:
                return client.connect_ex(self.address) == 0

        eventually(serves, "it serves")
        return self.node.adopt(self.id, self.address)


def _is_zygote(command: str) -> bool:
    return re.search(r"containerd-shim-\w+-v1 zygote ", command) is not None


def _is_zygotes_file(path: str, runtime: str) -> bool:
    return path.startswith(runtime) and path.endswith((".sock", ".sock.lock"))
