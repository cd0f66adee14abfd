"""``precompile`` of a built binary: its Python reads what that of development does not."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import wasmtime

from containerd_shimkit.oci.archive import ImageFile, tar_files

pytestmark = pytest.mark.xdist_group("zygote")  # where the binary is built

WASM = bytes(wasmtime.wat2wasm('(module (func (export "one")))'))
LAYER = tar_files([ImageFile("app/one.wasm", WASM), ImageFile("rest", os.urandom(300_000))])


def pack(data: bytes) -> bytes:
    return subprocess.run(
        ["zstd", "--quiet", "--stdout", "--check"], input=data, check=True, capture_output=True
    ).stdout


def write_archive(path: Path, layer: bytes) -> None:
    """Write an image of one layer, which is taken as it is."""
    blobs: dict[str, bytes] = {}

    def add(data: bytes) -> dict[str, str]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}"}

    manifest = add(json.dumps({"layers": [add(layer)]}).encode())
    blobs["index.json"] = json.dumps({"manifests": [manifest]}).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in blobs.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def precompile(binary: Path, tmp_path: Path, layer: bytes) -> subprocess.CompletedProcess[str]:
    write_archive(tmp_path / "image.tar", layer)
    environment = {
        "PATH": os.defpath,
        "CONTAINERD_WASM_SHIMS_ROOT": str(tmp_path / "root"),
        "CONTAINERD_WASM_SHIMS_CACHE": str(tmp_path / "cache"),
    }
    return subprocess.run(
        [binary, "precompile", str(tmp_path / "image.tar")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_layer_in_zstd(spin_binary: Path, tmp_path: Path) -> None:
    done = precompile(spin_binary, tmp_path, pack(LAYER))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("app/one.wasm  sha256:")
    assert "  compiled  " in done.stdout


@pytest.mark.parametrize("damage", ["head", "middle", "sum", "short"])
def test_damaged_layer_in_zstd(spin_binary: Path, tmp_path: Path, damage: str) -> None:
    packed = pack(LAYER)
    layer = {
        "head": packed[:4] + b"\xff" * 600,
        "middle": packed[:150_000] + b"\xff" * 1000 + packed[151_000:],
        "sum": packed[:-4] + bytes(4),
        "short": packed[:-100],
    }[damage]
    done = precompile(spin_binary, tmp_path, layer)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"layer sha256:{hashlib.sha256(layer).hexdigest()} is damaged: " in line
