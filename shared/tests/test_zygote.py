"""The launcher and a real zygote of a built shim."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from containerd_shimkit.bootstrap import is_listening
from containerd_shimkit.proto.bootstrap_pb2 import BootstrapParams, BootstrapResult
from containerd_shimkit.task.record import InitRecord
from containerd_shimkit.testing import BundleBuilder, CleanProcess
from containerd_shimkit.testing.commands import (
    SECONDS,
    ShimCommand,
    shim_command,
    write_stub_binary,
)
from containerd_shimkit.testing.leftovers import Process

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("zygote")]


def bundle_of(command: ShimCommand, task_id: str = "c") -> Path:
    return BundleBuilder(
        command.directory / task_id, task_id=task_id, namespace=command.namespace
    ).write()


def zygote_of(command: ShimCommand) -> Process:
    """Start one task's shim, and so the zygote; return the zygote."""
    done = command.start(bundle_of(command, "first"), "first")
    assert done.returncode == 0, done.stderr
    [zygote] = command.zygotes()
    return zygote


def socket_of(command: ShimCommand) -> Path:
    [path] = command.run_directory.glob("*.sock")
    return path


def children_of(command: ShimCommand, zygote: Process) -> list[Process]:
    return [process for process in command.processes() if process.parent == zygote.pid]


