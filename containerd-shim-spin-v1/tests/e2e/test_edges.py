"""Where something around the shim is full, slow or hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from containerd_shimkit.bootstrap import socket_path
from containerd_shimkit.linux.cgroups import open_cgroup
from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.proto import process_pb2 as types
from containerd_shimkit.proto import task_pb2 as api
from containerd_shimkit.rpc.client import Client
from containerd_shimkit.testing.apps import DEADLINE, App, Node, eventually, free_address
from containerd_shimkit.testing.cri import NAMESPACE, Cri, Pod
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD
from containerd_shimkit.testing.leftovers import find_processes
from containerd_shimkit.testing.pods import PodImages, listen_on, run_web

pytestmark = [pytest.mark.root, pytest.mark.containerd]

SHIM = "containerd-shim-spin-v1"
STATE_SECONDS = 2.0  # what containerd gives State
DELETE_SECONDS = 5.0  # and the `delete` command


def state(shim: str, task_id: str) -> int:
    """Ask the shim that listens at ``shim`` as containerd does; return the task's status."""

    async def ask() -> int:
        client = await Client.connect(shim, STATE_SECONDS)
        try:
            answer = await client.call(
                "containerd.task.v2.Task",
                "State",
                api.StateRequest(id=task_id),
                api.StateResponse,
                timeout=STATE_SECONDS,
            )
        finally:
            await client.close()
        return answer.status

    return asyncio.run(ask())


def test_app_of_many_components(node: Node, probe_wasm: bytes) -> None:
    """Each has callbacks for what it prints, and libffi makes 128 before it wants a file."""
    names = [f"probe{number}" for number in range(100)]
    components = "".join(
        f'[[component]]\nid = "{name}"\nsource = "probe.wasm"\n'
        f'[component.trigger]\nroute = "/{name}/..."\n'
        for name in names
    )
    head = 'spin_manifest_version = "1"\nname = "many"\nversion = "1.0.0"\n'
    manifest = f'{head}trigger = {{ type = "http", base = "/" }}\n{components}'
    files = [ImageFile("spin.toml", manifest.encode()), ImageFile("probe.wasm", probe_wasm)]
    app = node.run(node.image(files))
    for name in names:
        assert app.get(f"/{name}/stdout?text=from-{name}").status == 200
    assert app.log.split() == [f"from-{name}" for name in names]


def state_of(app: App) -> int:
    daemon = app.node.daemon
    return state(socket_path(daemon.address, daemon.namespace, app.id), app.id)


# Nobody reads


def test_log_fifo_that_is_full(own_node: Node, own_image: str) -> None:
    """containerd is down and the FIFO holds no more; what was dropped is told afterwards."""
    app = own_node.run(own_image)
    shim = app.shim_pid
    own_node.daemon.terminate()
    fifo = os.open(app.bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    try:
        with suppress(BlockingIOError):
            while True:
                os.write(fifo, b"filled by the test\n" * 50)
        with suppress(BlockingIOError):
            while True:
                os.write(fifo, b"\n")
        os.kill(shim, signal.SIGTERM)  # which it logs that it ignores
        assert state_of(app) == types.RUNNING
        assert app.get("/status?code=204").status == 204
    finally:
        os.close(fifo)
    own_node.daemon.start()
    eventually(lambda: "filled by the test" in own_node.daemon.log(), "containerd reads again")
    os.kill(shim, signal.SIGINT)
    eventually(lambda: "log lines dropped" in own_node.daemon.log(), "the loss is told")
    assert app.stop() == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_reader_that_holds_the_stream_and_never_reads(
    node: Node, probe_image: str, stream: str
) -> None:
    """Unlike one that is gone, whose pipes break; 3 MiB are more than pipe and buffer hold."""
    with node.foreground(probe_image) as ctr:
        app = ctr.app()
        ctr.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(60):
                assert app.get(f"/{stream}?text={'x' * 50_000}").status == 200
            assert state_of(app) == types.RUNNING
            assert app.get("/status?code=204").status == 204
        finally:
            ctr.process.send_signal(signal.SIGCONT)
        app.kill("SIGTERM")
        assert ctr.process.wait(DEADLINE) == 0


# No room


@contextmanager
def small_disk(directory: Path, files: int) -> Iterator[None]:
    """Let ``directory`` be on a disk that has room for this many more files and directories."""
    options = f"size=4m,nr_inodes={files + 1}"  # its root is one
    command = ["mount", "-t", "tmpfs", "-o", options, "small", str(directory)]
    subprocess.run(command, check=True, timeout=DEADLINE)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True, timeout=DEADLINE)


