"""Another build of a shim takes the place of one whose pods run, and another containerd."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from containerd_shimkit.testing.apps import App, Node, end_process
from containerd_shimkit.testing.fixtures import (
    ON_EACH_CONTAINERD,
    containerd_program,
    running_containerd,
)
from containerd_shimkit.testing.leftovers import find_processes
from containerd_shimkit.testing.pods import run_sidecar, run_web
from containerd_shimkit.testing.shim_nodes import import_example, make_node, running_cri

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.xdist_group("zygote")]

NAME = "containerd-shim-spin-v1"
HELLO = (200, b"Hello world from Spin!")


@pytest.fixture
def installed(spin_binary: Path, tmp_path: Path) -> Path:
    """The directory on containerd's PATH with the old build."""
    directory = tmp_path / "bin"
    directory.mkdir()
    replace(directory, spin_binary)
    return directory


@pytest.fixture
def upgraded(installed: Path, newer_binary: Path) -> Callable[[], None]:
    """Puts the new build where the old one is."""
    return lambda: replace(installed, newer_binary)


@pytest.fixture
def node(
    installed: Path, tmp_path: Path, containerd_binary: str, pytestconfig: pytest.Config
) -> Iterator[Node]:
    """A node with the old build, which unpacks itself to a directory of this test's."""
    daemon = running_containerd(
        tmp_path / "containerd", installed, tmp_path / "home", binary=containerd_binary
    )
    with daemon as started:
        root = pytestconfig.rootpath
        node = make_node(
            started, tmp_path / "apps", installed, "spin", lambda n: import_example(n, root, "spin")
        )
        with node.leaving_nothing():
            yield node


@pytest.fixture
def run(node: Node, pytestconfig: pytest.Config) -> Callable[[], App]:
    """Starts the example."""
    image = import_example(node, pytestconfig.rootpath, "spin")
    return lambda: node.run(image)


def replace(directory: Path, binary: Path) -> None:
    """Put a build in the place of what is there, as `install` and the node installer do."""
    shutil.copy(binary, directory / f".{NAME}.new")
    (directory / f".{NAME}.new").rename(directory / NAME)


def says_hello(app: App) -> bool:
    answer = app.get("/hello")
    return (answer.status, answer.body) == HELLO


def build_of(app: App) -> str:
    """Return the build id of an app's shim: its zygote's name has it."""
    processes = {process.pid: process for process in find_processes(app.node.daemon.scope)}
    zygote = processes[processes[app.shim_pid].parent]
    found = re.search(r" zygote .*/spin-(\w+)\.sock", zygote.command)
    assert found, zygote.command
    return found[1]


def unpacked(tmp_path: Path) -> set[str]:
    """Return the builds whose files are there."""
    return {path.name.removeprefix("spin-") for path in (tmp_path / "home/root").glob("spin-*")}


@ON_EACH_CONTAINERD
def test_old_pods_go_on_and_new_ones_are_of_the_new_build(
    run: Callable[[], App], upgraded: Callable[[], None], tmp_path: Path
) -> None:
    old = run()
    old_build = build_of(old)
    upgraded()
    new = run()
    assert build_of(new) != old_build
    assert build_of(old) == old_build
    assert unpacked(tmp_path) == {old_build, build_of(new)}, "what the old pod runs from stays"
    assert says_hello(old)
    assert says_hello(new)
    assert old.node.daemon.ctr("task", "metrics", old.id).stdout
    assert old.stop() == 0
    assert new.stop() == 0


@ON_EACH_CONTAINERD
def test_old_pod_after_a_restart_of_containerd(
    node: Node, run: Callable[[], App], upgraded: Callable[[], None]
) -> None:
    old = run()
    old_build = build_of(old)
    upgraded()
    node.daemon.restart()
    assert says_hello(old)
    assert build_of(run()) != old_build
    assert old.stop() == 0


@ON_EACH_CONTAINERD
def test_new_build_clears_up_behind_an_old_shim(
    node: Node, run: Callable[[], App], upgraded: Callable[[], None]
) -> None:
    old = run()
    upgraded()
    end_process(old.shim_pid, signal.SIGKILL)
    old.wait_for_process()
    node.delete_task(old.id, "-f")
    node.daemon.ctr("container", "rm", old.id)
    assert says_hello(run())