def descriptors(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(f"{entry.name} {entry.readlink()}")
        except OSError:
            continue
    return sorted(found)


def eventually(condition: Callable[[], object], what: str) -> None:
    """For what no event tells."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        select.select([], [], [], 0.01)


@contextmanager
def watched(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def wait_dead(pidfd: int) -> None:
    assert select.select([pidfd], [], [], SECONDS)[0], "still alive"


# Forwarding


def test_start_makes_a_shim_that_the_zygote_forked(spin: ShimCommand) -> None:
    zygote = zygote_of(spin)
    assert is_listening(spin.socket("first"))
    [shim] = children_of(spin, zygote)
    assert f"-namespace {spin.namespace} -id first" in shim.command


def test_environment_reaches_the_work(spin: ShimCommand) -> None:
    zygote_of(spin)
    done = spin.start(bundle_of(spin), env={"MAX_SHIM_VERSION": "2"})
    assert json.loads(done.stdout)["address"] == f"unix://{spin.socket()}"
    # and it does not stay in the zygote
    plain = spin.start(bundle_of(spin, "d"), "d")
    assert plain.stdout.decode() == f"unix://{spin.socket('d')}"


def test_stdin_reaches_the_work(spin: ShimCommand) -> None:
    zygote_of(spin)
    params = BootstrapParams(instance_id="c", namespace=spin.namespace)
    done = spin.start(bundle_of(spin), stdin=params.SerializeToString())
    assert BootstrapResult.FromString(done.stdout).address == f"unix://{spin.socket()}"


def test_directory_and_stderr_and_exit_code_come_back(spin: ShimCommand, tmp_path: Path) -> None:
    zygote = zygote_of(spin)
    done = spin.start(tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().endswith(f"{tmp_path}/config.json: No such file or directory\n")
    assert spin.zygotes() == [zygote]


def test_wrong_usage_comes_back(spin: ShimCommand, tmp_path: Path) -> None:
    zygote_of(spin)
    command = [str(spin.binary), "-nonsense", "start"]
    done = subprocess.run(command, env=spin.env, cwd=tmp_path, capture_output=True)
    assert done.returncode == 64
    assert b"-nonsense" in done.stderr


def test_delete_is_forwarded(spin: ShimCommand) -> None:
    zygote_of(spin)
    assert spin.delete(bundle_of(spin)).exit_status == 137


def test_delete_starts_no_zygote(spin: ShimCommand) -> None:
    assert spin.delete(bundle_of(spin)).exit_status == 137
    assert spin.zygotes() == []


def test_no_zygote_if_so_configured(spin: ShimCommand) -> None:
    done = spin.start(bundle_of(spin), env={"CONTAINERD_WASM_SHIMS_NO_ZYGOTE": "1"})
    assert done.stdout.decode() == f"unix://{spin.socket()}"
    assert spin.zygotes() == []


def test_many_concurrent_starts_make_one_zygote(spin: ShimCommand) -> None:
    names = [f"c{n}" for n in range(20)]
    bundles = [bundle_of(spin, name) for name in names]
    with ThreadPoolExecutor(len(names)) as pool:
        done = list(pool.map(spin.start, bundles, names))
    assert [d.stdout.decode() for d in done] == [f"unix://{spin.socket(name)}" for name in names]
    [zygote] = spin.zygotes()
    assert len(children_of(spin, zygote)) == len(names)


# A zygote that does not answer


def test_dead_zygote_is_replaced(spin: ShimCommand) -> None:
    zygote = zygote_of(spin)
    with watched(zygote.pid) as pidfd:
        os.kill(zygote.pid, signal.SIGKILL)
        wait_dead(pidfd)
    assert socket_of(spin).exists()
    assert spin.start(bundle_of(spin)).stdout.decode() == f"unix://{spin.socket()}"
    [second] = spin.zygotes()
    assert second.pid != zygote.pid


def test_hung_zygote_stops_nothing(spin: ShimCommand) -> None:
    zygote = zygote_of(spin)
    os.kill(zygote.pid, signal.SIGSTOP)
    # That start returns means that nobody holds its stdout, the zygote's queue included.
    assert spin.start(bundle_of(spin)).stdout.decode() == f"unix://{spin.socket()}"
    assert is_listening(spin.socket())
    # The next one has a new zygote.
    assert spin.start(bundle_of(spin, "d"), "d").returncode == 0
    assert len(spin.zygotes()) == 2
    with watched(zygote.pid) as pidfd:
        os.kill(zygote.pid, signal.SIGCONT)
        wait_dead(pidfd)
    assert len(spin.shims()) == 3


def test_delete_keeps_its_time_whatever_hangs(spin: ShimCommand, tmp_path: Path) -> None:
    """The zygote and the OCI runtime at once."""
    os.kill(zygote_of(spin).pid, signal.SIGSTOP)
    runtime = tmp_path / "runtime"
    runtime.write_text("#!/bin/sh\nexec sleep 60\n")
    runtime.chmod(0o755)
    bundle = bundle_of(spin)
    with subprocess.Popen(["sleep", "60"]) as process:
        InitRecord.of(process.pid, runtime=(str(runtime),)).save(bundle)
        begun = time.monotonic()
        assert spin.delete(bundle).exit_status == 137
        assert time.monotonic() - begun < 5.0, "containerd gives the whole delete 5 s"
        assert process.wait(SECONDS) == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["file", "socket", "directory"])
def test_stale_socket(spin: ShimCommand, kind: str) -> None:
    zygote_of(spin)
    path = socket_of(spin)
    for process in spin.processes():
        with watched(process.pid) as pidfd:
            os.kill(process.pid, signal.SIGKILL)
            wait_dead(pidfd)
    path.unlink()
    if kind == "file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
            stale.bind(str(path))
    assert spin.start(bundle_of(spin)).stdout.decode() == f"unix://{spin.socket()}"
    assert len(spin.zygotes()) == (0 if kind == "directory" else 1)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/proc/nowhere", id="no-such"),
        pytest.param("/dev/null/x", id="below-a-file"),
        pytest.param("{own}/" + "d" * 120, id="longer-than-a-socket's-path"),
    ],
)
def test_unwritable_run_directory(spin: ShimCommand, path: str) -> None:
    """The work is done without a zygote, then."""
    path = path.format(own=spin.directory)
    done = spin.start(bundle_of(spin), env={"CONTAINERD_WASM_SHIMS_RUN": path})
    assert done.stdout.decode() == f"unix://{spin.socket()}", done.stderr
    assert is_listening(spin.socket())


# Who may ask


def test_permissions(spin: ShimCommand) -> None:
    zygote_of(spin)
    assert stat.S_IMODE(socket_of(spin).stat().st_mode) == 0o600
    assert stat.S_IMODE(spin.run_directory.stat().st_mode) == 0o700


def ask_as_nobody(path: str, message: bytes) -> bytes | str:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(SECONDS)
        try:
            client.connect(path)
            client.sendmsg([message])
            socket.send_fds(client, [message], [0, 1, 2])
            answers = [client.recv(16), client.recv(16)]
        except OSError as exc:
            return exc.strerror or str(exc)
        return b"".join(answers)


def test_foreign_user_cannot_connect(spin: ShimCommand, clean_process: CleanProcess) -> None:
    zygote_of(spin)
    path = str(socket_of(spin))
    answer = clean_process.call(ask_as_nobody, path=path, message=b"1\x000\0start\0/")
    assert answer == "Permission denied"


def test_foreign_user_is_refused(spin: ShimCommand, clean_process: CleanProcess) -> None:
    """Even if somebody opens the directory."""
    zygote = zygote_of(spin)
    children = children_of(spin, zygote)
    path = socket_of(spin)
    for directory in (spin.directory, spin.run_directory):
        directory.chmod(0o755)
    path.chmod(0o666)
    answer = clean_process.call(ask_as_nobody, path=str(path), message=b"1\x000\0start\0/")
    assert answer in (b"", b"!", "Broken pipe", "Connection reset by peer")
    assert children_of(spin, zygote) == children
    assert spin.zygotes() == [zygote]


@pytest.mark.parametrize(
    ("message", "fds"),
    [
        pytest.param(b"", 0, id="nothing"),
        pytest.param(b"garbage", 3, id="garbage"),
        pytest.param(b"1\x000\0start", 0, id="no-descriptors"),
        pytest.param(b"1\x000\0start\0/", 2, id="two-descriptors"),
        pytest.param(b"9\x009\0start\0/", 3, id="truncated"),
        pytest.param(b"-1\0-9\0start\0/", 3, id="negative"),
        pytest.param(b"1\x001\0start\0novalue\0/", 3, id="environment"),
        pytest.param(b"1\x000\0start\0/no/such/directory", 3, id="directory"),
        pytest.param(b"\xff" * 100_000, 3, id="long"),
    ],
)
def test_bad_message_does_not_kill_it(spin: ShimCommand, message: bytes, fds: int) -> None:
    zygote = zygote_of(spin)
    before = descriptors(zygote.pid)
    null = os.open(os.devnull, os.O_RDWR)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(SECONDS)
        client.connect(str(socket_of(spin)))
        client.recv(1)
        if message:
            socket.send_fds(client, [message], [null] * fds)
            try:
                answer = client.recv(16)
            except ConnectionResetError:
                answer = b""
            assert answer != b"\0"
    os.close(null)
    assert spin.start(bundle_of(spin)).returncode == 0
    assert spin.zygotes() == [zygote]
    eventually(lambda: descriptors(zygote.pid) == before, "it keeps no descriptors")


def test_client_that_goes_away_does_not_kill_it(spin: ShimCommand) -> None:
    zygote = zygote_of(spin)
    for _ in range(20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(socket_of(spin)))
    assert spin.start(bundle_of(spin)).returncode == 0
    assert spin.zygotes() == [zygote]


def test_clients_that_say_nothing_hold_nobody_up(spin: ShimCommand) -> None:
    """As on a node so busy that they do not get to run: they would wait for each other."""
    zygote = zygote_of(spin)
    with ExitStack() as stack:
        for _ in range(10):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            client.settimeout(SECONDS)
            client.connect(str(socket_of(spin)))
        begun = time.monotonic()
        assert spin.start(bundle_of(spin)).returncode == 0
        assert time.monotonic() - begun < 5.0, "what a start waits for a zygote"
        assert client.recv(2) == b"!"
        assert client.recv(2) == b"", "dropped in the end"
    assert spin.zygotes() == [zygote]
    assert [shim.parent for shim in spin.shims()] == [zygote.pid] * 2


# What it is


def test_it_stays_small(spin: ShimCommand) -> None:
    """One thread, and few descriptors.

    Its socket, its wake-up pipe, /dev/null, the locks of its files; libffi keeps Python's own file
    open, and Python /dev/urandom where the C library it was built with has no getrandom.
    """
    zygote = zygote_of(spin)
    for name in ("c", "d"):
        spin.start(bundle_of(spin, name), name)
    status = Path(f"/proc/{zygote.pid}/status").read_text()
    assert "\nThreads:\t1\n" in status
    targets = [entry.split(" ", 1)[1].partition(":")[0] for entry in descriptors(zygote.pid)]
    kinds = ["lock" if target.endswith("/lock") else target for target in targets]
    theirs = re.compile("/dev/urandom|.*/files/bin/python[0-9.]+")
    kinds = sorted(kind for kind in kinds if not theirs.fullmatch(kind))
    assert kinds == ["/dev/null"] * 3 + ["lock"] * 2 + ["pipe"] * 2 + ["socket"]
    assert Path(f"/proc/{zygote.pid}/cwd").readlink() == Path("/")
    assert os.getsid(zygote.pid) == zygote.pid


def test_it_does_not_inherit_the_environment(spin: ShimCommand) -> None:
    spin.start(bundle_of(spin), env={"SECRET_OF_CONTAINERD": "s3cret"})
    [zygote] = spin.zygotes()
    assert "s3cret" not in Path(f"/proc/{zygote.pid}/environ").read_text()


def test_shim_holds_nothing_of_the_caller(spin: ShimCommand) -> None:
    zygote_of(spin)
    [shim] = spin.shims()
    found = dict(entry.split(" ", 1) for entry in descriptors(shim.pid))
    assert {found[number] for number in ("0", "1", "2")} == {"/dev/null"}


def test_zombies_are_reaped(spin: ShimCommand, tmp_path: Path) -> None:
    zygote = zygote_of(spin)
    for _ in range(3):
        spin.start(tmp_path)
    eventually(lambda: len(children_of(spin, zygote)) == 1, "only the shim is left")


# Its end, with the stub shim, whose zygote looks around more often


@pytest.fixture
def hasty(
    tmp_path: Path, namespace: str, make_launcher: Callable[[Path, Path, str], Path]
) -> Iterator[ShimCommand]:
    setup = (
        "import containerd_shimkit.zygote as z; z._WAKE_SECONDS = 0.05; z.IDLE_SECONDS = 0.2"
        " if 'zygote' in sys.argv else 0"
    )
    script = write_stub_binary(tmp_path / "python", build_id="test", setup=setup)
    binary = make_launcher(tmp_path / "shim", script, "test")
    with shim_command(binary, namespace) as command:
        yield command


def test_unused_zygote_ends(hasty: ShimCommand, tmp_path: Path) -> None:
    assert hasty.start(tmp_path / ".").returncode == 1  # no config.json: there is no shim
    for zygote in hasty.zygotes():
        with watched(zygote.pid) as pidfd:
            wait_dead(pidfd)
    assert list(hasty.run_directory.glob("*.sock")) == []


def test_zygote_ends_when_its_socket_is_removed(hasty: ShimCommand) -> None:
    zygote = zygote_of(hasty)
    with watched(zygote.pid) as pidfd:
        assert not select.select([pidfd], [], [], 0.5)[0], "it has a child and stays"
        socket_of(hasty).unlink()
        wait_dead(pidfd)
    assert is_listening(hasty.socket("first")), "its shims live on"
