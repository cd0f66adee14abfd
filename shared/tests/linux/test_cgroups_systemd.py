"""Scopes that a real systemd makes; what the connection says where there is none.

The fixture ``slice_name`` skips where no systemd runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from containerd_shimkit.errors import BundleError, FailedPreconditionError, SandboxError
from containerd_shimkit.linux import systemd as systemd_module
from containerd_shimkit.linux.cgroups import Cgroup, join, open_cgroup
from containerd_shimkit.linux.cgroups.base import wait_for
from containerd_shimkit.linux.systemd import SOCKETS, Systemd, SystemdError

SECONDS = 20.0
RESOURCES = {
    "devices": [{"allow": False, "access": "rwm"}],
    "memory": {"limit": 1 << 27},
    "cpu": {"shares": 512, "quota": 13000, "period": 100000},
    "pids": {"limit": 64},
}


# Without systemd


@pytest.fixture
def no_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd_module, "_BOOTED", str(tmp_path / "none"))


@pytest.mark.usefixtures("no_systemd")
def test_node_without_systemd_is_told_so() -> None:
    with pytest.raises(FailedPreconditionError, match=r'make "cri-c\.scope" in "a\.slice", and do'):
        open_cgroup("a.slice:cri:c", "c")


@pytest.mark.parametrize("path", ["a.slice:cri:b.slice", "a.slice:cri:ä", f"a.slice:c:{'x' * 250}"])
def test_path_that_names_no_scope_is_refused(path: str) -> None:
    with pytest.raises(BundleError, match="not the name of a scope"):
        open_cgroup(path, "c")


def test_connection_names_every_socket_that_failed(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("one", "two")]
    with pytest.raises(SystemdError, match=f"{paths[0]}: No such file.*; {paths[1]}: No such"):
        Systemd(1.0, paths)


def test_silent_socket_is_left_in_time(tmp_path: Path) -> None:
    path = str(tmp_path / "silent")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        begin = time.monotonic()
        with pytest.raises(SystemdError, match=r"connect to systemd: .*silent: timed out"):
            Systemd(0.2, [path])
    assert 0.2 <= time.monotonic() - begin < SECONDS


def answering(path: Path, answers: list[bytes]) -> int:
    """Fork a process that answers what it reads, and closes the connection after b""; its pid."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    pid = os.fork()
    if pid == 0:
        try:
            connection, _ = listener.accept()
            for answer in answers:
                connection.recv(4096)
                connection.sendall(answer)
            while answers[-1]:
                signal.pause()
        finally:
            os._exit(0)
    listener.close()
    return pid


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        pytest.param([b"REJECTED EXTERNAL\r\n"], "was answered b'REJECTED", id="rejected"),
        pytest.param([b"x" * 9000], "no end of the line b'xxx", id="endless"),
        pytest.param([b"OK 1\r\n"], "systemd did not answer in 1 s", id="no-answer"),
        pytest.param([b"OK 1\r\n", b""], "systemd closed the connection", id="closed"),
    ],
)
def test_other_side_that_is_no_systemd(tmp_path: Path, answers: list[bytes], text: str) -> None:
    pid = answering(tmp_path / "bus", answers)
    try:
        with pytest.raises(SystemdError, match=text):
            Systemd(1.0, [str(tmp_path / "bus")])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_authentication_has_ended_before_the_first_call(tmp_path: Path) -> None:
    """systemd does not see a call that it reads together with the end of the authentication."""
    uid = str(os.geteuid()).encode().hex().encode()
    read, write = os.pipe()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "bus"))
    listener.listen()
    pid = os.fork()
    if pid == 0:
        try:
            connection, _ = listener.accept()
            os.write(write, connection.recv(4096))
            connection.sendall(b"OK 1\r\n")
            os.write(write, connection.recv(1))
        finally:
            os._exit(0)
    listener.close()
    with pytest.raises(SystemdError):
        Systemd(SECONDS, [str(tmp_path / "bus")])
    os.waitpid(pid, 0)
    assert os.read(read, 4096) == b"\0AUTH EXTERNAL %s\r\nBEGIN\r\nl" % uid
    os.close(read)
    os.close(write)


# With systemd


@pytest.fixture
def scope(slice_name: str) -> Iterator[Cgroup]:
    cgroup = open_cgroup(f"{slice_name}:kit:c-{slice_name[7:15]}", "c")
    yield cgroup
    cgroup.kill_all()
    cgroup.delete(SECONDS)


def unit_of(cgroup: Cgroup) -> str:
    return cgroup.path.rpartition("/")[2]


