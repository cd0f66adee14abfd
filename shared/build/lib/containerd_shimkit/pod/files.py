"""Files that all containers of a pod see: its name resolution, its hostname, its shared memory.

CRI makes them for its own ``podsandbox`` controller. With the sandbox API it leaves them to the
shim, and so they lie in a small tmpfs on the ``rootfs`` of the pod's bundle: containerd unmounts
what is there when it deletes the bundle, even after the shim was killed.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, Final

from containerd_shimkit.errors import InvalidArgumentError
from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.mounts import unmount
from containerd_shimkit.linux.syscalls import mount, step
from containerd_shimkit.oci.bundle import load_config
from containerd_shimkit.proto import pod_pb2 as cri

_SHM: Final = "/dev/shm"
_SIZE: Final = "size=65536k"  # as much as /dev/shm has by default
_HOST_HOSTS: Final = Path("/etc/hosts")
_HOST_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_MAX_HOST_FILE_BYTES: Final = 1 << 20


class PodFiles:
    """The files of one pod."""

    def __init__(self, bundle: Path) -> None:
        """bundle: the pod's."""
        self._directory = bundle / "rootfs"

    def write(self, config: cri.PodSandboxConfig) -> None:
        """Make them. Raises SandboxError, InvalidArgumentError."""
        files = {
            "/etc/hostname": f"{config.hostname or socket.gethostname()}\n",
            "/etc/hosts": _read_host_file(_HOST_HOSTS),
            "/etc/resolv.conf": _resolv_conf(config),
        }
        with step("make the pod's files"):
            flags = k.MS_NOSUID | k.MS_NODEV | k.MS_NOEXEC
            mount("tmpfs", str(self._directory), "tmpfs", flags, f"mode=755,{_SIZE}")
            for directory in ("etc", "dev", "proc"):
                (self._directory / directory).mkdir()
            shm = self._path(_SHM)
            shm.mkdir()
            shm.chmod(0o1777)
            for name, text in files.items():
                self._path(name).write_text(text)

    def remove(self) -> None:
        """Take them away; fine if they are not there. Raises SandboxError."""
        unmount(str(self._directory))

    def add_to(self, bundle: Path) -> None:
        """Mount them in a container of the pod, where its ``config.json`` has nothing of its own.

        Raises BundleError.
        """
        config = load_config(bundle)
        if not isinstance(config, dict):
            return  # whoever reads it as a spec says what is wrong
        mounts = config.setdefault("mounts", [])
        if not isinstance(mounts, list):
            return
        root = config.get("root")
        mode = "ro" if isinstance(root, dict) and root.get("readonly") else "rw"
        for name in ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf"):
            if not _mounts_on(mounts, name):
                mounts.append(self._bind(name, mode))
        # Every container has a tmpfs of its own there unless the spec's author replaced it.
        shm = _mounts_on(mounts, _SHM)
        if all(entry.get("type") == "tmpfs" for entry in shm):
            mounts[:] = [entry for entry in mounts if entry not in shm]
            mounts.append(self._bind(_SHM, "rw"))
        temporary = bundle / f".config.json.{os.getpid()}"
        temporary.write_text(json.dumps(config))
        temporary.rename(bundle / "config.json")

    def _bind(self, name: str, mode: str) -> dict[str, Any]:
        options = ["rbind", "rprivate", "nosuid", "nodev", "noexec", mode]
        return {
            "destination": name,
            "type": "bind",
            "source": str(self._path(name)),
            "options": options,
        }

    def _path(self, name: str) -> Path:
        return self._directory / name.lstrip("/")


def _mounts_on(mounts: list[Any], destination: str) -> list[dict[str, Any]]:
    return [
        entry
        for entry in mounts
        if isinstance(entry, dict)
        and os.path.normpath(str(entry.get("destination"))) == destination
    ]


def _resolv_conf(config: cri.PodSandboxConfig) -> str:
    """Return the pod's resolv.conf(5); where CRI is told nothing of DNS, the host's."""
    if not config.HasField("dns_config"):
        return _read_host_file(_HOST_RESOLV_CONF)
    dns = config.dns_config
    lines = [f"nameserver {server}" for server in dns.servers]
    if dns.searches:
        lines.append(f"search {' '.join(dns.searches)}")
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}")
    if any(not line.isprintable() for line in lines):
        raise InvalidArgumentError("dns_config: a value has a line break or a control character")
    return "".join(f"{line}\n" for line in lines)


def _read_host_file(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_HOST_FILE_BYTES)
    except OSError:
        return ""
