"""The ``config.json`` of a pod's first container, which nobody sends with the sandbox API.

What containerd's own ``podsandbox`` controller would write. Source: containerd 2.4,
``internal/cri/server/podsandbox/sandbox_run_linux.go``.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Final

from containerd_shimkit.errors import InvalidArgumentError, UnimplementedError
from containerd_shimkit.oci.bundle import CONTAINER_TYPE, SANDBOX_ID
from containerd_shimkit.proto import pod_pb2 as cri

_NOBODY: Final = 65535  # what Kubernetes' pause image runs as
_OOM_SCORE_ADJ: Final = -998  # the last of a pod to be killed
_CPU_SHARES: Final = 2
_MASKED: Final = (
    *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi"),
)
_READONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def pause_spec(sandbox_id: str, config: cri.PodSandboxConfig, netns_path: str) -> dict[str, Any]:
    """Return the spec of the container that holds a pod's namespaces.

    netns_path: of the pod's network, which CRI has made; empty with the host's network.
    Raises InvalidArgumentError, UnimplementedError.
    """
    security = config.linux.security_context
    user = {
        "uid": security.run_as_user.value if security.HasField("run_as_user") else _NOBODY,
        "gid": security.run_as_group.value if security.HasField("run_as_group") else _NOBODY,
        "additionalGids": list(security.supplemental_groups),
    }
    return {
        "ociVersion": "1.1.0",
        "process": {
            "args": ["/pause"],
            "cwd": "/",
            "user": user,
            "noNewPrivileges": True,
            "oomScoreAdj": _OOM_SCORE_ADJ,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": config.hostname,
        "mounts": [
            {
                "destination": "/proc",
                "type": "proc",
                "source": "proc",
                "options": ["nosuid", "noexec", "nodev"],
            }
        ],
        "annotations": {
            **config.annotations,
            SANDBOX_ID: sandbox_id,
            CONTAINER_TYPE: "sandbox",
        },
        "linux": {
            "namespaces": _namespaces(security.namespace_options, netns_path),
            "cgroupsPath": _cgroups_path(config.linux.cgroup_parent, sandbox_id),
            "resources": {
                "cpu": {"shares": _CPU_SHARES},
                "devices": [{"allow": False, "access": "rwm"}],
            },
            "sysctl": dict(config.linux.sysctls),
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READONLY),
        },
    }


def _namespaces(options: cri.NamespaceOption, netns_path: str) -> list[dict[str, str]]:
    if options.HasField("userns_options") and options.userns_options.mode == cri.POD:
        raise UnimplementedError(
            'cannot run a pod with a user namespace of its own with sandboxer = "shim": '
            'use sandboxer = "podsandbox", the default'
        )
    namespaces = [{"type": "mount"}]
    if options.network != cri.NODE:
        if not netns_path:
            raise InvalidArgumentError("netns_path: is empty, and the pod's network not the host's")
        namespaces += [{"type": "network", "path": netns_path}, {"type": "uts"}]
    # Of a pod and of a container alike: the pause container is process 1 of what others may join.
    if options.pid != cri.NODE:
        namespaces.append({"type": "pid"})
    if options.ipc != cri.NODE:
        namespaces.append({"type": "ipc"})
    return namespaces


def _cgroups_path(parent: str, sandbox_id: str) -> str:
    """Return ``cgroupsPath`` for either cgroup driver, which the parent's name tells."""
    if not parent:
        return ""
    name = PurePosixPath(parent).name
    if name.endswith(".slice"):
        return f"{name}:cri-containerd:{sandbox_id}"
    return f"{parent}/{sandbox_id}"
