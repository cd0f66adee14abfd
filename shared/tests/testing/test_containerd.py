"""The private containerd of the test kit, with runc and busybox as the workload."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile, write_image_archive
from containerd_shimkit.testing.containerd import Containerd, ContainerdError
from containerd_shimkit.testing.leftovers import Machine, assert_nothing_left, snapshot_machine

pytestmark = [pytest.mark.root, pytest.mark.containerd]

IMAGE = "docker.io/library/kit-busybox:latest"


@pytest.fixture(scope="session")
def busybox() -> Path:
    """A busybox that needs no libraries, as Debian's busybox-static is."""
    found = shutil.which("busybox")
    if found is None or subprocess.run(["ldd", found], capture_output=True).returncode == 0:
        pytest.skip("needs a static busybox: apt-get install busybox-static")
    return Path(found)


@pytest.fixture(scope="session")
def image(busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = tmp_path_factory.mktemp("image") / "busybox.tar"
    files = [ImageFile("bin/sh", busybox.read_bytes(), 0o755)]
    write_image_archive(archive, IMAGE, files, entrypoint=["/bin/sh"])
    return archive


@pytest.fixture
def sleeper(containerd: Containerd, image: Path) -> str:
    """A running container that sleeps for longer than any test."""
    containerd.import_image(image)
    containerd.ctr("run", "--detach", IMAGE, "sleeper", "/bin/sh", "-c", "sleep 600")
    return "sleeper"


def test_client_and_server_are_of_one_version(containerd: Containerd) -> None:
    client, server = re.findall(r"Version: +(\S+)", containerd.ctr("version").stdout)
    assert client == server


def test_runs_a_container(containerd: Containerd, image: Path) -> None:
    containerd.import_image(image)
    command = ("/bin/sh", "-c", "echo hello; exit 3")
    result = containerd.ctr("run", "--rm", IMAGE, "once", *command, check=False)
    assert (result.stdout, result.returncode) == ("hello\n", 3)


def test_input_reaches_the_container(containerd: Containerd, image: Path) -> None:
    containerd.import_image(image)
    command = ("/bin/sh", "-c", "read line; echo got $line")
    result = containerd.ctr("run", "--rm", IMAGE, "reader", *command, input="abc\n")
    assert result.stdout == "got abc\n"


def test_failed_command_shows_what_it_printed(containerd: Containerd) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        containerd.ctr("run", "docker.io/library/missing:latest", "x")
    assert "not found" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("end", [Containerd.terminate, Containerd.kill])
def test_container_survives_the_daemon(
    containerd: Containerd, sleeper: str, end: Callable[[Containerd], None]
) -> None:
    end(containerd)
    containerd.start()
    assert sleeper in containerd.ctr("tasks", "list", "-q").stdout.split()


def test_stop_ends_what_runs_and_leaves_nothing(
    tmp_path: Path, shim_dir: Path, image: Path
) -> None:
    with Containerd(tmp_path, shim_dir=shim_dir) as daemon:
        scope = daemon.scope
        before = snapshot_machine(scope)
        daemon.import_image(image)
        daemon.ctr("run", "--detach", IMAGE, "sleeper", "/bin/sh", "-c", "sleep 600")
        with pytest.raises(AssertionError, match="sleep 600"):
            assert_nothing_left(before, snapshot_machine(scope))
    assert snapshot_machine(scope) == Machine()
    assert [path.name for path in tmp_path.iterdir()] == ["containerd.log"]


def test_stop_after_a_crash_ends_what_the_daemon_left(
    tmp_path: Path, shim_dir: Path, image: Path
) -> None:
    with Containerd(tmp_path, shim_dir=shim_dir) as daemon:
        scope = daemon.scope
        daemon.import_image(image)
        daemon.ctr("run", "--detach", IMAGE, "sleeper", "/bin/sh", "-c", "sleep 600")
        daemon.kill()
    assert snapshot_machine(scope, [daemon.runc_dir]) == Machine()
    assert daemon.leftovers


def test_successor_clears_away_what_a_killed_owner_left(
    tmp_path: Path, shim_dir: Path, image: Path
) -> None:
    """As when the program that started a daemon gets SIGKILL and is started again."""
    first = Containerd(tmp_path, shim_dir=shim_dir)
    with first:
        scope = first.scope
        first.import_image(image)
        first.ctr("run", "--detach", IMAGE, "sleeper", "/bin/sh", "-c", "sleep 600")
        before = first.pid
        with Containerd(tmp_path, shim_dir=shim_dir) as second:
            assert before in {process.pid for process in second.leftovers}
            assert second.ctr("tasks", "list", "-q", namespace=first.namespace).stdout == ""
            assert snapshot_machine([f"/{first.namespace}"]) == Machine()
    assert snapshot_machine(scope, [first.runc_dir]) == Machine()


def test_deep_directory_does_not_make_sockets_too_long(tmp_path: Path, shim_dir: Path) -> None:
    deep = tmp_path.joinpath(*["deep-directory"] * 12)
    with Containerd(deep, shim_dir=shim_dir) as daemon:
        assert len(daemon.address) < 60
        assert daemon.ctr("version").returncode == 0


def test_shims_get_their_directories_and_the_given_variables(
    tmp_path: Path, shim_dir: Path
) -> None:
    with Containerd(tmp_path, shim_dir=shim_dir, env={"EXTRA": "1"}) as daemon:
        raw = Path(f"/proc/{daemon.pid}/environ").read_text().split("\0")
        variables = dict(item.split("=", 1) for item in raw if item)
        assert variables["CONTAINERD_WASM_SHIMS_RUN"] == str(daemon.shims_runtime_dir)
        assert variables["CONTAINERD_WASM_SHIMS_CACHE"] == str(tmp_path / "cache")
        assert variables["PATH"].startswith(f"{shim_dir}:")
        assert variables["EXTRA"] == "1"


def test_daemon_that_cannot_start_says_why(tmp_path: Path, shim_dir: Path) -> None:
    with pytest.raises(ContainerdError, match="cannot run /nowhere/containerd"):
        Containerd(tmp_path, shim_dir=shim_dir, binary="/nowhere/containerd").__enter__()
    assert list(tmp_path.iterdir()) == [tmp_path / "containerd.log"]


def test_report_lists_a_process_that_was_left() -> None:
    """Marked by its command line; the words of this very test do not count as such."""
    word = "cw-marked-process"
    before = snapshot_machine([word])
    with subprocess.Popen(["sleep", "600"], env={"MARK": word}) as process:
        after = snapshot_machine([word])
        process.send_signal(signal.SIGKILL)
    with pytest.raises(AssertionError, match=rf"processes:\n  \+ {process.pid} .*sleep 600"):
        assert_nothing_left(before, after)


def test_report_lists_a_socket_that_was_left(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    before = snapshot_machine([str(tmp_path)], [tmp_path])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        after = snapshot_machine([str(tmp_path)], [tmp_path])
    with pytest.raises(AssertionError, match="sockets"):
        assert_nothing_left(before, after)
    assert after.files == {path}
