"""The image archives that ``make images`` writes are what other tools take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from build_images import build_image, find_images

from containerd_shimkit.oci.archive import machine_architecture
from containerd_shimkit.testing.apps import Node
from containerd_shimkit.testing.containerd import Containerd
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD
from containerd_shimkit.testing.image_tools import skopeo
from containerd_shimkit.testing.shim_nodes import need_shim

REPOSITORY = Path(__file__).resolve().parents[3]
IMAGES = find_images(REPOSITORY / "images")


@pytest.mark.parametrize("wasi", [False, True], ids=["linux", "wasi"])
@pytest.mark.parametrize("name", IMAGES)
def test_archive_is_what_skopeo_takes(tmp_path: Path, name: str, wasi: bool) -> None:
    archive = build_image(IMAGES[name], tmp_path, name, wasi=wasi)
    platform = ("wasi", "wasm") if wasi else ("linux", machine_architecture())
    chosen = ["--override-os", platform[0], "--override-arch", platform[1]]
    config = json.loads(skopeo(*chosen, "inspect", "--config", f"oci-archive:{archive}"))
    assert (config["os"], config["architecture"]) == platform
    skopeo(*chosen, "copy", f"oci-archive:{archive}", f"docker-archive:{tmp_path}/docker.tar:x:1")
    skopeo(*chosen, "copy", f"oci-archive:{archive}", f"oci:{tmp_path}/layout:x")
    (index,) = json.loads((tmp_path / "layout/index.json").read_text())["manifests"]
    assert index["mediaType"] == "application/vnd.oci.image.manifest.v1+json"


@pytest.mark.root
@pytest.mark.containerd
@ON_EACH_CONTAINERD
def test_image_for_wasi_runs(tmp_path: Path, containerd: Containerd, shim_dir: Path) -> None:
    need_shim(shim_dir, "spin")
    archive = build_image(IMAGES["spin"], tmp_path, "spin", wasi=True)
    containerd.ctr(
        "image", "import", *containerd.local_option(), "--platform", "wasi/wasm", str(archive)
    )
    node = Node(containerd, tmp_path, "spin", "SPIN_HTTP_LISTEN_ADDR")
    app = node.run("docker.io/library/wasmtest_spin:latest", "--platform", "wasi/wasm")
    assert app.get("/hello").status == 200
    app.stop()