def test_downgrade_is_an_upgrade(
    installed: Path, spin_binary: Path, run: Callable[[], App], upgraded: Callable[[], None]
) -> None:
    old_build = build_of(run())
    upgraded()
    newer = run()
    assert build_of(newer) != old_build
    replace(installed, spin_binary)
    older = run()
    assert build_of(older) == old_build
    assert says_hello(newer)
    assert says_hello(older)


def test_compiled_modules_are_used_by_the_new_build(
    run: Callable[[], App], upgraded: Callable[[], None], tmp_path: Path
) -> None:
    """It has the same wasmtime."""

    def entries() -> dict[str, int]:
        return {p.name: p.stat().st_ino for p in (tmp_path / "home/cache").glob("*.cwasm")}

    run()
    before = entries()
    upgraded()
    run()
    assert entries() == before != {}


@pytest.mark.skipif("TEST_CONTAINERD" in os.environ, reason="needs both versions of containerd")
def test_pod_goes_on_below_a_newer_containerd(
    tmp_path: Path, shim_dir: Path, shims_home: Path, pytestconfig: pytest.Config
) -> None:
    """From 1.6 to 2.4, which reads the configuration of the older one as it is."""
    root = pytestconfig.rootpath
    newer = containerd_program("2.4", root)
    archive = root / "dist/images/spin.tar"
    if not archive.exists():
        pytest.skip(f"needs {archive}: make images")
    with running_cri(tmp_path, root, shim_dir, shims_home, "spin", "1.6") as cri:
        busybox = cri.import_busybox()
        cri.daemon.ctr("image", "import", str(archive), namespace="k8s.io")
        image = "docker.io/library/wasmtest_spin:latest"
        cri.wait_for_image(image)
        with cri.leaving_nothing():
            pod = cri.run_pod(handler="spin", host_network=True)
            web, sidecar = run_web(cri, pod, image), run_sidecar(cri, pod, busybox)

            cri.daemon.restart(newer)
            cri.wait_until_ready()
            assert web.get("/hello") == (200, "Hello world from Spin!")
            assert cri.pod_is_ready(pod)
            assert cri.is_running(web.id)
            assert cri.stats(web.id).memory.working_set_bytes.value > 0
            assert cri.exec_sync(sidecar, "/bin/busybox", "echo", "here") == ("here\n", 0)
            again = run_web(cri, pod, image, "again")
            assert again.get("/hello")[0] == 200

            for container, code in ((web.id, 0), (again.id, 0), (sidecar, 7)):
                cri.stop_container(container, 20)
                assert cri.exit_code(container) == code
            cri.stop_pod(pod)
            cri.remove_pod(pod)
            other = cri.run_pod(handler="spin", host_network=True)
            assert run_web(cri, other, image).get("/hello")[0] == 200


def test_version_tells_builds_apart(spin_binary: Path, newer_binary: Path) -> None:
    def lines(binary: Path) -> set[str]:
        output = subprocess.run([binary, "-v"], check=True, capture_output=True, text=True).stdout
        return set(output.splitlines())

    differing = lines(spin_binary) ^ lines(newer_binary)
    assert {line.split(":")[0].strip() for line in differing} == {"Revision"}


def test_configuration_that_containerd_migrates(
    spin_binary: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """`config migrate` drops comments, by which `--remove` knows our lines: they come after it."""
    newer = containerd_program("2.4", pytestconfig.rootpath)
    file = tmp_path / "config.toml"
    original = 'version = 2\nroot = "/srv/containerd"\n'

    def config(*arguments: str, containerd: str) -> str:
        command = [
            str(spin_binary),
            "config",
            "--file",
            str(file),
            "--containerd",
            containerd,
            *arguments,
        ]
        environment = {"PATH": os.defpath, "CONTAINERD_WASM_SHIMS_ROOT": str(tmp_path / "root")}
        return subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment, timeout=60
        ).stdout

    def migrate() -> None:
        command = [newer, "--config", str(file), "config", "migrate"]
        file.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)

    file.write_text(original)
    config("--write", containerd="/usr/bin/containerd")
    migrate()
    assert "nothing to change" in config("--write", containerd=newer)
    assert "nothing to change" in config("--remove", containerd=newer)
    assert "io.containerd.spin.v1" in file.read_text()

    file.write_text(original)
    config("--write", containerd="/usr/bin/containerd")
    assert "is taken out" in config("--remove", containerd="/usr/bin/containerd")
    assert file.read_text() == original
    migrate()
    migrated = file.read_text()
    config("--write", containerd=newer)
    assert '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.spin]' in file.read_text()
    config("--remove", containerd=newer)
    assert file.read_text() == migrated
