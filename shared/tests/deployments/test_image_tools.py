"""Images go from tool to tool: built by Docker, buildah or ``make images``, pushed, pulled, run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from build_images import build_image, find_images

from containerd_shimkit.oci.archive import ImageFile, write_image_archive
from containerd_shimkit.testing.apps import Node
from containerd_shimkit.testing.containerd import Containerd
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD, each_containerd
from containerd_shimkit.testing.image_tools import Buildah, files_of, new_buildah, skopeo
from containerd_shimkit.testing.pods import run_web
from containerd_shimkit.testing.servers.docker import Docker, running_docker
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.registry import running_registry
from containerd_shimkit.testing.shim_nodes import need_shim, running_cri

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("image-tools")]

REPOSITORY = Path(__file__).resolve().parents[3]
IMAGES = find_images(REPOSITORY / "images")
SPIN = IMAGES["spin"]

Build = Callable[[Path, str], None]
"""Builds the image of a directory, and pushes it by a name."""


@pytest.fixture(scope="module")
def registry() -> Iterator[Server]:
    with running_registry() as server:
        yield server


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    with running_docker() as running:
        yield running


@pytest.fixture(scope="module")
def buildah() -> Iterator[Buildah]:
    with new_buildah() as made:
        yield made


@pytest.fixture
def builders(docker: Docker, buildah: Buildah) -> dict[str, Build]:
    def with_docker(buildkit: bool) -> Build:
        def build(directory: Path, name: str) -> None:
            docker.run("build", "--tag", name, directory, buildkit=buildkit)
            docker.run("push", name)

        return build

    def with_buildah(directory: Path, name: str) -> None:
        buildah.run("build", "--tag", name, directory)
        buildah.run("push", "--tls-verify=false", name)

    return {
        "buildkit": with_docker(True),
        "docker": with_docker(False),
        "buildah": with_buildah,
    }


@pytest.mark.parametrize("builder", ["buildkit", "docker", "buildah"])
@pytest.mark.parametrize("name", IMAGES)
def test_dockerfile_makes_the_image_of_make_images(
    tmp_path: Path, registry: Server, builders: dict[str, Build], name: str, builder: str
) -> None:
    built = f"{registry.address}/{name}:{builder}"
    builders[builder](IMAGES[name], built)
    skopeo("copy", "--src-tls-verify=false", f"docker://{built}", f"oci:{tmp_path}/built:x")
    archive = build_image(IMAGES[name], tmp_path, name)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "ours", filter="data")
    files, config = files_of(tmp_path / "built")
    expected_files, expected = files_of(tmp_path / "ours")
    assert files == expected_files
    assert config["Entrypoint"] == expected["Entrypoint"]
    assert set(expected["Env"]) <= set(config["Env"])
    assert config.get("User", "") == expected.get("User", "")


@pytest.mark.parametrize("name", IMAGES)
def test_docker_loads_the_archive(tmp_path: Path, docker: Docker, name: str) -> None:
    """The Docker of Debian 12 is older than its knowledge of OCI archives."""
    archive = build_image(IMAGES[name], tmp_path, name)
    (index,) = json.loads(skopeo("inspect", "--raw", f"oci-archive:{archive}"))["layers"]
    assert index["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
    loaded = docker.run("load", "--input", archive)
    assert loaded.startswith(f"Loaded image: wasmtest_{name}:latest")
    (found,) = json.loads(docker.run("image", "inspect", f"wasmtest_{name}:latest"))
    assert (found["Os"], found["Config"]["Entrypoint"]) == ("linux", ["/"])


@pytest.mark.parametrize("buildkit", [True, False], ids=["buildkit", "docker"])
def test_docker_builds_on_the_archive(tmp_path: Path, docker: Docker, buildkit: bool) -> None:
    docker.run("load", "--input", build_image(SPIN, tmp_path, "spin"))
    (tmp_path / "more").mkdir()
    (tmp_path / "more/Dockerfile").write_text("FROM wasmtest_spin:latest\nLABEL more=yes\n")
    docker.run("build", "--tag", "more:1", tmp_path / "more", buildkit=buildkit)
    (found,) = json.loads(docker.run("image", "inspect", "more:1"))
    assert (found["Config"]["Entrypoint"], found["Config"]["Labels"]) == (["/"], {"more": "yes"})


def test_buildah_builds_on_the_archive(tmp_path: Path, buildah: Buildah) -> None:
    archive = build_image(SPIN, tmp_path, "spin")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/Dockerfile").write_text(f"FROM oci-archive:{archive}\nLABEL more=yes\n")
    buildah.run("build", "--tag", "more:1", tmp_path / "more")
    found = json.loads(buildah.run("inspect", "--type", "image", "more:1"))["OCIv1"]["config"]
    assert (found["Entrypoint"], found["Labels"]["more"]) == (["/"], "yes")


@pytest.mark.parametrize("name", ["k3d", "node-installer"])
def test_images_of_deployments(tmp_path: Path, docker: Docker, shim_dir: Path, name: str) -> None:
    """Docker builds them of what is there, on a base that has nothing.

    Without what is run in the other base: no package is fetched here.
    """
    for shim in ("spin", "slight", "wws"):
        need_shim(shim_dir, shim)
    source = REPOSITORY / "deployments" / name
    text = (source / "Dockerfile").read_text().replace("\\\n", " ")
    default = re.search(r"^ARG K3S=(.*)$", text, re.M)
    (base,) = re.findall(r"^FROM (.*)$", text, re.M)
    if default is not None:
        base = base.replace("${K3S}", default[1])
    archive = tmp_path / "base.tar"
    reference = f"docker.io/{base if '/' in base else f'library/{base}'}"
    write_image_archive(archive, reference, [ImageFile("etc/base")], entrypoint=[])
    docker.run("load", "--input", archive)
    file = tmp_path / "Dockerfile"
    file.write_text(re.sub(r"^RUN .*$", "", text, flags=re.M))
    shutil.copy(source / "Dockerfile.dockerignore", tmp_path)
    docker.run("build", "--file", file, "--output", tmp_path / "made", REPOSITORY)
    made = {
        str(path.relative_to(tmp_path / "made")): path.stat().st_mode & 0o777
        for path in (tmp_path / "made").rglob("*")
        if path.is_file()
    }
    place = {"k3d": "usr/local/bin", "node-installer": "opt/containerd-wasm-shims"}[name]
    expected = {f"{place}/containerd-shim-{shim}-v1": 0o755 for shim in ("spin", "slight", "wws")}
    if name == "k3d":
        templates = "var/lib/rancher/k3s/agent/etc/containerd"
        expected |= {f"{templates}/config.toml.tmpl": 0o644}
        expected |= {f"{templates}/config-v3.toml.tmpl": 0o644}
    else:
        expected |= {"usr/local/bin/install.sh": 0o755}
    assert made == expected | {"etc/base": 0o644}


@pytest.mark.containerd
@pytest.mark.timeout(180)
@ON_EACH_CONTAINERD
def test_image_from_a_registry_runs(
    tmp_path: Path,
    containerd: Containerd,
    shim_dir: Path,
    registry: Server,
    builders: dict[str, Build],
) -> None:
    """Whoever has built it, and whoever has pushed it."""
    need_shim(shim_dir, "spin")
    archive = build_image(SPIN, tmp_path, "spin")
    place = f"{registry.address}/run-{containerd.namespace}"
    for builder, build in builders.items():
        build(SPIN, f"{place}:{builder}")
    target = f"docker://{place}:skopeo"
    skopeo("copy", "--dest-tls-verify=false", f"oci-archive:{archive}", target)
    containerd.import_image(archive)
    containerd.ctr("image", "tag", "docker.io/library/wasmtest_spin:latest", f"{place}:ctr")
    containerd.ctr("image", "push", "--plain-http", f"{place}:ctr")
    containerd.ctr("image", "rm", f"{place}:ctr", "docker.io/library/wasmtest_spin:latest")
    node = Node(containerd, tmp_path, "spin", "SPIN_HTTP_LISTEN_ADDR")
    for tag in (*builders, "skopeo", "ctr"):
        containerd.ctr("image", "pull", "--plain-http", f"{place}:{tag}")
        app = node.run(f"{place}:{tag}")
        assert app.get("/hello").status == 200
        app.stop()


@pytest.mark.containerd
@ON_EACH_CONTAINERD
def test_image_for_wasi_from_a_registry_runs(
    tmp_path: Path,
    containerd: Containerd,
    shim_dir: Path,
    registry: Server,
    buildah: Buildah,
) -> None:
    need_shim(shim_dir, "spin")
    name = f"{registry.address}/wasi-{containerd.namespace}:1"
    platform = ("--platform", "wasi/wasm")
    buildah.run("build", *platform, "--tag", name, SPIN)
    buildah.run("push", "--tls-verify=false", name)
    containerd.ctr("image", "pull", *containerd.local_option(), "--plain-http", *platform, name)
    node = Node(containerd, tmp_path, "spin", "SPIN_HTTP_LISTEN_ADDR")
    app = node.run(name, *platform)
    assert app.get("/hello").status == 200
    app.stop()


@pytest.mark.containerd
@pytest.mark.parametrize("version", each_containerd())
def test_kubernetes_pulls_by_digest(
    tmp_path: Path, shim_dir: Path, shims_home: Path, registry: Server, version: str
) -> None:
    archive = build_image(SPIN, tmp_path, "spin")
    target = f"{registry.address}/digest-{version}"
    skopeo("copy", "--dest-tls-verify=false", f"oci-archive:{archive}", f"docker://{target}:1")
    found = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{target}:1"))
    image = f"{target}@{found['Digest']}"
    crictl = REPOSITORY / ".cache/containerd-2.4/crictl"
    if not crictl.exists():
        pytest.skip(f"needs {crictl}: make containerd")
    with running_cri(tmp_path, REPOSITORY, shim_dir, shims_home, "spin", version) as cri:
        cri.import_busybox()
        endpoint = f"unix://{cri.daemon.address}"
        command = [str(crictl), "--runtime-endpoint", endpoint, "--image-endpoint", endpoint]
        done = subprocess.run([*command, "pull", image], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        with cri.leaving_nothing():
            web = run_web(cri, cri.run_pod(handler="spin", host_network=True), image)
            assert web.get("/hello")[0] == 200
