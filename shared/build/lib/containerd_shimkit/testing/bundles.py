"""Bundles as ``ctr run`` makes them: ``config.json``, a rootfs and, if asked, its layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from containerd_shimkit.proto import types_pb2

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Source: containerd oci/spec.go, defaultUnixCaps and defaultMounts.
DEFAULT_CAPABILITIES = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW"),
    *("CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE"),
    *("CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"),
)
_NO_EXEC = ("nosuid", "noexec", "nodev")
DEFAULT_MOUNTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("/proc", "proc", "proc", _NO_EXEC),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    ("/dev/shm", "tmpfs", "shm", (*_NO_EXEC, "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", _NO_EXEC),
    ("/sys", "sysfs", "sysfs", (*_NO_EXEC, "ro")),
    ("/run", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
)
MASKED_PATHS = (
    *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"),
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass
class BundleBuilder:
    """One bundle; set what differs from ``ctr run IMAGE ID``, then ``write``."""

    path: Path
    """The bundle's directory; layers of an overlay lie beside it."""
    task_id: str = "test"
    namespace: str = "default"
    args: Sequence[str] = ("/app",)
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to PATH."""
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    additional_gids: Sequence[int] = ()
    capabilities: Sequence[str] = DEFAULT_CAPABILITIES
    """The same in the bounding, effective and permitted set."""
    rlimits: Mapping[str, tuple[int, int]] = field(
        default_factory=lambda: {"RLIMIT_NOFILE": (1024, 1024)}
    )
    """Soft and hard limit by name."""
    no_new_privileges: bool = True
    hostname: str = ""
    mounts: Sequence[Mapping[str, Any]] = ()
    """Entries of ``mounts`` after those every container has."""
    namespaces: Mapping[str, str | None] = field(
        default_factory=lambda: dict.fromkeys(("pid", "ipc", "uts", "mount", "network"))
    )
    """Path by type; None is a new one."""
    host_network: bool = False
    """Like ``ctr run --net-host``: no network namespace."""
    cgroups_path: str | None = None
    """None is what ctr sets, ``/NAMESPACE/ID``; empty is no cgroup."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes | str] = field(default_factory=dict)
    """The image: contents by path."""
    overlay: bool = False
    """Whether the image is a layer that Create mounts; else it lies in ``rootfs`` itself."""
    readonly: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Top-level fields of ``config.json`` that replace the built ones."""

    def write(self) -> Path:
        """Write everything; return the bundle's directory."""
        self.rootfs.mkdir(parents=True, exist_ok=True)
        image = self.rootfs
        if self.overlay:
            image = self.layers / "layer"
            for name in ("layer", "upper", "work"):
                (self.layers / name).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            file = image / name.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        (self.path / "config.json").write_text(json.dumps(self.config()))
        return self.path

    @property
    def rootfs(self) -> Path:
        return self.path / "rootfs"

    @property
    def layers(self) -> Path:
        """Where the parts of the overlay are."""
        return self.path.with_name(f"{self.path.name}-layers")

    @property
    def rootfs_mounts(self) -> list[types_pb2.Mount]:
        """What Create is to mount on ``rootfs``."""
        if not self.overlay:
            return []
        options = [
            "index=off",
            f"workdir={self.layers / 'work'}",
            f"upperdir={self.layers / 'upper'}",
            f"lowerdir={self.layers / 'layer'}",
        ]
        return [types_pb2.Mount(type="overlay", source="overlay", options=options)]

    def config(self) -> dict[str, Any]:
        """Return ``config.json``."""
        config: dict[str, Any] = {
            "ociVersion": "1.0.2-dev",
            "process": self._process(),
            "root": {"path": "rootfs", "readonly": self.readonly},
            "mounts": self._mounts(),
            "linux": self._linux(),
        }
        if self.hostname:
            config["hostname"] = self.hostname
        if self.annotations:
            config["annotations"] = dict(self.annotations)
        return config | dict(self.changes)

    def _process(self) -> dict[str, Any]:
        sets = ("bounding", "effective", "permitted")
        environment = {"PATH": DEFAULT_PATH} | dict(self.env)
        return {
            "user": {
                "uid": self.uid,
                "gid": self.gid,
                "additionalGids": list(self.additional_gids),
            },
            "args": list(self.args),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": self.cwd,
            "capabilities": {name: list(self.capabilities) for name in sets},
            "rlimits": [
                {"type": name, "soft": soft, "hard": hard}
                for name, (soft, hard) in self.rlimits.items()
            ],
            "noNewPrivileges": self.no_new_privileges,
        }

    def _mounts(self) -> list[dict[str, Any]]:
        default = [
            {"destination": target, "type": kind, "source": source, "options": list(options)}
            for target, kind, source, options in DEFAULT_MOUNTS
        ]
        return default + [dict(mount) for mount in self.mounts]

    def _linux(self) -> dict[str, Any]:
        path = self.cgroups_path
        if path is None:
            path = f"/{self.namespace}/{self.task_id}"
        return {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]} | dict(self.resources),
            "cgroupsPath": path,
            "namespaces": [
                {"type": kind, "path": where} if where else {"type": kind}
                for kind, where in self.namespaces.items()
                if not (self.host_network and kind == "network")
            ],
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
        }
