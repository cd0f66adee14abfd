"""Kubernetes' manifests: read, and the pods of Deployments run by CRI as kubelet runs them.

What is not known here is an error, so that nothing a manifest says goes untested.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from containerd_shimkit.testing import cri_pb2 as api
from containerd_shimkit.testing.cri import Cri, Pod

Manifest = Mapping[str, Any]

VERSIONS: Final = ("1.28", "1.37")
"""The oldest and the newest Kubernetes whose schemas manifests are checked against."""

_POD_FIELDS: Final = {
    "automountServiceAccountToken",
    "containers",
    "runtimeClassName",
    "securityContext",
    "terminationGracePeriodSeconds",
    "volumes",
}
_CONTAINER_FIELDS: Final = {
    *("command", "env", "image", "imagePullPolicy", "name", "ports", "resources"),
    *("livenessProbe", "readinessProbe", "startupProbe", "securityContext", "volumeMounts"),
}
_SUFFIXES: Final = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def load_manifests(file: Path) -> list[dict[str, Any]]:
    """Return the documents of a file."""
    return [document for document in yaml.safe_load_all(file.read_text()) if document is not None]


def kustomize(directory: Path, root: Path) -> str:
    """Return what a kustomization makes; skip the test without the program. root: working copy."""
    program = root / ".cache/containerd-2.4/kustomize"
    if not program.exists():
        pytest.skip(f"needs {program}: make containerd")
    command = [str(program), "build", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_manifest(manifest: Manifest) -> None:
    """Raise AssertionError for what Kubernetes' schemas do not know, old or new."""
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(dict(manifest), version, strict=True)
        except kubernetes_validate.ValidationError as exc:
            where = ".".join(map(str, exc.absolute_path))
            raise AssertionError(f"Kubernetes {version}: {where}: {exc.message}") from None
        except kubernetes_validate.SchemaNotFoundError as exc:
            raise AssertionError(exc.message) from None


def of_kind(manifests: Sequence[Manifest], kind: str) -> dict[str, Any]:
    """Return the manifests of a kind by their names."""
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] == kind}


@dataclass(frozen=True)
class RunningPod:
    """The one container of a Deployment's pod."""

    pod: Pod
    container: str
    ip: str
    ports: Mapping[str, int]
    probes: Sequence[tuple[int, str]]
    """Port and path of each."""


def run_deployment(
    cri: Cri, deployment: Manifest, runtime_classes: Mapping[str, Any], volumes: Path
) -> RunningPod:
    """Run a pod of a Deployment. volumes: where directories for its volumes are made."""
    spec = deployment["spec"]["template"]["spec"]
    _check(spec, _POD_FIELDS)
    (container,) = spec["containers"]
    _check(container, _CONTAINER_FIELDS)
    of_pod, own = spec["securityContext"], container["securityContext"]
    assert of_pod["runAsNonRoot"] is True
    assert of_pod["runAsUser"] != 0
    pod = cri.run_pod(
        handler=runtime_classes[spec["runtimeClassName"]]["handler"],
        security=api.LinuxSandboxSecurityContext(
            run_as_user=api.Int64Value(value=of_pod["runAsUser"]),
            run_as_group=api.Int64Value(value=of_pod["runAsGroup"]),
        ),
    )
    limits = container["resources"]["limits"]
    running = cri.create_container(
        pod,
        container["image"],
        container["name"],
        command=container["command"],
        env={entry["name"]: entry["value"] for entry in container.get("env", [])},
        mounts=_mounts(spec, container, volumes),
        memory=_quantity(limits["memory"]),
        cpu_quota=_millis(limits["cpu"]) * 100,
        security=_security(of_pod, own),
    )
    cri.start_container(running)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = []
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = container[name]["httpGet"]
        probes.append((ports.get(get["port"], get["port"]), get["path"]))
    return RunningPod(pod, running, cri.pod_status(pod).network.ip, ports, probes)


def _check(spec: Manifest, known: set[str]) -> None:
    assert not spec.keys() - known, f"nobody tests {sorted(spec.keys() - known)}"


def _security(of_pod: Manifest, own: Manifest) -> api.LinuxContainerSecurityContext:
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    known = {"allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem"}
    _check(own, known)
    return api.LinuxContainerSecurityContext(
        capabilities=api.Capability(drop_capabilities=own["capabilities"]["drop"]),
        run_as_user=api.Int64Value(value=of_pod["runAsUser"]),
        run_as_group=api.Int64Value(value=of_pod["runAsGroup"]),
        supplemental_groups=[of_pod["fsGroup"]] if "fsGroup" in of_pod else [],
        readonly_rootfs=own["readOnlyRootFilesystem"],
        no_new_privs=not own["allowPrivilegeEscalation"],
        seccomp=api.SecurityProfile(profile_type=api.SecurityProfile.RuntimeDefault),
    )


def _mounts(spec: Manifest, container: Manifest, volumes: Path) -> list[tuple[Path, str, bool]]:
    """Return the mounts of empty directories, which are as kubelet makes them."""
    mounts = []
    for volume in spec.get("volumes", []):
        assert volume.keys() == {"name", "emptyDir"}, f"nobody tests {volume}"
        directory = volumes / volume["name"]
        directory.mkdir(parents=True)
        os.chown(directory, 0, spec["securityContext"]["fsGroup"])
        directory.chmod(0o2777)
        mounts += [
            (directory, mount["mountPath"], False)
            for mount in container["volumeMounts"]
            if mount["name"] == volume["name"]
        ]
    return mounts


def _quantity(text: str) -> int:
    """Return bytes: ``128Mi``."""
    return int(text[:-2]) * _SUFFIXES[text[-2:]]


def _millis(text: str) -> int:
    """Return thousandths of a processor: ``500m``."""
    return int(text[:-1]) if text.endswith("m") else int(text) * 1000
