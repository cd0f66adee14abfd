"""The cgroup of a container, on whichever version this host has.

A path of the form "slice:prefix:name" has systemd make it and keep its limits (the driver named
systemd); for any other one the directories are made and the files written here (cgroupfs).
"""

from __future__ import annotations

from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.cgroups.base import (
    ROOT,
    Cgroup,
    CgroupStats,
    CpuStats,
    IoStats,
    MemoryCounter,
    Resources,
    join,
    plain_path,
    systemd_unit,
)
from containerd_shimkit.linux.cgroups.scope import open_scope
from containerd_shimkit.linux.cgroups.v1 import CgroupV1
from containerd_shimkit.linux.cgroups.v2 import CgroupV2
from containerd_shimkit.linux.syscalls import filesystem_type, step

__all__ = [
    "Cgroup",
    "CgroupStats",
    "CpuStats",
    "IoStats",
    "MemoryCounter",
    "Resources",
    "cgroup_version",
    "join",
    "open_cgroup",
    "systemd_unit",
]


def cgroup_version(root: str = ROOT) -> int:
    """Return 2 for a unified host, 1 for a legacy or hybrid one, whose limits are version 1's."""
    with step(f'find the cgroup version of "{root}"'):
        return 2 if filesystem_type(root) == k.CGROUP2_SUPER_MAGIC else 1


def open_cgroup(
    cgroups_path: str,
    task_id: str,
    *,
    root: str = ROOT,
    version: int | None = None,
    proc_cgroup: str = "/proc/self/cgroup",
) -> Cgroup:
    """Return the cgroup of ``linux.cgroupsPath``, which need not exist yet.

    Raises BundleError for a path that leads elsewhere, FailedPreconditionError for one of systemd's
    where it does not run.
    """
    path = plain_path(cgroups_path, task_id)
    version = version or cgroup_version(root)
    if (unit := systemd_unit(cgroups_path)) is not None:
        return open_scope(*unit, path, version, root, proc_cgroup)
    if version == 2:
        return CgroupV2.open(path, root, proc_cgroup)
    return CgroupV1.open(path, root, proc_cgroup)
