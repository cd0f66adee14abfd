"""The files for clusters: what Kubernetes' schemas, containerd and checkers of their kind say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from containerd_shimkit.node.config_text import Runtime, runtimes_of, with_runtimes
from containerd_shimkit.node.places import BASE_TEMPLATE
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD
from containerd_shimkit.testing.k3s import render_k3s_template
from containerd_shimkit.testing.manifests import (
    check_manifest,
    kustomize,
    load_manifests,
    of_kind,
)

REPOSITORY = Path(__file__).resolve().parents[3]
DEPLOYMENTS = REPOSITORY / "deployments"
SHIMS = ("spin", "slight", "wws")
RUNTIMES = [Runtime(shim, f"io.containerd.{shim}.v1") for shim in SHIMS]
PREFIX = "containerd-wasm-shims"

FILES = sorted(file for file in DEPLOYMENTS.glob("**/*.yaml") if file.name != "kustomization.yaml")
KUSTOMIZATIONS = sorted(DEPLOYMENTS.glob("**/kustomization.yaml"))


def name_of(file: Path) -> str:
    return str(file.relative_to(DEPLOYMENTS))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_manifests_are_what_kubernetes_takes(file: Path) -> None:
    manifests = load_manifests(file)
    assert manifests
    for manifest in manifests:
        if not manifest["apiVersion"].startswith("traefik.io/"):  # not Kubernetes' own
            check_manifest(manifest)


@pytest.mark.parametrize("file", KUSTOMIZATIONS, ids=name_of)
def test_kustomizations_name_what_is_there(file: Path) -> None:
    kustomization = yaml.safe_load(file.read_text())
    for resource in kustomization["resources"]:
        path = file.parent / resource
        assert path.is_file() or (path / "kustomization.yaml").is_file(), path


def test_all_in_one_is_what_kustomize_makes() -> None:
    first, _, rest = (DEPLOYMENTS / "k8s/all-in-one.yaml").read_text().partition("\n")
    assert first.startswith("# Made by `kubectl kustomize deployments/k8s`")
    assert rest == kustomize(DEPLOYMENTS / "k8s", REPOSITORY)


def test_runtime_classes_choose_nodes_by_the_labels_of_the_installer() -> None:
    script = (DEPLOYMENTS / "node-installer/install.sh").read_text()
    assert f"PREFIX={PREFIX}\n" in script
    classes = of_kind(load_manifests(DEPLOYMENTS / "k8s/all-in-one.yaml"), "RuntimeClass")
    plain = of_kind(load_manifests(DEPLOYMENTS / "workloads/runtime.yaml"), "RuntimeClass")
    for shim in SHIMS:
        found = classes[f"wasmtime-{shim}"]
        assert found["handler"] == shim
        assert found["scheduling"] == {"nodeSelector": {f"{PREFIX}/{shim}": "true"}}
        del found["scheduling"]
        assert found == plain[f"wasmtime-{shim}"]


def test_workloads_and_services_belong_together() -> None:
    manifests = load_manifests(DEPLOYMENTS / "workloads/workload.yaml")
    ingress = load_manifests(DEPLOYMENTS / "workloads/ingress.yaml")
    services = of_kind(manifests, "Service")
    for name, deployment in of_kind(manifests, "Deployment").items():
        template = deployment["spec"]["template"]
        assert services[name]["spec"]["selector"] == template["metadata"]["labels"]
        (container,) = template["spec"]["containers"]
        (port,) = container["ports"]
        assert services[name]["spec"]["ports"][0]["targetPort"] == port["name"]
    (rule,) = of_kind(ingress, "Ingress")["wasm"]["spec"]["rules"]
    backends = {path["backend"]["service"]["name"] for path in rule["http"]["paths"]}
    assert backends == services.keys()


def test_daemon_sets_run_the_installer() -> None:
    actions = {"daemonset.yaml": "install", "uninstall.yaml": "uninstall"}
    for name, action in actions.items():
        (manifest,) = load_manifests(DEPLOYMENTS / "node-installer" / name)
        spec = manifest["spec"]["template"]["spec"]
        assert spec["hostPID"] is True
        (first,), (second,) = spec["initContainers"], spec["containers"]
        assert (first["args"], second["args"]) == ([action], ["wait"])
        assert first["securityContext"] == {"privileged": True}
        assert second["securityContext"]["runAsNonRoot"] is True
        account = spec["serviceAccountName"]
        accounts = of_kind(
            load_manifests(DEPLOYMENTS / "node-installer/rbac.yaml"), "ServiceAccount"
        )
        assert accounts[account]["metadata"]["namespace"] == manifest["metadata"]["namespace"]


# k3d


@pytest.mark.parametrize(("name", "version"), [("config.toml.tmpl", 2), ("config-v3.toml.tmpl", 3)])
def test_templates_are_what_the_command_writes(name: str, version: int) -> None:
    text = with_runtimes(BASE_TEMPLATE, RUNTIMES, version, in_k3s_template=True)
    assert (DEPLOYMENTS / "k3d" / name).read_text() == text


@pytest.mark.parametrize(
    "found", [{}, {r.handler: r.type for r in RUNTIMES[1:]}], ids=["none", "two"]
)
@ON_EACH_CONTAINERD
def test_templates_are_what_containerd_takes(
    tmp_path: Path, containerd_binary: str, found: dict[str, str]
) -> None:
    """Whatever of the shims k3s has registered itself."""
    text = subprocess.check_output([containerd_binary, "--version"], text=True)
    version = 2 if re.search(r"\bv?1\.\d+\.\d+", text) else 3
    name = "config.toml.tmpl" if version == 2 else "config-v3.toml.tmpl"
    plugin = "grpc.v1.cri" if version == 2 else "cri.v1.runtime"
    base = (
        f'version = {version}\n[plugins."io.containerd.{plugin}".containerd.runtimes.runc]\n'
        '  runtime_type = "io.containerd.runc.v2"\n'
    )
    template = (DEPLOYMENTS / "k3d" / name).read_text()
    config = tmp_path / "config.toml"
    config.write_text(render_k3s_template(template, base, found, version))
    command = [containerd_binary, "--config", str(config), "config", "dump"]
    dumped = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL, timeout=60)
    runtimes = runtimes_of(tomllib.loads(dumped))
    assert {runtime.handler: runtimes[runtime.handler] for runtime in RUNTIMES} == {
        runtime.handler: runtime for runtime in RUNTIMES
    }


def recipes(*targets: str) -> Iterator[str]:
    command = ["make", "-C", str(DEPLOYMENTS / "k3d"), "--no-print-directory", "-n", "MAKE=make"]
    for target in targets:
        yield subprocess.check_output([*command, target], text=True, timeout=60)


@pytest.fixture(scope="session")
def shellcheck() -> Callable[..., None]:
    """Run Debian's checker of shell scripts."""
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck: apt-get install shellcheck")

    def check(*arguments: object, text: str | None = None) -> None:
        command = ["shellcheck", *map(str, arguments)]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout

    return check


def test_recipes_of_k3d(shellcheck: Callable[..., None]) -> None:
    for text in recipes("install-k3d", "up", "test", "clean"):
        shellcheck("--shell", "sh", "-", text=text)


@pytest.mark.parametrize("script", sorted(DEPLOYMENTS.glob("**/*.sh")), ids=name_of)
def test_scripts(script: Path, shellcheck: Callable[..., None]) -> None:
    shellcheck(script)


# Images


@pytest.mark.parametrize("file", sorted(DEPLOYMENTS.glob("**/Dockerfile")), ids=name_of)
def test_dockerfiles(file: Path) -> None:
    """They are in order, and copy what is there and what is not left out of their context."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    text = file.read_text().replace("\\\n", "")
    sources = [
        source for line in re.findall(r"^COPY (.*)$", text, re.M) for source in line.split()[:-1]
    ]
    assert sources
    kept = file.with_name("Dockerfile.dockerignore").read_text().splitlines()
    for source in sources:
        assert source.startswith("dist/") or (REPOSITORY / source).exists()
        assert any(Path(source).match(pattern[1:]) for pattern in kept if pattern[0] == "!")
