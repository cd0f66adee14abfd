"""The binaries where there is nothing: no Python, no C library, no ``/lib``, no ``/etc``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from containerd_shimkit.testing.apps import Node
from containerd_shimkit.testing.containerd import Containerd
from containerd_shimkit.testing.leftovers import find_processes

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("zygote")]

SHIM = "containerd-shim-spin-v1"
WRAPPER = Path(__file__).with_name("empty_root.c")
NAMES = ["containerd-shim-spin-v1", "containerd-shim-slight-v1", "containerd-shim-wws-v1"]


@pytest.fixture
def wrapper(tmp_path: Path) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc: make build installs it")
    program = tmp_path / "bin" / SHIM
    program.parent.mkdir()
    subprocess.run(["gcc", "-static", "-Wall", "-Werror", "-o", program, WRAPPER], check=True)
    return program


@pytest.mark.parametrize("name", NAMES)
def test_version(shim_dir: Path, tmp_path: Path, name: str) -> None:
    """In a directory that holds the file alone, with nothing mounted and no descriptor open."""
    if not (shim_dir / name).exists():
        pytest.skip(f"needs {shim_dir / name}: make build")
    for directory in ("proc", "dev", "tmp"):
        (tmp_path / directory).mkdir()
    shutil.copy(shim_dir / name, tmp_path / name)
    script = 'mount --bind /proc "$1/proc" && exec chroot "$1" "/$2" -v'
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
            tmp_path,
            name,
        ],
        capture_output=True,
        text=True,
        env={"PATH": f"{os.defpath}:/usr/sbin:/sbin"},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{name}:\n  Runtime: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["proc", "dev", "tmp", name])


@pytest.mark.containerd
def test_hello_is_served(
    shim_dir: Path,
    tmp_path: Path,
    wrapper: Path,
    default_binary: str,
    pytestconfig: pytest.Config,
) -> None:
    archive = pytestconfig.rootpath / "dist" / "images" / "spin.tar"
    if not archive.exists():
        pytest.skip(f"needs {archive}: make images")
    root = tmp_path / "root"
    (root / "tmp").mkdir(parents=True)
    (root / "etc").mkdir()
    for name in ("hosts", "resolv.conf"):  # ``ctr --net-host`` has them mounted into the container
        shutil.copy(Path("/etc", name), root / "etc" / name)
    shutil.copy(shim_dir / SHIM, root / SHIM)
    apps = tmp_path / "apps"
    apps.mkdir()
    # What containerd hands to a shim by its path: bundles, layers, logs, sockets and FIFOs.
    places = ["/proc", "/dev", "/sys", "/run/containerd", str(tmp_path / "containerd"), str(apps)]
    daemon = Containerd(
        tmp_path / "containerd",
        shim_dir=wrapper.parent,
        binary=default_binary,
        env={
            "EMPTY_ROOT": str(root),
            "EMPTY_ROOT_BINDS": ":".join(places),
            "CONTAINERD_WASM_SHIMS_ROOT": "/shims",
            "CONTAINERD_WASM_SHIMS_CACHE": "/shims/cache",
        },
    )
    with daemon:
        node = Node(daemon, apps, "spin", "SPIN_HTTP_LISTEN_ADDR")
        image = node.import_archive(archive, "docker.io/library/wasmtest_spin:latest")
        app = node.run(image)
        response = app.get("/hello")
        assert (response.status, response.body) == (200, b"Hello world from Spin!")
        shims = [
            p for p in find_processes(daemon.scope) if SHIM in p.command and "-id" in p.command
        ]
        assert shims
        for shim in shims:
            mapped = Path(f"/proc/{shim.pid}/maps").read_text().split()
            files = {word for word in mapped if word.startswith("/") and word != "/"}
            foreign = {file for file in files if not file.startswith("/shims/")}
            assert {file for file in foreign if not file.endswith(".cwasm")} == set()
            assert not Path(f"/proc/{shim.pid}/root/lib").exists()
            assert not Path(f"/proc/{shim.pid}/root/usr").exists()
        app.stop()
