"""``start`` and ``delete``, executed as containerd executes them."""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2
from google.protobuf.empty_pb2 import Empty

from containerd_shimkit.bootstrap import is_listening, socket_path
from containerd_shimkit.errors import UnavailableError
from containerd_shimkit.linux.cgroups import open_cgroup
from containerd_shimkit.proto import process_pb2 as types
from containerd_shimkit.proto import task_pb2 as api
from containerd_shimkit.proto.bootstrap_pb2 import BootstrapParams, BootstrapResult
from containerd_shimkit.task.record import InitRecord
from containerd_shimkit.testing import BundleBuilder
from containerd_shimkit.testing.apps import eventually
from containerd_shimkit.testing.commands import SECONDS, ShimCommand

pytestmark = pytest.mark.root

GROUP = "io.kubernetes.cri.sandbox-id"


def builder(stub: ShimCommand, task_id: str = "c", **fields: Any) -> BundleBuilder:
    path = stub.directory / task_id
    return BundleBuilder(path, task_id=task_id, namespace=stub.namespace, **fields)


@pytest.fixture
def bundle(stub: ShimCommand) -> Path:
    return builder(stub).write()


def run_task(stub: ShimCommand, bundle: BundleBuilder, group: str = "c") -> int:
    """Create and start a task in a shim that runs; return its pid."""
    request = api.CreateTaskRequest(id=bundle.task_id, bundle=str(bundle.path))
    pid = stub.call("Create", request, api.CreateTaskResponse, group).pid
    stub.call("Start", api.StartRequest(id=bundle.task_id), api.StartResponse, group)
    return pid


def shut_down(stub: ShimCommand) -> None:
    """End the shim and wait until it is gone."""
    [shim] = stub.shims()
    pidfd = os.pidfd_open(shim.pid)
    stub.call("Shutdown", api.ShutdownRequest(id="c"), Empty)
    wait_dead(pidfd)
    os.close(pidfd)


def wait_dead(pidfd: int) -> None:
    assert select.select([pidfd], [], [], SECONDS)[0], "still alive"


