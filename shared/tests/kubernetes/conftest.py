"""A cluster for each containerd, and what its pods are made of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import eventually
from containerd_shimkit.testing.cri import NAMESPACE, Cri, CriError
from containerd_shimkit.testing.fixtures import each_containerd
from containerd_shimkit.testing.kube_pods import COMMAND_IMAGE, EMPTY_IMAGE, PROBE_IMAGE, TRAP_IMAGE
from containerd_shimkit.testing.kubernetes import Cluster, running_cluster

EXAMPLES = ("spin", "slight", "wws")
KINDS = "deployment,job,pod,service,configmap,secret,runtimeclass"

MANIFEST = """\
spin_manifest_version = "1"
name = "probe"
version = "1.0.0"
trigger = { type = "http", base = "/" }

[[component]]
id = "probe"
source = "probe.wasm"
files = [
  { source = "config", destination = "/config" },
  { source = "scratch", destination = "/scratch" },
]
[component.trigger]
route = "/..."
"""
COMMAND_MANIFEST = """\
spin_manifest_version = 2
[application]
name = "command"
[[trigger.command]]
component = "command"
[component.command]
source = "command.wasm"
environment = { MODE = "MODES" }
"""


def each_pod_maker() -> list[ParameterSet]:
    """Return version and sandboxer of each way in which pods are made."""
    found = [
        pytest.param((*each.values, "podsandbox"), id=each.id, marks=each.marks)
        for each in each_containerd("kubernetes")
    ]
    if os.environ.get("TEST_CONTAINERD", "2.4") == "2.4":
        found.append(pytest.param(("2.4", "shim"), id="2.4-shim"))
    return found


@pytest.fixture(scope="session", params=each_pod_maker())
def running(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shim_dir: Path,
    shims_home: Path,
) -> Iterator[Cluster]:
    """A cluster that knows all images, and the runtime classes."""
    directory, root = tmp_path_factory.mktemp("kubernetes"), request.config.rootpath
    with running_cluster(directory, root, shim_dir, shims_home, *request.param) as cluster:
        _import_images(cluster.cri, root)
        cluster.kubectl("apply", "--filename", str(root / "deployments/workloads/runtime.yaml"))
        yield cluster


def _import_images(cri: Cri, root: Path) -> None:
    for name in EXAMPLES:
        archive = root / "dist/images" / f"{name}.tar"
        if not archive.exists():
            pytest.skip(f"needs {archive}: make images")
        cri.daemon.import_image(archive, NAMESPACE)
        cri.wait_for_image(f"docker.io/library/wasmtest_{name}:latest")
    guests = root / "containerd-shim-spin-v1/tests/guests"
    files = [
        ImageFile("spin.toml", MANIFEST.encode()),
        ImageFile("probe.wasm", (guests / "probe.wasm").read_bytes()),
        ImageFile("config/image"),
        ImageFile("scratch/image"),
    ]
    cri.import_image(PROBE_IMAGE, files, ["/"])
    cri.import_image(EMPTY_IMAGE, [ImageFile("nothing")], ["/"])
    command = ImageFile("command.wasm", (guests / "wagi_probe.wasm").read_bytes())
    for reference, mode in ((COMMAND_IMAGE, "args"), (TRAP_IMAGE, "trap")):
        manifest = COMMAND_MANIFEST.replace("MODES", mode).encode()
        cri.import_image(reference, [ImageFile("spin.toml", manifest), command], ["/"])


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """What a test makes has the label ``of: test``, and is gone at its end, with all its traces."""
    try:
        yield running
    finally:
        running.kubectl("delete", KINDS, "--selector=of=test")

    def nothing_is_left() -> bool:
        remove_ended_pods(running.cri)
        left = [*running.pod_cgroups(), *map(str, running.shims())]
        assert not left, left
        return True

    eventually(nothing_is_left, "nothing is left", 60.0)


def remove_ended_pods(cri: Cri) -> None:
    """Do what kubelet does once a minute: until then the sandbox API keeps the shims of pods."""
    for pod_id in cri.pod_ids():
        pod = cri.adopt(pod_id, "/of-kubelet")
        with suppress(CriError):  # kubelet may have been quicker
            if not cri.pod_is_ready(pod):
                cri.remove_pod(pod)