@ON_EACH_CONTAINERD
def test_disk_of_the_bundles_that_is_full(own_node: Node, own_image: str) -> None:
    """Whichever file is the first that has no room, the error says so and nothing is left."""
    bundles = own_node.daemon.bundle("any").parent
    bundles.mkdir(parents=True, exist_ok=True)
    runs = 0
    for files in range(3, 12):
        with small_disk(bundles, files), own_node.leaving_nothing():
            task_id, address = own_node.new_id(), ("127.0.0.1", 0)
            options = ["-d", "--null-io"]
            command = own_node.run_command(own_image, task_id, address, *options)
            result = own_node.daemon.ctr(*command, check=False)
            if result.returncode == 0:
                runs += 1
            else:
                assert runs == 0, "it ran with less room"
                assert "no space left on device" in result.stderr.lower(), (files, result.stderr)
            own_node.delete_task(task_id, "-f")
    assert 0 < runs < 9


# Something hangs


def test_state_is_answered_while_a_create_hangs(cri: Cri, pod: Pod, images: PodImages) -> None:
    """Frozen with the pod's cgroup, the second container's init gets nowhere for a while."""
    web = run_web(cri, pod, images.probe)
    shim = socket_path(cri.daemon.address, NAMESPACE, pod.id)
    slow = cri.create_container(pod, images.probe, "slow", env=listen_on(free_address()))
    cgroup = open_cgroup(pod.cgroup_parent, "")
    with ThreadPoolExecutor(1) as pool:
        cgroup.freeze(timeout=DEADLINE)
        try:
            starting = pool.submit(cri.start_container, slow)  # CRI sends Create and Start
            eventually(lambda: find_processes([f"engine -namespace {NAMESPACE} -id {slow}"]))
            for _ in range(10):
                assert state(shim, web.id) == types.RUNNING
            assert not starting.done()
        finally:
            cgroup.thaw(timeout=DEADLINE)
        starting.result(DEADLINE)
    assert web.serves()


def test_state_is_answered_while_the_guest_computes(probe: App) -> None:
    with socket.create_connection(probe.address, DEADLINE) as connection:
        connection.sendall(b"GET /loop HTTP/1.1\r\nHost: probe\r\n\r\n")
        assert probe.get("/status?code=204").status == 204
        for _ in range(10):
            assert state_of(probe) == types.RUNNING
        assert probe.stop("SIGKILL") == 137


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "paused"])
def test_delete_command_has_time_enough_beside_a_hung_shim(
    node: Node, probe: App, shim_dir: Path, frozen: bool
) -> None:
    """It ends the app without the shim, which is told nothing and asked nothing."""
    shim = probe.shim_pid
    if frozen:
        node.daemon.ctr("task", "pause", probe.id)
    os.kill(shim, signal.SIGSTOP)
    try:
        daemon = node.daemon
        command = [
            *(str(shim_dir / SHIM), "-namespace", daemon.namespace, "-address", daemon.address),
            *("-id", probe.id, "-bundle", str(probe.bundle), "delete"),
        ]
        began = time.monotonic()
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            cwd=probe.bundle,
            env=daemon.environment(),
            timeout=DEADLINE,
        )
        took = time.monotonic() - began
        probe.wait_for_process()
        assert took < DELETE_SECONDS, took
    finally:
        os.kill(shim, signal.SIGCONT)
    probe.wait()
