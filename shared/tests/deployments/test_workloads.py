"""The pods of the sample manifests run by CRI as they stand there, and answer their probes."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest

from containerd_shimkit.testing.apps import DEADLINE, eventually
from containerd_shimkit.testing.cri import bridge_network
from containerd_shimkit.testing.fixtures import each_containerd
from containerd_shimkit.testing.manifests import load_manifests, of_kind, run_deployment
from containerd_shimkit.testing.shim_nodes import running_cri

pytestmark = [pytest.mark.root, pytest.mark.containerd]

IMAGE = "docker.io/library/wasmtest_"


def ask(ip: str, port: int, path: str, method: str = "GET", body: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection(ip, port, timeout=DEADLINE)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("version", each_containerd())
@pytest.mark.parametrize("shim", ["spin", "slight", "wws"])
def test_pod_of_the_manifest(
    tmp_path: Path,
    pytestconfig: pytest.Config,
    shim_dir: Path,
    shims_home: Path,
    shim: str,
    version: str,
) -> None:
    root = pytestconfig.rootpath
    if not (root / "images" / shim / "image.toml").exists():
        pytest.skip(f"needs images/{shim}, which is not made yet")
    archive = root / "dist/images" / f"{shim}.tar"
    assert archive.exists(), f"{archive} is not there: make images"
    manifests = load_manifests(root / "deployments/workloads/workload.yaml")
    classes = of_kind(load_manifests(root / "deployments/workloads/runtime.yaml"), "RuntimeClass")
    deployment = of_kind(manifests, "Deployment")[f"wasm-{shim}"]
    (port,) = of_kind(manifests, "Service")[f"wasm-{shim}"]["spec"]["ports"]

    with (
        running_cri(tmp_path, root, shim_dir, shims_home, shim, version) as cri,
        bridge_network(cri.daemon),
    ):
        eventually(cri.network_ready, "CRI has a network")
        cri.import_busybox()
        cri.daemon.import_image(archive, "k8s.io")
        cri.wait_for_image(f"{IMAGE}{shim}:latest")
        with cri.leaving_nothing():
            pod = run_deployment(cri, deployment, classes, tmp_path / "volumes")
            for number, path in pod.probes:
                assert ask(pod.ip, number, path)[0] == 200
            served = pod.ports[port["targetPort"]]
            assert ask(pod.ip, served, "/hello")[0] == 200
            if shim == "slight":
                assert ask(pod.ip, served, "/set", "PUT", "kept")[0] in (200, 204)
                assert ask(pod.ip, served, "/get") == (200, "kept")
            cri.stop_container(pod.container, 20)
            assert cri.exit_code(pod.container) == 0
