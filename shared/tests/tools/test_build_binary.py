"""The built executable: its bytes, and how it is made."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.xdist_group("zygote")  # where the binary is built

MEGABYTE = 1 << 20


def run(binary: Path, root: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.defpath, "CONTAINERD_WASM_SHIMS_ROOT": str(root)}
    return subprocess.run(
        [binary, *arguments], env=environment, capture_output=True, text=True, cwd="/", timeout=60
    )


def test_same_sources_give_the_same_bytes(
    build_binary: ModuleType,
    spin_binary: Path,
    pytestconfig: pytest.Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All is made twice, the second time elsewhere and of nothing that was kept."""
    root = pytestconfig.rootpath
    for source in ("shared/src", "shared/launcher", "containerd-shim-spin-v1/src"):
        shutil.copytree(root / source, tmp_path / source)
    archive, launcher, places, runtime = (
        importlib.import_module(f"binary.{name}")
        for name in ("archive", "launcher", "places", "runtime")
    )
    for module in (places, runtime, launcher):
        monkeypatch.setattr(module, "BUILD", tmp_path / "build")
    for module in (places, launcher):
        monkeypatch.setattr(module, "LAUNCHER", tmp_path / "shared/launcher")
    # Packing is a matter of zstd alone, and takes most of a build: at its fastest here.
    monkeypatch.setattr(archive, "_LEVEL", "-1")
    interpreter = build_binary.chosen_interpreter()
    first = tmp_path / "a" / "shim"
    build_binary.build(
        "spin", interpreter, build_binary.build_runtime(interpreter), first, tmp_path
    )
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["shim"]
    revisions = [run(binary, tmp_path / "root", "-v").stdout for binary in (first, spin_binary)]
    assert revisions[0] == revisions[1], "the digest of all that is packed"


def test_packing_gives_the_same_bytes(build_binary: ModuleType, tmp_path: Path) -> None:
    data = b"".join(b"%d" % number for number in range(1_000_000))
    packed = [build_binary.compress(data, tmp_path / name) for name in ("a", "b")]
    assert packed[0] == packed[1]


def test_all_that_the_file_holds_is_small(spin_binary: Path) -> None:
    assert spin_binary.stat().st_size < 25 * MEGABYTE


def test_nothing_of_the_building_machine_is_in_it(
    unpacked: Path, pytestconfig: pytest.Config
) -> None:
    paths = {str(pytestconfig.rootpath).encode(), str(Path.home() / ".pyenv").encode()}
    found = {
        (str(file), path)
        for file in unpacked.rglob("*.pyc")
        for path in paths
        if path in file.read_bytes()
    }
    assert found == set()


def test_it_is_a_static_program(spin_binary: Path) -> None:
    """The kernel alone can start it: no interpreter is named in its program headers."""
    done = subprocess.run(
        ["readelf", "-lW", spin_binary], capture_output=True, text=True, check=True
    )
    assert "LOAD" in done.stdout
    assert "INTERP" not in done.stdout


@pytest.mark.parametrize("name", ["spin", "slight", "wws"])
def test_version(
    build_binary: ModuleType, shim_dir: Path, spin_binary: Path, tmp_path: Path, name: str
) -> None:
    """It is printed at once, and nothing unpacked."""
    binary = spin_binary if name == "spin" else shim_dir / f"containerd-shim-{name}-v1"
    if not binary.exists():
        pytest.skip(f"needs {binary}: make build")
    done = run(binary, tmp_path / "root", "-v")
    assert (done.returncode, done.stderr) == (0, "")
    revision = re.search("Revision: ([0-9a-f]{16})$", done.stdout, re.M)
    assert revision is not None
    assert done.stdout == build_binary.version_text(build_binary.kind_of(name), revision[1])
    assert not (tmp_path / "root").exists()


def test_build_id_is_the_revision(spin_binary: Path, unpacked: Path) -> None:
    revision = re.search("Revision: ([0-9a-f]{16})$", run(spin_binary, unpacked, "-v").stdout, re.M)
    assert revision is not None
    assert (unpacked / f"spin-{revision[1]}").is_dir()


def test_nothing_of_the_environment_is_imported(spin_binary: Path, tmp_path: Path) -> None:
    (tmp_path / "containerd_shimkit.py").write_text("raise SystemExit('hijacked')")
    environment = {
        "PATH": os.defpath,
        "CONTAINERD_WASM_SHIMS_ROOT": str(tmp_path / "root"),
        "PYTHONPATH": str(tmp_path),
        "PYTHONHOME": str(tmp_path),
        "PYTHONSTARTUP": "/missing",
    }
    done = subprocess.run(
        [spin_binary, "-info"], env=environment, cwd=tmp_path, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_test_kit_and_sources_are_not_shipped(unpacked: Path) -> None:
    [files] = unpacked.glob("spin-*/files")
    assert (files / "containerd_shimkit" / "shim.pyc").exists()
    assert not (files / "containerd_shimkit" / "testing").exists()
    assert list(unpacked.rglob("*.py")) == []


def test_another_python_can_be_chosen(
    build_binary: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLED_PYTHON", sys.executable)
    chosen = build_binary.chosen_interpreter()
    assert chosen.version == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert chosen.executable.is_relative_to(Path(sys.base_prefix).resolve())
    assert (chosen.libraries[0] / "os.py").exists()
    monkeypatch.delenv("BUNDLED_PYTHON")
    assert build_binary.chosen_interpreter().digest != chosen.digest


def test_missing_network_is_said(
    build_binary: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = importlib.import_module("binary.interpreter")
    monkeypatch.setattr(interpreter, "DOWNLOADS", tmp_path)
    monkeypatch.setenv("GOPROXY", "http://127.0.0.1:1/,direct")
    with pytest.raises(build_binary.BuildError, match=r"127\.0\.0\.1:1/.* BUNDLED_PYTHON="):
        interpreter.pinned_interpreter()
    assert list(tmp_path.iterdir()) == []
