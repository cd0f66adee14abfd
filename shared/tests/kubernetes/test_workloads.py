"""``deployments/workloads``, as users apply them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from containerd_shimkit.testing.apps import eventually
from containerd_shimkit.testing.kubernetes import Cluster

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[3]
WORKLOADS = "deployments/workloads"
RUNTIMES = f"{WORKLOADS}/runtime.yaml"
HELLOS = {"spin": "Hello world from Spin!", "slight": "hello world!", "wws": "hello world!"}


@pytest.fixture
def empty(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster without runtime classes; commands run in the working copy."""
    monkeypatch.chdir(ROOT)
    cluster.kubectl("delete", "--filename", RUNTIMES)
    try:
        yield cluster
    finally:
        cluster.kubectl("delete", "--ignore-not-found", "--kustomize", WORKLOADS)
        cluster.kubectl("apply", "--filename", RUNTIMES)


@pytest.fixture
def workloads(empty: Cluster) -> Cluster:
    """The three Deployments, available."""
    empty.kubectl("apply", "--kustomize", WORKLOADS)
    empty.wait("Available", "deployment", "--all")
    return empty


def test_readmes_picture_is_what_is_seen(empty: Cluster) -> None:
    """Its commands print what it shows, but for random names, addresses and ages."""
    commands = 0
    for command, shown in read_picture(ROOT / "docs/pod.svg"):
        program, *arguments = shlex.split(command)
        if program == "curl":
            address = empty.get("service", "wasm-spin")["spec"]["clusterIP"]
            (url,) = arguments
            seen = empty.curl(re.sub(r"//[^/]+/", f"//{address}/", url))
        else:
            assert program == "kubectl"
            seen = empty.kubectl(*arguments)
        assert without_chance(seen) == without_chance(shown), command
        commands += 1
    assert commands == 5


def read_picture(path: Path) -> list[tuple[str, str]]:
    """Return each command and what it printed, of a picture by ``shared/tools/picture.py``."""
    found: list[tuple[str, str]] = []
    for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text"):
        text = "".join(element.itertext())
        match element.get("class"):
            case "command":
                found.append((text, ""))
            case None:
                command, output = found[-1]
                found[-1] = (command, f"{output}{text}\n")
    return found


def without_chance(text: str) -> list[str]:
    """Return lines without what differs from time to time, and without the width of columns."""
    text = re.sub(r"\b[a-z0-9]{8,10}-[a-z0-9]{5}\b", "NAME", text)
    text = re.sub(r"\b\d+(m\d+)?s\b", "AGE", text)
    text = re.sub(r"\b10\.96(\.\d+){2}\b", "ADDRESS", text)
    return [" ".join(line.split()) for line in text.strip().splitlines()]


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
