"""What docs/security.md and docs/isolation.md say: the tests are there, the pod runs as it is."""

from __future__ import annotations

import http.client
import re
from pathlib import Path

import pytest
import yaml
from doc_player.document import blocks

from containerd_shimkit.testing.apps import DEADLINE, eventually
from containerd_shimkit.testing.cri import bridge_network
from containerd_shimkit.testing.fixtures import chosen_versions
from containerd_shimkit.testing.manifests import load_manifests, of_kind, run_deployment
from containerd_shimkit.testing.shim_nodes import running_cri

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["security.md", "isolation.md"])
def test_tests_that_are_named_are_there(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    named = set(re.findall(r"\b((?:\w+/)?test_\w+)\b", text))
    assert len(named) > 10
    for test in named:
        assert list(ROOT.glob(f"*/tests/**/{test}.py")), f"{test}: no such test"


@pytest.mark.root
@pytest.mark.containerd
def test_pod_for_strangers(
    tmp_path: Path, shim_dir: Path, shims_home: Path, pytestconfig: pytest.Config
) -> None:
    (block,) = [
        block for block in blocks((ROOT / "docs/security.md").read_text()) if block.kind == "yaml"
    ]
    manifests = list(yaml.safe_load_all(block.text))
    deployment = of_kind(manifests, "Deployment")["strangers"]
    policy = of_kind(manifests, "NetworkPolicy")["strangers"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    classes = of_kind(load_manifests(ROOT / "deployments/workloads/runtime.yaml"), "RuntimeClass")
    archive, version = ROOT / "dist/images/spin.tar", chosen_versions()[0]
    if not archive.exists():
        pytest.skip(f"needs {archive}: make images")
    with (
        running_cri(tmp_path, ROOT, shim_dir, shims_home, "spin", version) as cri,
        bridge_network(cri.daemon),
    ):
        eventually(cri.network_ready, "CRI has a network")
        cri.import_busybox()
        cri.daemon.import_image(archive, "k8s.io")
        cri.wait_for_image("docker.io/library/wasmtest_spin:latest")
        with cri.leaving_nothing():
            pod = run_deployment(cri, deployment, classes, tmp_path / "volumes")
            for port, path in pod.probes:
                assert ask(pod.ip, port, path) == 200
            (allowed,) = policy["spec"]["ingress"][0]["ports"]
            assert ask(pod.ip, allowed["port"], "/hello") == 200
            assert ask(pod.ip, allowed["port"], "/hello", b"x" * (1 << 20)) != 413
            assert ask(pod.ip, allowed["port"], "/hello", b"x" * ((1 << 20) + 1)) == 413
            cri.stop_container(pod.container, 15)
            assert cri.exit_code(pod.container) == 0


def ask(ip: str, port: int, path: str, body: bytes | None = None) -> int:
    """Return the status of an answer."""
    connection = http.client.HTTPConnection(ip, port, timeout=DEADLINE)
    try:
        connection.request("POST" if body else "GET", path, body)
        return connection.getresponse().status
    finally:
        connection.close()
