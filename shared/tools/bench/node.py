"""The containerd that is measured on, and what runs on it."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import BUSYBOX, REPOSITORY, BenchError
from containerd_shimkit.linux.syscalls import pidfd_open, pidfd_send_signal
from containerd_shimkit.oci.archive import ImageFile, write_image_archive
from containerd_shimkit.testing.containerd import Containerd
from containerd_shimkit.testing.leftovers import Process, find_processes

START_TIMEOUT = 30.0  # seconds
POLL_INTERVAL = 0.001  # seconds between attempts to connect to a server that is not there yet


@dataclass(frozen=True)
class Workload:
    """A server in a container that answers 200 to ``GET /hello``.

    An entry in ``WORKLOADS`` is all that a further shim needs.
    """

    name: str
    runtime: str
    image: str
    shim: str
    """The executable that containerd looks for."""
    archive: str = ""
    """The image's file in ``dist/images``; empty is one made here."""
    files: tuple[tuple[str, str], ...] = ()
    """What an image made here holds: path in the working copy, path; empty is busybox."""
    env: tuple[str, ...] = ()
    """``{port}`` stands for the port, here and in ``args``."""
    args: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether the shim is of this project: with a zygote and compiled modules."""
        return bool(self.archive or self.files)

    def environment(self, port: int) -> dict[str, str]:
        return dict(value.format(port=port).split("=", 1) for value in self.env)

    def arguments(self, port: int) -> list[str]:
        return [arg.format(port=port) for arg in self.args]

    def run_command(self, task_id: str, port: int) -> list[str]:
        """Return the arguments with which ``ctr`` runs it."""
        pairs = self.environment(port).items()
        env = [word for name, value in pairs for word in ("--env", f"{name}={value}")]
        # Without null-io the guest's output would go to pipes that nobody reads.
        options = ["--detach", "--null-io", "--net-host", "--runtime", self.runtime, *env]
        return ["run", *options, self.image, task_id, *self.arguments(port)]

    def archive_in(self, images: Path, directory: Path) -> Path:
        """Return the image's archive; ``directory`` is for what has to be made."""
        if self.archive:
            return images / self.archive
        path = directory / f"{self.name}.tar"
        if self.files:
            own = [
                ImageFile(name, (REPOSITORY / source).read_bytes()) for source, name in self.files
            ]
            write_image_archive(path, self.image, own, entrypoint=["/"])
            return path
        files = [
            ImageFile("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
            ImageFile("www/hello", b"Hello world from busybox!"),
        ]
        write_image_archive(path, self.image, files, entrypoint=["/bin/busybox"])
        return path


SPIN = Workload(
    name="spin",
    runtime="io.containerd.spin.v1",
    image="docker.io/library/wasmtest_spin:latest",
    shim="containerd-shim-spin-v1",
    archive="spin.tar",
    env=("SPIN_HTTP_LISTEN_ADDR=127.0.0.1:{port}",),
)
SLIGHT = Workload(
    name="slight",
    runtime="io.containerd.slight.v1",
    image="docker.io/library/wasmtest_slight:latest",
    shim="containerd-shim-slight-v1",
    archive="slight.tar",
    env=("SLIGHT_HTTP_LISTEN_ADDR=127.0.0.1:{port}",),
)
WWS_C, WWS_JAVASCRIPT, WWS_PYTHON = (
    Workload(
        name=name,
        runtime="io.containerd.wws.v1",
        image=f"docker.io/library/bench_{name}:latest",
        shim="containerd-shim-wws-v1",
        files=((source, f"hello.{source.rpartition('.')[2]}"),),
        env=("WWS_HTTP_LISTEN_ADDR=127.0.0.1:{port}",),
    )
    for name, source in (
        ("wws-c", "images/wws/c.wasm"),
        ("wws-js", "images/wws/hello.js"),
        ("wws-python", "images/wws-python/hello.py"),
    )
)
RUNC = Workload(
    name="runc",
    runtime="io.containerd.runc.v2",
    image="docker.io/library/bench_busybox:latest",
    shim="containerd-shim-runc-v2",
    args=("/bin/busybox", "httpd", "-f", "-p", "127.0.0.1:{port}", "-h", "/www"),
)
WORKLOADS = (SPIN, SLIGHT, WWS_C, WWS_JAVASCRIPT, WWS_PYTHON, RUNC)


@dataclass
class Node:
    """A running containerd, and the containers on it."""

    containerd: Containerd
    cache: Path
    _count: int = field(default=0, init=False)
    _warm: set[Workload] = field(default_factory=set, init=False)

    @contextlib.contextmanager
    def running(self, workload: Workload) -> Iterator[Running]:
        """Run a container; remove it at the end."""
        self._count += 1
        task_id = f"{workload.name}-{self._count}"
        port = free_port()
        command = workload.run_command(task_id, port)
        try:
            began = time.perf_counter()
            with self.containerd.popen_ctr(*command) as client:
                try:
                    answered = wait_for_200(port, client)
                finally:
                    client.kill()  # of no effect when it has ended, as it has after a 200
            self._warm.add(workload)
            yield Running(task_id, port, began, answered)
        finally:
            self.containerd.ctr("tasks", "delete", "--force", task_id, check=False)
            self.containerd.ctr("containers", "delete", task_id, check=False)

    def processes(self) -> dict[tuple[int, int], Process]:
        """Return the shims' processes and their containers', by pid and start."""
        found = find_processes(self.containerd.scope)
        return {(p.pid, p.start_time): p for p in found if p.pid != self.containerd.pid}

    def zygotes(self, workload: Workload) -> list[Process]:
        """Return what a shim of this project keeps running."""
        words = f"{workload.shim} zygote "
        # Not at its beginning: where a title cannot replace it, the loader's own command is there.
        return [p for p in self.processes().values() if words in p.command]

    def engine_pid(self, task_id: str) -> int:
        """Return the pid of the process that serves in a container of this project's."""
        (pid,) = (
            process.pid
            for process in self.processes().values()
            if " engine " in process.command and process.command.endswith(f"-id {task_id}")
        )
        return pid

    # The states a start is measured in; there must be no container.

    def make_warm(self, workload: Workload) -> None:
        """See to it that the zygote runs, the module is compiled, files are in the page cache."""
        if workload not in self._warm:
            with self.running(workload):
                pass

    def make_precompiled(self, workload: Workload) -> None:
        """As on a node where the image has been prepared and no pod has run: no zygote."""
        self.make_warm(workload)
        self._end_zygote(workload)

    def make_cold(self, workload: Workload) -> None:
        """Forget everything that makes a later start faster."""
        self._end_zygote(workload)
        for entry in self.cache.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self._warm = {other for other in self._warm if not other.is_ours}

    def _end_zygote(self, workload: Workload) -> None:
        for process in self.zygotes(workload):
            end_process(process.pid)


@dataclass(frozen=True)
class Running:
    """A container that has answered."""

    task_id: str
    port: int
    began: float
    """When ``ctr run`` was executed, by ``time.perf_counter``."""
    answered: float
    """When the first 200 was there."""

    @property
    def seconds(self) -> float:
        return self.answered - self.began


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for_200(port: int, client: subprocess.Popen[str]) -> float:
    """Return the time of the first 200, by ``time.perf_counter``, and wait for ``ctr`` to end.

    Raises BenchError if ``ctr`` fails or there is no 200 in 30 s.
    """
    deadline = time.perf_counter() + START_TIMEOUT
    while not answers_200(port):
        if client.poll():
            output = client.stderr.read().strip() if client.stderr else ""
            raise BenchError(f"ctr run failed with {client.returncode}: {output}")
        if time.perf_counter() > deadline:
            raise BenchError(f"no 200 from port {port} in {START_TIMEOUT:.0f} s")
        time.sleep(POLL_INTERVAL)
    answered = time.perf_counter()
    client.wait(START_TIMEOUT)
    return answered


def answers_200(port: int) -> bool:
    request = b"GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=START_TIMEOUT) as server:
            server.sendall(request)
            return server.makefile("rb").readline().split()[1:2] == [b"200"]
    except OSError:
        return False


def end_process(pid: int, seconds: float = 5.0) -> None:
    """Terminate a process that need not be our child; kill it if it is there after ``seconds``."""
    try:
        descriptor = pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                pidfd_send_signal(descriptor, number)
            # A pidfd is readable from the end of the process on, reaped or not.
            if select.select([descriptor], [], [], seconds)[0]:
                return
    finally:
        os.close(descriptor)
