"""``precompile``, with a real containerd: the first start of an image finds all it needs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import Node
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD

pytestmark = [pytest.mark.root, pytest.mark.containerd]

SHIM = "containerd-shim-spin-v1"


def run_shim(
    node: Node, shim_dir: Path, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shim_dir / SHIM, *arguments],
        env=node.daemon.environment() | more,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_first_start_compiles_nothing(
    cold_node: Node, cold_image: str, cache: Path, shim_dir: Path
) -> None:
    """The entries are the very ones that a start made, and a start uses them."""
    started = {path.name for path in cache.glob("*.cwasm")}
    assert run_shim(cold_node, shim_dir, "cache", "empty").returncode == 0
    assert not list(cache.glob("*.cwasm"))
    daemon = cold_node.daemon
    flags = ["-address", daemon.address, "-namespace", daemon.namespace]
    done = run_shim(cold_node, shim_dir, "precompile", *flags, cold_image)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    assert all(line[3] == "compiled" for line in lines)
    inodes = {path.name: path.stat().st_ino for path in cache.glob("*.cwasm")}
    assert inodes.keys() == started
    assert len(lines) == len(started)

    app = cold_node.run(cold_image)
    assert app.get("/status?code=204").status == 204
    assert {path.name: path.stat().st_ino for path in cache.glob("*.cwasm")} == inodes
    listed = json.loads(run_shim(cold_node, shim_dir, "cache", "list", "-json").stdout)
    assert {entry["digest"] for entry in listed} == {line[1] for line in lines}
    assert all(entry["in_use"] and entry["state"] == "current" for entry in listed)
    assert app.stop() == 0

    again = run_shim(cold_node, shim_dir, "precompile", *flags, cold_image)
    assert again.stdout.count("already there") == len(lines)


@ON_EACH_CONTAINERD
def test_image_and_address_by_default(
    own_node: Node, shim_dir: Path, probe_wasm: bytes, tmp_path: Path
) -> None:
    """The image is looked for in k8s.io, then in default."""
    image = own_node.image([ImageFile("a.wasm", probe_wasm)])
    archive = tmp_path / "image.tar"
    own_node.daemon.ctr("image", "export", str(archive), image)
    address = {"CONTAINERD_ADDRESS": own_node.daemon.address}
    for namespace in ("default", "k8s.io"):
        own_node.daemon.import_image(archive, namespace=namespace)
        done = run_shim(own_node, shim_dir, "precompile", image, **address)
        assert (done.returncode, done.stderr) == (0, "")
        assert "a.wasm  sha256:" in done.stdout
        own_node.daemon.ctr("image", "rm", image, namespace=namespace)
    missing = run_shim(own_node, shim_dir, "precompile", image, **address)
    assert missing.returncode == 1
    assert "no such image in namespace k8s.io or default of" in missing.stderr
    exported = run_shim(own_node, shim_dir, "precompile", str(archive))
    assert exported.stdout.count("already there") == 1


def test_image_without_a_module(own_node: Node, shim_dir: Path) -> None:
    image = own_node.image([ImageFile("text", b"text")])
    daemon = own_node.daemon
    flags = ["-address", daemon.address, "-namespace", daemon.namespace]
    done = run_shim(own_node, shim_dir, "precompile", *flags, image)
    assert done.returncode == 1
    assert done.stderr == f"{image}: has no WebAssembly module for this machine\n"
