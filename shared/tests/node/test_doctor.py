"""``containerd-shim-… doctor`` on a containerd that is ready, and on some that are not."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from containerd_shimkit.node.daemons import Daemon, find_daemons
from containerd_shimkit.node.doctor import Finding, State, examine
from containerd_shimkit.runtime import ShimKind
from containerd_shimkit.testing.containerd import Containerd
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD, running_containerd
from containerd_shimkit.testing.layouts import LAYOUTS
from containerd_shimkit.testing.node_root import running_node

pytestmark = [pytest.mark.root, pytest.mark.containerd]

SPIN = ShimKind("spin", "", "1.2.3")
Examine = Callable[..., list[Finding]]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Examine the node as if it had one containerd."""
    monkeypatch.setenv("CONTAINERD_WASM_SHIMS_ROOT", str(tmp_path / "shims"))

    def run(daemon: Containerd, handler: str = "spin") -> list[Finding]:
        processes = tmp_path / "processes"
        processes.mkdir(exist_ok=True)
        for name in ("stat", str(daemon.pid)):
            (processes / name).symlink_to(f"/proc/{name}")
        return list(examine(SPIN, handler, processes))

    return run


def failed(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.state is State.FAILED]


@pytest.fixture
def shims(tmp_path: Path) -> Path:
    """A directory with what could be a shim."""
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / SPIN.binary).touch(0o755)
    return directory


@ON_EACH_CONTAINERD
def test_ready(
    tmp_path: Path, shims: Path, shims_home: Path, containerd_binary: str, look: Examine
) -> None:
    place = tmp_path / "containerd"
    with running_containerd(place, shims, shims_home, binary=containerd_binary, cri=True) as daemon:
        findings = look(daemon)
        texts = [finding.what for finding in findings]
        assert failed(findings) == []
        assert f"containerd ({daemon.pid}) finds {shims / SPIN.binary}" in texts
    assert any('runtime "spin" is io.containerd.spin.v1' in text for text in texts)


@ON_EACH_CONTAINERD
def test_nothing_is_installed(
    tmp_path: Path, shims: Path, shims_home: Path, containerd_binary: str, look: Examine
) -> None:
    (shims / SPIN.binary).unlink()
    with running_containerd(
        tmp_path / "containerd", shims, shims_home, binary=containerd_binary
    ) as daemon:
        silent, program, runtime = failed(look(daemon))
        assert silent.what.endswith("runs no pods: it runs, but its CRI plugin does not")
        assert program.what == f"containerd ({daemon.pid}) finds no {SPIN.binary}"
    assert program.advice.startswith(f"copy it to one of {shims}:")
    assert 'has no runtime "spin"' in runtime.what
    assert runtime.advice == f"{SPIN.binary} config --write --restart"


def test_other_runtime_and_a_file_not_read_yet(
    tmp_path: Path, shims: Path, shims_home: Path, look: Examine
) -> None:
    with running_containerd(tmp_path / "containerd", shims, shims_home, cri=True) as daemon:
        (found,) = find_daemons_of(daemon)
        text = found.config.read_text()
        found.config.write_text(text.replace("io.containerd.spin.v1", "io.containerd.spin.v2"))
        (other,) = failed(look(daemon))
        assert 'runtime "spin" is io.containerd.spin.v2, not io.containerd.spin.v1' in other.what
    shutil.rmtree(tmp_path / "processes")
    with running_containerd(tmp_path / "again", shims, shims_home, cri=True) as daemon:
        (found,) = find_daemons_of(daemon)
        later = time.time() + 60
        os.utime(found.config, (later, later))
        (newer,) = failed(look(daemon))
        assert "which has not read it" in newer.what


def find_daemons_of(daemon: Containerd) -> list[Daemon]:
    return [found for found in find_daemons(Path("/proc")) if found.pid == daemon.pid]


@ON_EACH_CONTAINERD
def test_containerd_in_a_container_is_not_the_node_s(
    tmp_path: Path, containerd_binary: str
) -> None:
    """Docker in Docker, kind: it has a root of its own."""
    with running_node(tmp_path, LAYOUTS["debian"], containerd_binary) as node:
        assert Path(f"/proc/{node.daemon.pid}/comm").read_text() == "containerd\n"
        assert find_daemons_of(node.daemon) == []


def test_directory_without_execution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Path
) -> None:
    place = tmp_path / "noexec"
    place.mkdir()
    monkeypatch.setenv("CONTAINERD_WASM_SHIMS_ROOT", str(place / "shims"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec,size=1m", "none", place], check=True)
    try:
        findings = list(examine(SPIN, "spin", processes))
    finally:
        subprocess.run(["umount", place], check=True)
    assert [f.what for f in failed(findings)] == [
        f"{place}/shims is mounted noexec: the shim's programs are unpacked there",
        "containerd does not run",
    ]
    assert any("MiB left" in f.what for f in findings if f.state is State.WARNING)


@pytest.fixture
def processes(tmp_path: Path) -> Path:
    """``/proc`` of a node where no containerd runs."""
    directory = tmp_path / "processes"
    directory.mkdir()
    (directory / "stat").symlink_to("/proc/stat")
    return directory


@pytest.mark.parametrize(
    ("release", "state"),
    [("4.19.0-1", State.FAILED), ("5.10.0", State.WARNING), ("6.1.0-13-amd64", State.OK)],
)
def test_kernels(
    release: str, state: State, monkeypatch: pytest.MonkeyPatch, processes: Path
) -> None:
    uname = os.uname()
    monkeypatch.setattr(
        os, "uname", lambda: type(uname)((uname[0], uname[1], release, uname[3], uname[4]))
    )
    kernel = next(iter(examine(SPIN, "spin", processes)))
    assert (kernel.state, kernel.what) == (state, f"kernel {release}")
