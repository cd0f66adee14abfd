"""The node installer, as a DaemonSet, on a node that has no shims: to the pods, and back."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from containerd_shimkit.oci.archive import ImageFile, write_image_archive
from containerd_shimkit.testing.apps import eventually
from containerd_shimkit.testing.containerd import SYSTEM_PATH
from containerd_shimkit.testing.cri import BUSYBOX, NAMESPACE, Cri
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD
from containerd_shimkit.testing.kubernetes import NODE, Cluster, cluster_of, need_kubernetes
from containerd_shimkit.testing.layouts import LAYOUTS
from containerd_shimkit.testing.node_root import SHIMS, NodeRoot, binary, running_node
from containerd_shimkit.testing.shim_nodes import need_shim

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
INSTALLER = "deployments/node-installer"
IMAGE = "registry.example.com/containerd-wasm-shims/node-installer"
WORKLOADS = "deployments/labelled-nodes"
HELLOS = {"spin": "Hello world from Spin!", "slight": "hello world!", "wws": "hello world!"}
# What install.sh runs in its container.
PROGRAMS = (
    *(
        "cat",
        "chmod",
        "cmp",
        "curl",
        "cut",
        "date",
        "echo",
        "env",
        "grep",
        "head",
        "ln",
        "mkdir",
        "mv",
    ),
    *("nsenter", "rm", "sed", "sh", "sleep", "stat", "sync", "tr", "wc", "xargs"),
)


@pytest.fixture
def node(tmp_path: Path, containerd_binary: str, shim_dir: Path) -> Iterator[NodeRoot]:
    for shim in SHIMS:
        need_shim(shim_dir, shim)
    if not BUSYBOX.exists():
        pytest.skip(f"needs {BUSYBOX}: apt-get install busybox-static")
    need_kubernetes(ROOT)
    layout = LAYOUTS["kubeadm"]
    with running_node(tmp_path, layout, containerd_binary, "2g", own_network=True) as node:
        yield node


@pytest.fixture
def cluster(
    node: NodeRoot, tmp_path: Path, shim_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    monkeypatch.chdir(ROOT)
    with ExitStack() as stack:
        cluster = stack.enter_context(
            cluster_of(node.daemon, node.pid, tmp_path, need_kubernetes(ROOT))
        )
        import_installer(cluster.cri, shim_dir)
        for shim in SHIMS:
            node.daemon.import_image(ROOT / "dist/images" / f"{shim}.tar", NAMESPACE)
        yield cluster


def import_installer(cri: Cri, shim_dir: Path) -> None:
    """Import what the Dockerfile makes, with the programs of this machine."""
    paths = {f"bin/{name}": Path(found) for name in PROGRAMS if (found := shutil.which(name))}
    assert len(paths) == len(PROGRAMS), paths
    for program in list(paths.values()):
        printed = subprocess.check_output(["ldd", program], text=True)
        for library in re.findall(r"(/\S+) \(0x", printed):
            paths[library.removeprefix("/")] = Path(library)
    for shim in SHIMS:
        paths[f"opt/containerd-wasm-shims/{binary(shim)}"] = shim_dir / binary(shim)
    paths["usr/local/bin/install.sh"] = ROOT / INSTALLER / "install.sh"
    files = [ImageFile(name, path.read_bytes(), mode=0o755) for name, path in paths.items()]
    archive = cri.directory / "installer.tar"
    script = "/usr/local/bin/install.sh"
    write_image_archive(
        archive, f"{IMAGE}:test", files, entrypoint=[script], env=[f"PATH={SYSTEM_PATH}"]
    )
    cri.daemon.import_image(archive, NAMESPACE)
    archive.unlink()
    cri.wait_for_image(f"{IMAGE}:test")


def for_this_node(node: NodeRoot, text: str) -> str:
    """Return manifests with the image of ``import_installer``, and where the node is."""
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(text))
    for document in documents:
        if document["kind"] != "DaemonSet":
            continue
        spec = document["spec"]["template"]["spec"]
        for container in (*spec["initContainers"], *spec["containers"]):
            container["image"] = f"{IMAGE}:test"
        # Process 1 of this machine is in the machine's root, not in the node's.
        (init,) = spec["initContainers"]
        init["env"].append({"name": "HOST_PID", "value": str(node.pid)})
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})


@ON_EACH_CONTAINERD
def test_installed_used_and_taken_away(cluster: Cluster, node: NodeRoot) -> None:
    before = node.snapshot()
    system = ("--namespace", "containerd-wasm-shims")
    cluster.kubectl("apply", "--kustomize", WORKLOADS)
    waiting = cluster.pods("wasm-spin")[0]["metadata"]["name"]
    eventually(lambda: cluster.events(waiting, "Warning"), "no node has the shims")

    installer = for_this_node(node, cluster.kubectl("kustomize", INSTALLER))
    cluster.kubectl("apply", "--filename", "-", input=installer)
    cluster.kubectl(*system, "rollout", "status", "daemonset/node-installer", "--timeout=110s")
    labels = cluster.get("node", NODE)["metadata"]["labels"]
    assert labels["containerd-wasm-shims/installed"] == "true"
    cluster.wait("Available", "deployment", "--all")
    for kind, hello in HELLOS.items():
        address = cluster.get("service", f"wasm-{kind}")["spec"]["clusterIP"]

        def says_hello(address: str = address, hello: str = hello) -> bool:
            return cluster.curl(f"http://{address}/hello").strip() == hello

        eventually(says_hello, f"the Service of {kind} answers")
    cluster.kubectl("delete", "--wait", "--kustomize", WORKLOADS)
    of_others = "containerd-shim-runc-v2"  # the installer's own
    eventually(
        lambda: all(of_others in shim.command for shim in cluster.shims()),
        "no pod uses the shims",
        60.0,
    )

    cluster.kubectl(*system, "delete", "daemonset/node-installer")
    uninstaller = for_this_node(node, (ROOT / INSTALLER / "uninstall.yaml").read_text())
    cluster.kubectl("apply", "--filename", "-", input=uninstaller)
    cluster.kubectl(*system, "rollout", "status", "daemonset/node-uninstaller", "--timeout=110s")
    labels = cluster.get("node", NODE)["metadata"]["labels"]
    assert not [label for label in labels if label.startswith("containerd-wasm-shims")]
    assert node.snapshot() == before
    assert node.restarts == [node.layout.restart] * 2