def kill_and_wait(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    wait_dead(pidfd)
    os.close(pidfd)


# What start prints


def test_plain_address_for_containerd_1_6(stub: ShimCommand, bundle: Path) -> None:
    done = stub.start(bundle)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"unix://{stub.socket()}"
    assert is_listening(stub.socket())


def test_json_for_containerd_1_7(stub: ShimCommand, bundle: Path) -> None:
    done = stub.start(bundle, env={"MAX_SHIM_VERSION": "2"})
    expected = {"version": 2, "address": f"unix://{stub.socket()}", "protocol": "ttrpc"}
    assert json.loads(done.stdout) == expected
    assert done.stderr == b""


def test_result_for_containerd_2_3(stub: ShimCommand, bundle: Path) -> None:
    params = BootstrapParams(instance_id="c", namespace=stub.namespace)
    done = stub.start(bundle, stdin=params.SerializeToString(), env={"MAX_SHIM_VERSION": "2"})
    result = BootstrapResult.FromString(done.stdout)
    assert (result.version, result.protocol) == (3, "ttrpc")
    assert result.address == f"unix://{stub.socket()}"


def test_bundle_without_config_is_a_pod_for_the_sandbox_api(stub: ShimCommand) -> None:
    """As containerd 2.0 to 2.2 ask; whoever knows of no sandbox API gets the error."""
    bundle = stub.directory / "c"
    bundle.mkdir()
    refused = stub.start(bundle)
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"config.json: No such file or directory" in refused.stderr
    done = stub.start(bundle, env={"MAX_SHIM_VERSION": "2"})
    expected = {"version": 3, "address": f"unix://{stub.socket()}", "protocol": "ttrpc"}
    assert json.loads(done.stdout) == expected
    assert done.stderr == b""


def test_socket_dir_of_containerd_2_3(stub: ShimCommand, bundle: Path) -> None:
    directory = stub.directory / "s"
    params = BootstrapParams(
        instance_id="c", namespace=stub.namespace, socket_dir=str(directory)
    ).SerializeToString()
    result = BootstrapResult.FromString(stub.start(bundle, stdin=params).stdout)
    assert Path(result.address.removeprefix("unix://")).parent == directory
    assert is_listening(result.address.removeprefix("unix://"))
    [shim] = stub.shims()
    kill_and_wait(shim.pid)
    stub.delete(bundle)
    assert list(directory.iterdir()) == []


OTHER = BootstrapParams(instance_id="other", namespace="other").SerializeToString()
OPTIONS = any_pb2.Any(
    type_url="runtimeoptions.v1.Options", value=b"\x0a\x03abc"
).SerializeToString()


@pytest.mark.parametrize(
    "stdin",
    [
        pytest.param(OPTIONS, id="options"),
        pytest.param(OTHER, id="params-of-another"),
        pytest.param(b"\xff" * 100, id="garbage"),
        pytest.param(b"\0", id="nul"),
    ],
)
def test_stdin_that_is_no_parameters(stub: ShimCommand, bundle: Path, stdin: bytes) -> None:
    done = stub.start(bundle, stdin=stdin)
    assert done.stdout.decode() == f"unix://{stub.socket()}"


@pytest.mark.parametrize("params", [False, True], ids=["nothing", "params"])
def test_stdin_that_is_never_closed(stub: ShimCommand, bundle: Path, params: bool) -> None:
    data = BootstrapParams(instance_id="c", namespace=stub.namespace).SerializeToString()
    reader, writer = os.pipe()
    try:
        os.write(writer, data if params else b"")
        done = subprocess.run(
            stub.arguments("c", "start"),
            cwd=bundle,
            env=stub.env,
            stdin=reader,
            capture_output=True,
            timeout=10,
        )
    finally:
        os.close(reader)
        os.close(writer)
    address = f"unix://{stub.socket()}"
    found = BootstrapResult.FromString(done.stdout).address if params else done.stdout.decode()
    assert found == address


def test_address_file(stub: ShimCommand, bundle: Path) -> None:
    stub.start(bundle)
    assert (bundle / "address").read_text() == f"unix://{stub.socket()}"


def test_full_disk_leaves_no_socket(stub: ShimCommand, bundle: Path) -> None:
    """The socket is outside of the bundle: nobody would remove it after a failed start."""
    config = (bundle / "config.json").read_bytes()
    command = ["mount", "-t", "tmpfs", "-o", "nr_inodes=2", "small", str(bundle)]
    subprocess.run(command, check=True)
    try:
        (bundle / "config.json").write_bytes(config)
        done = stub.start(bundle)
    finally:
        subprocess.run(["umount", str(bundle)], check=True)
    assert done.returncode != 0
    assert b"No space left on device" in done.stderr
    assert not Path(stub.socket()).exists()


def test_missing_config_is_a_clear_error(stub: ShimCommand, tmp_path: Path) -> None:
    done = stub.start(tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    message = f"containerd-shim-stub-v1: {tmp_path}/config.json: No such file or directory\n"
    assert done.stderr.decode() == message
    assert stub.shims() == []


def test_broken_config_is_a_clear_error(stub: ShimCommand, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    done = stub.start(tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path}/config.json: not JSON" in done.stderr.decode()


# The socket


def test_socket_path_is_containerds() -> None:
    digest = hashlib.sha256(b"/run/containerd/containerd.sock/k8s.io/abc").hexdigest()
    path = socket_path("/run/containerd/containerd.sock", "k8s.io", "abc")
    assert path == f"/run/containerd/s/{digest}"


def test_socket_path_has_a_limit() -> None:
    directory = "/" + "d" * (106 - 64 - 2)
    assert len(socket_path("/a", "n", "i", directory)) == 106
    with pytest.raises(UnavailableError, match="exceeds 106 bytes"):
        socket_path("/a", "n", "i", directory + "d")


def test_limit_counts_bytes() -> None:
    with pytest.raises(UnavailableError, match="exceeds 106 bytes"):
        socket_path("/a", "n", "i", "/" + "ü" * 30)


def test_socket_is_for_root_only(stub: ShimCommand, bundle: Path) -> None:
    stub.start(bundle)
    assert stat.S_IMODE(Path(stub.socket()).stat().st_mode) == 0o600


def test_second_start_of_a_pod_finds_its_shim(stub: ShimCommand) -> None:
    answers = set()
    for task_id in ("c", "d"):
        bundle = builder(stub, task_id, annotations={GROUP: "c"}).write()
        answers.add(stub.start(bundle, task_id).stdout)
        assert (bundle / "address").read_text() == f"unix://{stub.socket('c')}"
    assert answers == {f"unix://{stub.socket('c')}".encode()}
    assert len(stub.shims()) == 1


def test_concurrent_starts_of_a_pod_make_one_shim(stub: ShimCommand) -> None:
    names = [f"c{n}" for n in range(8)]
    bundles = [builder(stub, name, annotations={GROUP: "c"}).write() for name in names]
    with ThreadPoolExecutor(len(names)) as pool:
        done = list(pool.map(stub.start, bundles, names))
    assert {d.stdout.decode() for d in done} == {f"unix://{stub.socket('c')}"}, done
    assert len(stub.shims()) == 1


def test_stale_socket_is_replaced(stub: ShimCommand, bundle: Path) -> None:
    stub.start(bundle)
    [shim] = stub.shims()
    kill_and_wait(shim.pid)
    assert Path(stub.socket()).exists()
    assert not is_listening(stub.socket())
    assert stub.start(bundle).returncode == 0
    [second] = stub.shims()
    assert second.pid != shim.pid
    assert is_listening(stub.socket())


def test_busy_shim_counts_as_listening(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        try:
            for client in waiting:
                client.setblocking(False)
                if client.connect_ex(path):
                    break
            assert is_listening(path)
        finally:
            for client in waiting:
                client.close()
    assert not is_listening(path)
    assert not is_listening(path + "-missing")


def test_unused_shim_ends_with_its_bundle(stub: ShimCommand, bundle: Path) -> None:
    """containerd has failed between start and Create, and will not ask for anything."""
    assert stub.start(bundle).returncode == 0
    [shim] = stub.shims()
    pidfd = os.pidfd_open(shim.pid)
    shutil.rmtree(bundle)
    wait_dead(pidfd)
    os.close(pidfd)
    assert not Path(stub.socket()).exists()


def test_shim_removes_its_socket(stub: ShimCommand, bundle: Path) -> None:
    stub.start(bundle)
    shut_down(stub)
    assert not Path(stub.socket()).exists()


# delete


@contextmanager
def sleeper() -> Iterator[int]:
    """A process that is nobody's container."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return False


def test_delete_after_a_proper_end(stub: ShimCommand) -> None:
    bundle = builder(stub, env={"STUB_EXIT": "0"})
    stub.start(bundle.write())
    run_task(stub, bundle)
    stub.call("Wait", api.WaitRequest(id="c"), api.WaitResponse)
    stub.call("Delete", api.DeleteRequest(id="c"), api.DeleteResponse)
    shut_down(stub)
    for _ in range(2):
        assert stub.delete(bundle.path).exit_status == 137
    assert not Path(stub.socket()).exists()


def test_delete_after_the_shim_was_killed(stub: ShimCommand) -> None:
    bundle = builder(stub)
    stub.start(bundle.write())
    pid = run_task(stub, bundle)
    cgroup = open_cgroup(f"/{stub.namespace}/c", "c")
    assert cgroup.pids() == [pid]
    [shim] = stub.shims()
    kill_and_wait(shim.pid)
    before = time.time()
    response = stub.delete(bundle.path)
    assert (response.pid, response.exit_status) == (pid, 137)
    assert before - 1 <= response.exited_at.ToNanoseconds() / 1e9 <= time.time() + 1
    assert not is_alive(pid)
    assert not cgroup.exists()
    assert not Path(stub.socket()).exists()


def test_delete_twice_at_once_after_the_shim_was_killed(stub: ShimCommand) -> None:
    bundle = builder(stub)
    stub.start(bundle.write())
    pid = run_task(stub, bundle)
    [shim] = stub.shims()
    kill_and_wait(shim.pid)
    with ThreadPoolExecutor(2) as pool:
        responses = list(pool.map(stub.delete, [bundle.path] * 2))
    assert [response.exit_status for response in responses] == [137, 137]
    assert not is_alive(pid)
    assert not open_cgroup(f"/{stub.namespace}/c", "c").exists()


def test_delete_without_a_bundle(stub: ShimCommand, tmp_path: Path) -> None:
    response = stub.delete(tmp_path / "gone")
    assert (response.pid, response.exit_status) == (0, 137)


@pytest.mark.parametrize("missing", [[], ["config.json"], ["rootfs", "address"]])
def test_delete_with_a_half_removed_bundle(stub: ShimCommand, missing: list[str]) -> None:
    bundle = builder(stub, cgroups_path="").write()
    with sleeper() as pid:
        InitRecord.of(pid).save(bundle)
        for name in missing:
            path = bundle / name
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        assert stub.delete(bundle).pid == pid
        assert not is_alive(pid)


@pytest.mark.parametrize("config", [True, False], ids=["config", "no-config"])
def test_delete_spares_another_process_with_the_pid(stub: ShimCommand, config: bool) -> None:
    bundle = builder(stub, cgroups_path="").write()
    with sleeper() as pid:
        InitRecord(pid, InitRecord.of(pid).start_time + 1).save(bundle)
        if not config:
            (bundle / "config.json").unlink()
        assert stub.delete(bundle).exit_status == 137
        assert is_alive(pid)


def test_delete_of_one_container_spares_its_pod(stub: ShimCommand) -> None:
    bundles = [builder(stub, name, annotations={GROUP: "c"}) for name in ("c", "d")]
    for bundle in bundles:
        stub.start(bundle.write(), bundle.task_id)
    pids = [run_task(stub, bundle) for bundle in bundles]
    assert stub.delete(bundles[1].path, "d").pid == pids[1]
    assert not is_alive(pids[1])
    assert is_alive(pids[0])
    assert is_listening(stub.socket())
    state = stub.call("State", api.StateRequest(id="c"), api.StateResponse)
    assert state.status == types.RUNNING
    ended = stub.call("Wait", api.WaitRequest(id="d"), api.WaitResponse)
    assert ended.exit_status == 137
    assert stub.delete(bundles[0].path, "c").pid == pids[0]


def test_delete_lets_a_slow_runtime_finish(stub: ShimCommand, bundle: Path) -> None:
    """Killed in its midst it would leave its state for ever: nobody asks a second time."""
    own = stub.directory
    gate, script = own / "gate", own / "runtime"
    os.mkfifo(gate)
    script.write_text(f'#!/bin/sh\nread line <{gate}\necho "$@" >{own}/.new\n')
    with script.open("a") as file:
        file.write(f"mv {own}/.new {own}/done\n")
    script.chmod(0o755)
    InitRecord(2**22 + 1, 1, runtime=(str(script), "--root", "/r")).save(bundle)
    stub.delete(bundle)
    assert not (own / "done").exists()
    gate_end = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)  # ENXIO if nobody reads any more
    os.write(gate_end, b"go\n")
    os.close(gate_end)

    def said() -> str:
        return (own / "done").read_text()

    assert eventually(said) == "--root /r delete --force c\n"


def test_delete_unmounts_a_rootfs(stub: ShimCommand, bundle: Path) -> None:
    """Of an ordinary Linux container: its rootfs is mounted in the host's namespace."""
    subprocess.run(["mount", "-t", "tmpfs", "none", bundle / "rootfs"], check=True)
    try:
        stub.delete(bundle)
        assert str(bundle) not in Path("/proc/self/mountinfo").read_text()
    finally:
        subprocess.run(["umount", "-q", bundle / "rootfs"], capture_output=True)


def test_death_of_the_shim_ends_its_containers(stub: ShimCommand) -> None:
    bundle = builder(stub)
    stub.start(bundle.write())
    init = os.pidfd_open(run_task(stub, bundle))
    [shim] = stub.shims()
    kill_and_wait(shim.pid)
    wait_dead(init)
    os.close(init)
    stub.delete(bundle.path)
