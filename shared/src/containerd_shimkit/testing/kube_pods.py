"""Manifests of the pods that tests run in a cluster.

Whatever a test makes has the label ``of: test``, by which it is removed.
"""

from __future__ import annotations

from typing import Any, Final

from containerd_shimkit.testing.cri import BUSYBOX_IMAGE

Manifest = dict[str, Any]

PROBE_IMAGE: Final = "docker.io/library/probe:latest"
"""Spin's guest that does what its path says, and sees ``/config`` and ``/scratch``."""
EMPTY_IMAGE: Final = "docker.io/library/empty:latest"
"""An image without an app, for the shim to refuse."""

COMMAND_IMAGE: Final = "docker.io/library/command:latest"
"""An app of Spin's that prints its arguments, a line each, and ends."""
TRAP_IMAGE: Final = "docker.io/library/trap:latest"
"""Like ``COMMAND_IMAGE``, but it traps."""

_LABELS: Final = {"of": "test"}


def app(name: str = "web", image: str = PROBE_IMAGE, **more: Any) -> Manifest:
    """Return a container with an app of Spin's, ready when it serves on port 80."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/"],
        "readinessProbe": {"httpGet": {"path": "/status?code=200", "port": 80}, "periodSeconds": 1},
    } | more


def shell(name: str, script: str, **more: Any) -> Manifest:
    """Return a container that runs a script of busybox's shell."""
    return {
        "name": name,
        "image": BUSYBOX_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        # In the image is one file; the shell knows what else there is by itself.
        "command": ["/bin/busybox", "sh", "-c", script],
    } | more


def waiting(name: str = "sidecar", **more: Any) -> Manifest:
    """Return a container that does nothing until it is told to end."""
    return shell(name, "trap 'exit 0' TERM; sleep 100000 & wait", **more)


def pod(
    name: str,
    *containers: Manifest,
    runtime: str | None = "wasmtime-spin",
    **spec: Any,
) -> Manifest:
    """Return a pod. runtime: its class; None is containerd's own."""
    return _object(
        "v1",
        "Pod",
        name,
        # A script that does not listen to SIGTERM would take half a minute.
        spec={"containers": list(containers), "terminationGracePeriodSeconds": 5}
        | ({} if runtime is None else {"runtimeClassName": runtime})
        | spec,
    )


def deployment(name: str, *containers: Manifest, replicas: int = 1, **spec: Any) -> Manifest:
    return _object(
        "apps/v1",
        "Deployment",
        name,
        spec={
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": _template(name, *containers, **spec),
        },
    )


def job(name: str, *containers: Manifest, retries: int = 0, **spec: Any) -> Manifest:
    """Return a Job of one pod, which is made again ``retries`` times if it fails."""
    spec |= {"restartPolicy": "Never"}
    return _object(
        "batch/v1",
        "Job",
        name,
        spec={"backoffLimit": retries, "template": _template(name, *containers, **spec)},
    )


def service(name: str, port: int = 80) -> Manifest:
    """Return a Service for the pods of a name."""
    ports = [{"port": 80, "targetPort": port}]
    return _object("v1", "Service", name, spec={"selector": {"app": name}, "ports": ports})


def config_map(name: str, **data: str) -> Manifest:
    return _object("v1", "ConfigMap", name, data=data)


def secret(name: str, **data: str) -> Manifest:
    return _object("v1", "Secret", name, stringData=data)


def runtime_class(name: str, handler: str, **more: Any) -> Manifest:
    return _object("node.k8s.io/v1", "RuntimeClass", name, handler=handler, **more)


def _template(name: str, *containers: Manifest, **spec: Any) -> Manifest:
    whole = pod(name, *containers, **spec)
    return {"metadata": {"labels": whole["metadata"]["labels"]}, "spec": whole["spec"]}


def _object(version: str, kind: str, name: str, **fields: Any) -> Manifest:
    metadata = {"name": name, "labels": _LABELS | {"app": name}}
    return {"apiVersion": version, "kind": kind, "metadata": metadata} | fields
