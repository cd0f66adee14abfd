"""The pod that a quickstart deploys, of the image by its Dockerfile, runs by CRI and answers."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from doc_player.document import Command, blocks, commands
from doc_player.place import storage_of_images
from doc_player.player import copy_of

from containerd_shimkit.testing.apps import DEADLINE, eventually
from containerd_shimkit.testing.cri import bridge_network
from containerd_shimkit.testing.fixtures import each_containerd
from containerd_shimkit.testing.manifests import load_manifests, of_kind, run_deployment
from containerd_shimkit.testing.shim_nodes import running_cri

ROOT = Path(__file__).parents[3]
IMAGE = "registry.example.com/greet:1"
BUILDS = re.compile(
    r"(mkdir|cp|rustc|clang-14|buildah build|buildah push \S+ oci-archive:).*", re.S
)


def follow(page: str, directory: Path, environment: dict[str, str]) -> list[Command]:
    """Write a page's files and build its image, to dist/greet.tar; return all its commands."""
    all_commands: list[Command] = []
    for block in blocks(page):
        if block.path:
            path = directory / block.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.kind == "console":
            all_commands += commands(block)
    for command in all_commands:
        if BUILDS.fullmatch(command.text):
            text = command.text.replace("mkdir ", "mkdir -p ")
            done = subprocess.run(
                ["bash", "-ec", text],
                cwd=directory,
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, f"{text}: {done.stderr}"
    return all_commands


def printed_by(all_commands: list[Command], pattern: str) -> tuple[str, str]:
    """Return what a command says of the part of the pattern in parentheses, and its first line."""
    for command in all_commands:
        if found := re.fullmatch(pattern, command.text):
            return found[1], command.printed[0]
    raise AssertionError(f"no command is {pattern}")


def ask(ip: str, port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(ip, port, timeout=DEADLINE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.root
@pytest.mark.containerd
@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", each_containerd())
@pytest.mark.parametrize("shim", ["spin", "slight", "wws"])
def test_pod_of_the_quickstart(
    tmp_path: Path, shim_dir: Path, shims_home: Path, shim: str, version: str
) -> None:
    for program in ("buildah", "clang-14"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if not (ROOT / "dist/interpreters").exists():
        pytest.skip("needs dist/interpreters: make interpreters")
    page = (ROOT / f"containerd-shim-{shim}-v1/quickstart.md").read_text()
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_of(ROOT, copy)
    environment = os.environ | {
        "PATH": f"/usr/bin:{os.environ['PATH']}",
        "CONTAINERS_STORAGE_CONF": str(storage_of_images(tmp_path)),
    }
    all_commands = follow(page, copy, environment)
    path, answer = printed_by(all_commands, r"kubectl get --raw '.*/proxy(/.*)'")
    _, logged = printed_by(all_commands, r"kubectl logs (\S+)")
    manifests = load_manifests(copy / "images/greet/deployment.yaml")
    deployment = of_kind(manifests, "Deployment")["greet"]
    (port,) = of_kind(manifests, "Service")["greet"]["spec"]["ports"]
    classes = of_kind(load_manifests(ROOT / "deployments/workloads/runtime.yaml"), "RuntimeClass")

    with (
        running_cri(tmp_path, ROOT, shim_dir, shims_home, shim, version) as cri,
        bridge_network(cri.daemon),
    ):
        eventually(cri.network_ready, "CRI has a network")
        cri.import_busybox()
        cri.daemon.import_image(copy / "dist/greet.tar", "k8s.io")
        cri.wait_for_image(IMAGE)
        with cri.leaving_nothing():
            pod = run_deployment(cri, deployment, classes, tmp_path / "volumes")
            for number, probe in pod.probes:
                assert ask(pod.ip, number, probe)[0] == 200
            served = pod.ports[port["targetPort"]]
            status, text = ask(pod.ip, served, path)
            assert (status, text.strip()) == (200, answer)
            cri.stop_container(pod.container, 20)
            assert cri.exit_code(pod.container) == 0
            assert logged in [line for _, line in cri.log(pod.container)]
