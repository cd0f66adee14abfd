"""The built executable: its bytes, and how it unpacks itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.xdist_group("zygote")  # where the binary is built


def run(binary: Path, root: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.defpath, "CONTAINERD_WASM_SHIMS_ROOT": str(root)}
    return subprocess.run(
        [binary, *arguments], env=environment, capture_output=True, text=True, cwd="/", timeout=60
    )


def test_same_sources_give_the_same_bytes(
    build_binary: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = build_binary.install_libraries()
    for source in ("shared/src", "containerd-shim-spin-v1/src"):
        shutil.copytree(build_binary.REPOSITORY / source, tmp_path / source)
    monkeypatch.setattr(build_binary, "REPOSITORY", tmp_path)
    binaries = [tmp_path / "a" / "shim", tmp_path / "b" / "other"]
    for binary in binaries:
        build_binary.build("spin", libraries, binary)
    assert binaries[0].read_bytes() == binaries[1].read_bytes()
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["shim"]


def test_build_id_is_the_revision(spin_binary: Path, unpacked: Path) -> None:
    revision = re.search("Revision: ([0-9a-f]{16})$", run(spin_binary, unpacked, "-v").stdout, re.M)
    assert revision is not None
    assert [path.name for path in unpacked.iterdir()] == [revision[1]]


def test_first_runs_at_once_unpack_whole(spin_binary: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(10) as pool:
        done = list(pool.map(lambda _: run(spin_binary, tmp_path / "root", "-v"), range(10)))
    assert {(d.returncode, d.stderr) for d in done} == {(0, "")}
    assert len({d.stdout for d in done}) == 1
    [home] = (tmp_path / "root").iterdir()
    assert re.fullmatch("[0-9a-f]{16}", home.name)


def test_unpacking_that_was_interrupted_is_done_again(spin_binary: Path, tmp_path: Path) -> None:
    (tmp_path / ".new-abc").mkdir()
    assert run(spin_binary, tmp_path, "-v").returncode == 0


def test_nothing_of_the_environment_is_imported(spin_binary: Path, tmp_path: Path) -> None:
    (tmp_path / "containerd_shimkit.py").write_text("raise SystemExit('hijacked')")
    environment = {
        "PATH": os.defpath,
        "CONTAINERD_WASM_SHIMS_ROOT": str(tmp_path / "root"),
        "PYTHONPATH": str(tmp_path),
        "PYTHONSTARTUP": "/missing",
    }
    done = subprocess.run(
        [spin_binary, "-v"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("root", ["/proc/nowhere", "/dev/null/x"])
def test_unwritable_root_is_said(spin_binary: Path, root: str) -> None:
    done = run(spin_binary, root, "-v")
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(
        rf"{re.escape(str(spin_binary))}: cannot unpack to {root}/[0-9a-f]{{16}}: \[Errno .*; "
        r"set CONTAINERD_WASM_SHIMS_ROOT to another place\n",
        done.stderr,
    )


def test_test_kit_is_not_shipped(unpacked: Path) -> None:
    [home] = unpacked.iterdir()
    assert (home / "containerd_shimkit" / "shim.py").exists()
    assert not (home / "containerd_shimkit" / "testing").exists()
