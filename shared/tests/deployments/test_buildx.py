"""Images of ``docker buildx``: for several platforms at once, with attestations, as by default."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from build_images import build_image, find_images

from containerd_shimkit.oci.archive import machine_architecture
from containerd_shimkit.testing.apps import Node
from containerd_shimkit.testing.containerd import Containerd
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD
from containerd_shimkit.testing.image_tools import files_of, skopeo
from containerd_shimkit.testing.servers.buildx import Buildx, running_buildx
from containerd_shimkit.testing.shim_nodes import need_shim

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("buildx")]

REPOSITORY = Path(__file__).resolve().parents[3]
IMAGES = find_images(REPOSITORY / "images")
LINUX = f"linux/{machine_architecture()}"


@pytest.fixture(scope="module")
def buildx() -> Iterator[Buildx]:
    with running_buildx(REPOSITORY) as running:
        yield running


def layout_of(archive: Path, directory: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    return directory


@pytest.mark.parametrize("name", IMAGES)
def test_dockerfile_makes_the_image_of_make_images(
    tmp_path: Path, buildx: Buildx, name: str
) -> None:
    output = f"type=oci,dest={tmp_path}/built.tar"
    buildx.build("--provenance=false", "--output", output, IMAGES[name])
    files, config = files_of(layout_of(tmp_path / "built.tar", tmp_path / "built"))
    ours = layout_of(build_image(IMAGES[name], tmp_path, name), tmp_path / "ours")
    expected_files, expected = files_of(ours)
    assert files == expected_files
    assert config["Entrypoint"] == expected["Entrypoint"]


@pytest.mark.parametrize("wasi", [False, True], ids=["linux", "wasi"])
def test_archive_is_a_base(tmp_path: Path, buildx: Buildx, wasi: bool) -> None:
    archive = build_image(IMAGES["spin"], tmp_path, "spin", wasi=wasi)
    layout = layout_of(archive, tmp_path / "layout")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/Dockerfile").write_text("FROM base\nLABEL more=yes\n")
    buildx.build(
        *("--platform", "wasi/wasm" if wasi else LINUX, "--provenance=false"),
        *("--build-context", f"base=oci-layout://{layout}:latest"),
        *("--output", f"type=oci,dest={tmp_path}/made.tar", tmp_path / "more"),
    )
    files, config = files_of(layout_of(tmp_path / "made.tar", tmp_path / "made"))
    assert files == files_of(layout)[0]
    assert (config["Entrypoint"], config["Labels"]) == (["/"], {"more": "yes"})


@pytest.mark.containerd
@ON_EACH_CONTAINERD
def test_image_for_two_platforms_runs_as_either(
    tmp_path: Path, containerd: Containerd, shim_dir: Path, buildx: Buildx
) -> None:
    need_shim(shim_dir, "spin")
    name, archive = "docker.io/library/two:1", tmp_path / "two.tar"
    buildx.build(
        *("--platform", f"{LINUX},wasi/wasm", "--provenance=mode=max"),
        *("--output", f"type=oci,dest={archive},name={name}", IMAGES["spin"]),
    )
    index = json.loads(skopeo("inspect", "--raw", f"oci-archive:{archive}"))
    platforms = [
        f"{m['platform']['os']}/{m['platform']['architecture']}" for m in index["manifests"]
    ]
    assert sorted(platforms) == sorted([LINUX, "wasi/wasm", *["unknown/unknown"] * 2])
    node = Node(containerd, tmp_path, "spin", "SPIN_HTTP_LISTEN_ADDR")
    for platform in (LINUX, "wasi/wasm"):
        option = ("--platform", platform)
        containerd.ctr("image", "import", *containerd.local_option(), *option, str(archive))
        app = node.run(name, *option)
        assert app.get("/hello").status == 200
        app.stop()
        containerd.ctr("image", "rm", "--sync", name)