def show(cgroup: Cgroup, *names: str) -> dict[str, str]:
    command = ["systemctl", "show", unit_of(cgroup), *(f"--property={name}" for name in names)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(line.split("=", 1) for line in output.splitlines())


def joined(cgroup: Cgroup) -> int:
    """Fork a process that is in the cgroup, as an init is; return its pid."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            join(cgroup.procs_fds())
            cgroup.let_go()
            os.write(write, b"!")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    cgroup.let_go()
    assert os.read(read, 1) == b"!"
    os.close(read)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@contextlib.contextmanager
def process_in(cgroup: Cgroup) -> Iterator[int]:
    pid = joined(cgroup)
    try:
        yield pid
    finally:
        end(pid)


def soon(condition: Callable[[], bool]) -> bool:
    return wait_for(condition, SECONDS)


def test_scope_is_systemds_and_holds_the_container_alone(scope: Cgroup, slice_name: str) -> None:
    scope.create()
    [placeholder] = scope.pids()
    with process_in(scope) as pid:
        os.waitpid(placeholder, 0)
        assert scope.pids() == [pid]
        found = show(scope, "Slice", "Delegate", "ActiveState", "DefaultDependencies", "Transient")
        assert found == {
            "Slice": slice_name,
            "Delegate": "yes",
            "ActiveState": "active",
            "DefaultDependencies": "no",
            "Transient": "yes",
        }
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        paths = {
            name.removeprefix("name="): path
            for _, name, path in (line.split(":") for line in lines)
        }
        names = {"" if name == "unified" else name for name in scope.directories}
        assert {paths[name] for name in names} == {scope.path}
    scope.delete(SECONDS)
    assert show(scope, "LoadState") == {"LoadState": "not-found"}
    assert [str(d) for d in scope.directories.values() if d.exists()] == []


def test_scope_that_became_empty_is_gone_by_itself(scope: Cgroup) -> None:
    scope.create()
    end(joined(scope))
    assert soon(lambda: show(scope, "LoadState")["LoadState"] == "not-found")
    scope.delete(SECONDS)
    assert not scope.exists()


def test_scope_of_a_failed_create_is_gone(scope: Cgroup) -> None:
    """No process has joined: the placeholder ends when nobody waits for one any more."""
    scope.create()
    scope.delete(SECONDS)
    assert show(scope, "LoadState") == {"LoadState": "not-found"}
    scope.delete(SECONDS)


def test_limits_outlive_a_daemon_reload(scope: Cgroup) -> None:
    scope.create()
    with process_in(scope):
        assert [text for text in scope.apply(RESOURCES) if "device" not in text] == []
        scope.apply({"pids": {"limit": 33}, "memory": {"limit": 1 << 28}})
        before = limits(scope)
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        with Systemd(SECONDS) as systemd:  # it answers when it has done what it was told before
            systemd.set_properties(unit_of(scope), [])
        after = limits(scope)
        assert (scope.stats().memory.limit, scope.stats().pids_limit) == (1 << 28, 33)
        assert before["quota"].split()[0] == "13000"
        assert after == before


def limits(cgroup: Cgroup) -> dict[str, str]:
    """What the kernel has, of the limits that systemd knows."""
    names = {
        "quota": ("cpu", "cpu.cfs_quota_us", "cpu.max"),
        "weight": ("cpu", "cpu.shares", "cpu.weight"),
        "memory": ("memory", "memory.limit_in_bytes", "memory.max"),
        "pids": ("pids", "pids.max", "pids.max"),
        "devices": ("devices", "devices.list", "none"),
    }
    by_controller = {c: d for name, d in cgroup.directories.items() for c in name.split(",")}
    found = {}
    for key, (controller, *files) in names.items():
        path = by_controller.get(controller, cgroup.main) / files[cgroup.version - 1]
        if path.exists():
            found[key] = "\n".join(sorted(path.read_text().splitlines()))
    return found


def test_unit_that_failed_is_reset_first(scope: Cgroup) -> None:
    with Systemd(SECONDS) as systemd:
        sleeper = subprocess.Popen(["sleep", "1000"])
        systemd.start_transient_unit(
            unit_of(scope), [("PIDs", ("au", [sleeper.pid])), ("RuntimeMaxUSec", ("t", 1))]
        )
        sleeper.wait(SECONDS)
    assert soon(lambda: show(scope, "ActiveState")["ActiveState"] == "failed")
    scope.create()
    assert show(scope, "ActiveState") == {"ActiveState": "active"}


def test_second_container_of_the_same_path_leaves_the_first_alone(scope: Cgroup) -> None:
    scope.create()
    with process_in(scope) as pid:
        second = open_cgroup(f"{scope.path.split('/')[1]}:kit:{unit_of(scope)[4:-6]}", "d")
        assert second.path == scope.path
        with pytest.raises(SandboxError, match="in it already"):
            second.create()
        with pytest.raises(SandboxError, match="still in use"):
            second.delete(0.05)
        assert scope.pids() == [pid]
        assert show(scope, "ActiveState") == {"ActiveState": "active"}


def test_refusal_is_systemds_own(scope: Cgroup) -> None:
    scope.create()
    with pytest.raises(SystemdError, match=f'set properties of unit "{unit_of(scope)}": .*ange'):
        scope.apply({"blockIO": {"weight": 50_000}})


def test_freeze_and_update_of_a_frozen_scope(scope: Cgroup) -> None:
    scope.create()
    with process_in(scope):
        scope.freeze()
        scope.apply({"pids": {"limit": 7}})
        if scope.version == 1:
            state = scope.directories["freezer"] / "freezer.state"
            assert state.read_text() == "FROZEN\n"
        else:
            assert "frozen 1" in (scope.main / "cgroup.events").read_text()
        scope.thaw()
        assert scope.stats().pids_limit == 7


@pytest.mark.parametrize("path", SOCKETS)
def test_each_socket_starts_and_stops_a_unit(path: str, slice_name: str) -> None:
    sleeper = subprocess.Popen(["sleep", "1000"])
    unit = f"kit-{slice_name[7:15]}.scope"
    try:
        with Systemd(SECONDS, [path]) as systemd:
            assert systemd.version >= 240
            properties = [("PIDs", ("au", [sleeper.pid])), ("Slice", ("s", slice_name))]
            systemd.start_transient_unit(unit, properties)
            assert unit in Path(f"/proc/{sleeper.pid}/cgroup").read_text()
            systemd.stop_unit(unit)
            systemd.stop_unit(unit)
        assert sleeper.wait(SECONDS) == -signal.SIGTERM
    finally:
        sleeper.kill()
        sleeper.wait()
