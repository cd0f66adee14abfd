"""Namespaces: which are made, which are joined, and by whom."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from containerd_shimkit.errors import BundleError, SandboxError
from containerd_shimkit.linux import capabilities, process
from containerd_shimkit.linux.namespaces import NamespacePlan

InChild = Callable[[Callable[[], object]], Any]


def namespaces(**paths: str | None) -> list[SimpleNamespace]:
    return [SimpleNamespace(type=kind, path=path) for kind, path in paths.items()]


def current(kind: str) -> str:
    return os.readlink(f"/proc/self/ns/{kind}")  # noqa: PTH115


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        (namespaces(mount=None) * 2, "given twice"),
        (namespaces(mount=None, moon=None), "unknown namespace type"),
        (namespaces(mount=None, network="relative"), "not absolute"),
        (namespaces(pid=None), "new mount namespace is needed"),
        (namespaces(mount="/proc/self/ns/mnt"), "new mount namespace is needed"),
    ],
)
def test_open_refuses(entries: list[SimpleNamespace], error: str) -> None:
    with pytest.raises(BundleError, match=error):
        NamespacePlan.open(entries)


def test_open_of_a_pod_that_is_gone_names_the_path() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    entries = namespaces(mount=None, ipc="/proc/self/ns/ipc", network="/proc/0/ns/net")
    with pytest.raises(SandboxError, match='open network namespace "/proc/0/ns/net": No such'):
        NamespacePlan.open(entries)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.root
def test_stage_leaves_mount_and_cgroup_to_the_init(in_child: InChild) -> None:
    kinds = ("net", "ipc", "uts", "mnt", "cgroup")

    def run() -> object:
        plan = NamespacePlan.open(
            namespaces(network=None, ipc=None, uts=None, mount=None, cgroup=None)
        )
        host = [current(kind) for kind in kinds]
        plan.enter_stage()
        stage = [current(kind) for kind in kinds]
        plan.enter_init()
        init = [current(kind) for kind in kinds]
        return host, stage, init

    host, stage, init = in_child(run)
    changed = [[a != b for a, b in zip(host, now, strict=True)] for now in (stage, init)]
    assert changed == [[True, True, True, False, False], [True] * 5]


@pytest.mark.root
def test_second_container_joins_the_pods_namespaces(in_child: InChild) -> None:
    """As an app container does with the paths of the pause process."""
    told, tell = os.pipe()
    pause = os.fork()
    if pause == 0:
        NamespacePlan.open(namespaces(mount=None, network=None, ipc=None, uts=None)).enter_stage()
        os.write(tell, b"1")
        signal.pause()
        os._exit(0)
    os.read(told, 1)
    paths = {"network": "net", "ipc": "ipc", "uts": "uts"}
    entries = namespaces(
        mount=None, **{kind: f"/proc/{pause}/ns/{name}" for kind, name in paths.items()}
    )

    def run() -> object:
        plan = NamespacePlan.open(entries)
        plan.enter_stage()
        plan.close()
        return [current(name) == os.readlink(f"/proc/{pause}/ns/{name}") for name in paths.values()]  # noqa: PTH115

    try:
        assert in_child(run) == [True, True, True]
    finally:
        os.kill(pause, 9)
        os.waitpid(pause, 0)
        os.close(told)
        os.close(tell)


@pytest.mark.root
def test_join_of_the_wrong_kind_says_which(in_child: InChild) -> None:
    def run() -> object:
        plan = NamespacePlan.open(namespaces(mount=None, network="/proc/self/ns/ipc"))
        try:
            plan.enter_stage()
        except SandboxError as exc:
            return str(exc)
        return ""

    assert in_child(run) == 'join network namespace "/proc/self/ns/ipc": setns(): Invalid argument'


@pytest.mark.root
def test_new_user_namespace_maps_root(in_child: InChild) -> None:
    mapping = [SimpleNamespace(container_id=0, host_id=100000, size=65536)]

    def run() -> object:
        plan = NamespacePlan.open(namespaces(mount=None, user=None, uts=None, network=None))
        plan.enter_stage(mapping, mapping)
        plan.enter_init()
        return os.getuid(), Path("/proc/self/uid_map").read_text().split()

    assert in_child(run) == [0, ["0", "100000", "65536"]]


# The process itself


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.1/forwarding", "/proc/sys/net/ipv4/conf/eth0.1/forwarding"),
        ("net.ipv4.conf.eth0/1.forwarding", "/proc/sys/net/ipv4/conf/eth0.1/forwarding"),
        ("kernel.shmmax", "/proc/sys/kernel/shmmax"),
        ("fs.mqueue.msg_max", "/proc/sys/fs/mqueue/msg_max"),
    ],
)
def test_sysctl_path(name: str, path: str) -> None:
    assert process.sysctl_path(name, {"network", "ipc"}) == path


@pytest.mark.parametrize(
    "name", ["kernel.panic", "vm.swappiness", "net/../kernel/panic", "kernel.hostname", "", "net."]
)
def test_sysctl_of_the_host_is_refused(name: str) -> None:
    with pytest.raises(BundleError):
        process.sysctl_path(name, {"network", "ipc", "uts"})


def test_sysctl_needs_its_namespace() -> None:
    with pytest.raises(BundleError, match="shares the host's network namespace"):
        process.sysctl_path("net.core.somaxconn", {"ipc"})


@pytest.mark.root
def test_rlimit_that_may_not_be_raised_is_a_warning(in_child: InChild) -> None:
    limit = SimpleNamespace(type="RLIMIT_NOFILE", soft=600000, hard=600000)

    def run() -> object:
        capabilities.limit_bounding(capabilities.CapabilitySets())
        process.apply_user(1000, 1000)
        capabilities.apply_sets(capabilities.CapabilitySets())
        return process.apply_rlimits([limit]), process.set_oom_score_adj(-500)

    limits, adjust = in_child(run)
    assert limits[0].startswith("RLIMIT_NOFILE stays at ")
    assert "CAP_SYS_RESOURCE" in adjust[0]


def test_unknown_capability_is_left_out_with_a_warning() -> None:
    sets, warnings = capabilities.plan_sets({"effective": ["CAP_FLY"], "permitted": ["CAP_FLY"]})
    assert sets == capabilities.CapabilitySets()
    assert warnings == ["capability CAP_FLY is not known: left out"]
