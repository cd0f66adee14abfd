"""``deployments/workloads``, as users apply them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from containerd_shimkit.testing.apps import eventually
from containerd_shimkit.testing.kubernetes import Cluster

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.timeout(400)]

DEPLOYMENTS = Path(__file__).parents[3] / "deployments"
HELLOS = {"spin": "Hello world from Spin!", "slight": "hello world!", "wws": "hello world!"}


@pytest.fixture
def workloads(cluster: Cluster) -> Iterator[Cluster]:
    """The three Deployments, available."""
    directory = str(DEPLOYMENTS / "workloads")
    cluster.kubectl("apply", "--kustomize", directory)
    try:
        cluster.wait("Available", "deployment", "--all")
        yield cluster
    finally:
        cluster.kubectl("delete", "--kustomize", directory)
        cluster.kubectl("apply", "--filename", f"{directory}/runtime.yaml")


def test_workloads_are_available_and_serve(workloads: Cluster) -> None:
    for kind, hello in HELLOS.items():
        address = workloads.get("service", f"wasm-{kind}")["spec"]["clusterIP"]

        def says_hello(address: str = address, hello: str = hello) -> bool:
            assert workloads.curl(f"http://{address}/hello").strip() == hello
            return True

        eventually(says_hello, f"the Service of {kind} answers")
        (pod,) = workloads.pods(f"wasm-{kind}")
        assert pod["status"]["phase"] == "Running"
        assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
        assert pod["status"]["qosClass"] == "Burstable"
        assert pod["spec"]["overhead"] == {"cpu": "10m", "memory": "24Mi"}
        # A probe may come before the app: what it says then is no fault of the pod.
        warnings = workloads.events(pod["metadata"]["name"], "Warning")
        assert [w for w in warnings if not w.startswith("Unhealthy: Startup probe")] == []


def test_workloads_are_scaled(workloads: Cluster) -> None:
    workloads.kubectl("scale", "deployment", "wasm-spin", "--replicas=10")
    workloads.kubectl("rollout", "status", "deployment", "wasm-spin")
    pods = workloads.pods("wasm-spin")
    assert len(pods) == 10
    for pod in pods:
        assert workloads.curl(f"http://{pod['status']['podIP']}:8080/hello") == HELLOS["spin"]
    workloads.kubectl("scale", "deployment", "wasm-spin", "--replicas=1")
    eventually(lambda: len(workloads.pods("wasm-spin")) == 1, "nine are gone", 60.0)
