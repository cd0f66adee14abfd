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

WRAPPER = Path(__file__).with_name("empty_root.c")
KINDS = ["spin", "slight", "wws"]
HELLOS = {"spin": b"Hello world from Spin!", "slight": b"hello world!", "wws": b"hello world!"}


def name_of(kind: str) -> str:
    return f"containerd-shim-{kind}-v1"


def build_wrapper(program: Path) -> None:
    """Build what stands in the shim's place, and executes it where there is nothing."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc: make build installs it")
    program.parent.mkdir()
    subprocess.run(["gcc", "-static", "-Wall", "-Werror", "-o", program, WRAPPER], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_version(shim_dir: Path, tmp_path: Path, kind: str) -> None:
    """In a directory that holds the file alone, with nothing mounted and no descriptor open."""
    name = name_of(kind)
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
@pytest.mark.parametrize("kind", HELLOS)
def test_hello_is_served(
    shim_dir: Path, tmp_path: Path, default_binary: str, pytestconfig: pytest.Config, kind: str
) -> None:
    archive = pytestconfig.rootpath / "dist" / "images" / f"{kind}.tar"
    if not archive.exists():
        pytest.skip(f"needs {archive}: make images")
    shim = name_of(kind)
    wrapper = tmp_path / "bin" / shim
    build_wrapper(wrapper)
    root = tmp_path / "root"
    (root / "tmp").mkdir(parents=True)
    (root / "etc").mkdir()
    for name in ("hosts", "resolv.conf"):  # ``ctr --net-host`` has them mounted into the container
        shutil.copy(Path("/etc", name), root / "etc" / name)
    shutil.copy(shim_dir / shim, root / shim)
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
        node = Node(daemon, apps, kind, f"{kind.upper()}_HTTP_LISTEN_ADDR")
        image = node.import_archive(archive, f"docker.io/library/wasmtest_{kind}:latest")
        app = node.run(image)
        response = app.get("/hello")
        assert (response.status, response.body) == (200, HELLOS[kind])
        shims = [
            p for p in find_processes(daemon.scope) if shim in p.command and "-id" in p.command
        ]
        assert shims
        for process in shims:
            mapped = Path(f"/proc/{process.pid}/maps").read_text().split()
            files = {word for word in mapped if word.startswith("/") and word != "/"}
            foreign = {file for file in files if not file.startswith("/shims/")}
            assert {file for file in foreign if not file.endswith(".cwasm")} == set()
            assert not Path(f"/proc/{process.pid}/root/lib").exists()
            assert not Path(f"/proc/{process.pid}/root/usr").exists()
        app.stop()
