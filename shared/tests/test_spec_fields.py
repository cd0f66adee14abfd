"""Fields of ``config.json``, as the kernel shows it. docs/isolation.md has them all."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.errors import ShimError
from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.syscalls import mount, setns, umount2, unshare
from containerd_shimkit.testing import BundleBuilder, in_clean_process, running_service

pytestmark = pytest.mark.root

SYS_IOPRIO_GET = {"x86_64": 252, "aarch64": 31}


def builder(tmp_path: Path, namespace: str, **fields: Any) -> BundleBuilder:
    return BundleBuilder(tmp_path / "c", task_id="c", namespace=namespace, **fields)


def changed(bundle: BundleBuilder, section: str, **fields: Any) -> BundleBuilder:
    """Return the bundle with fields of a section of its config replaced."""
    bundle.changes = dict(bundle.changes) | {section: bundle.config()[section] | fields}
    return bundle


async def refusal(bundle: BundleBuilder) -> str:
    async with running_service(bundle.namespace) as running:
        with pytest.raises(ShimError) as caught:
            await running.create(bundle)
    return str(caught.value)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def in_child(look: Callable[[], str]) -> str:
    """Return what ``look`` finds in a forked child, which may enter namespaces."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, look().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        found = file.read()
    os.waitpid(pid, 0)
    return found


# process


@in_clean_process
async def test_scheduler(tmp_path: Path, namespace: str) -> None:
    scheduler = {"policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}
    async with running_service(namespace) as running:
        bundle = changed(builder(tmp_path, namespace), "process", scheduler=scheduler)
        pid = await running.run(bundle)
        assert os.sched_getscheduler(pid) == os.SCHED_BATCH | os.SCHED_RESET_ON_FORK
        assert os.getpriority(os.PRIO_PROCESS, pid) == 5


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"policy": "SCHED_FAST"}, 'unknown scheduler policy "SCHED_FAST"'),
        ({"policy": "SCHED_OTHER", "flags": ["X"]}, 'unknown scheduler flag "X"'),
        ({"policy": "SCHED_OTHER", "priority": 9}, "set scheduler SCHED_OTHER: sched_setattr()"),
    ],
)
@in_clean_process
async def test_scheduler_that_cannot_be_set_is_an_error(
    tmp_path: Path, namespace: str, scheduler: dict[str, Any], message: str
) -> None:
    bundle = changed(builder(tmp_path, namespace), "process", scheduler=scheduler)
    assert message in await refusal(bundle)


@in_clean_process
async def test_io_priority(tmp_path: Path, namespace: str) -> None:
    priority = {"class": "IOPRIO_CLASS_BE", "priority": 6}
    async with running_service(namespace) as running:
        bundle = changed(builder(tmp_path, namespace), "process", ioPriority=priority)
        pid = await running.run(bundle)
        number = SYS_IOPRIO_GET[os.uname().machine]
        assert ctypes.CDLL(None).syscall(number, 1, pid) == 2 << 13 | 6


@in_clean_process
async def test_unknown_io_priority_is_an_error(tmp_path: Path, namespace: str) -> None:
    bundle = builder(tmp_path, namespace)
    bundle = changed(bundle, "process", ioPriority={"class": "BEST", "priority": 1})
    assert 'unknown I/O priority class "BEST"' in await refusal(bundle)


@in_clean_process
async def test_umask_is_022_unless_the_spec_has_one(tmp_path: Path, namespace: str) -> None:
    os.umask(0o077)  # containerd's, say
    async with running_service(namespace) as running:
        pid = await running.create(builder(tmp_path, namespace))
        assert status_of(pid)["Umask"] == "0022"
        await running.remove("c")
        user = {"uid": 0, "gid": 0, "umask": 0o027}
        pid = await running.create(changed(builder(tmp_path, namespace), "process", user=user))
        assert status_of(pid)["Umask"] == "0027"


@in_clean_process
async def test_ambient_capabilities(tmp_path: Path, namespace: str) -> None:
    """A user who is not root has what is in the effective set, and would have it after exec."""
    names = ["CAP_NET_BIND_SERVICE"]
    sets = dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), names)
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace, uid=1000)
        pid = await running.run(changed(bundle, "process", capabilities=sets))
        status = status_of(pid)
        found = {name: int(status[f"Cap{name}"], 16) for name in ("Eff", "Prm", "Bnd", "Amb")}
        assert set(found.values()) == {1 << 10}, found


@in_clean_process
async def test_oom_score_adj(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundle = changed(builder(tmp_path, namespace), "process", oomScoreAdj=321)
        pid = await running.run(bundle)
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "321\n"


@in_clean_process
async def test_session_keyring_is_a_new_one(tmp_path: Path, namespace: str) -> None:
    number = k.SYS_KEYCTL[os.uname().machine]
    ask = f"ctypes.CDLL(None).syscall({number}, 0, -3, 0)"  # KEYCTL_GET_KEYRING_ID of the session's
    script = f"import ctypes; print({ask}, file=open('{tmp_path}/keyring', 'w'))"
    hook = {"path": sys.executable, "args": ["python", "-I", "-c", script]}
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace, changes={"hooks": {"createContainer": [hook]}})
        await running.create(bundle)
    ours = ctypes.CDLL(None).syscall(number, 0, -3, 0)
    assert int((tmp_path / "keyring").read_text()) not in (ours, -1)


# linux


@in_clean_process
async def test_time_offsets(tmp_path: Path, namespace: str) -> None:
    offsets = {"monotonic": {"secs": 86400}, "boottime": {"secs": -1, "nanosecs": 500_000_000}}
    async with running_service(namespace) as running:
        kinds = dict.fromkeys(("pid", "ipc", "uts", "mount", "network", "time"))
        bundle = builder(tmp_path, namespace, namespaces=kinds)
        pid = await running.run(changed(bundle, "linux", timeOffsets=offsets))
        lines = Path(f"/proc/{pid}/timens_offsets").read_text().splitlines()
        assert [line.split() for line in lines] == [
            ["monotonic", "86400", "0"],
            ["boottime", "-1", "500000000"],
        ]


@in_clean_process
async def test_time_offsets_need_a_namespace(tmp_path: Path, namespace: str) -> None:
    bundle = builder(tmp_path, namespace)
    bundle = changed(bundle, "linux", timeOffsets={"monotonic": {"secs": 1}})
    assert "time offsets need a new time namespace" in await refusal(bundle)


@in_clean_process
async def test_personality(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundle = changed(builder(tmp_path, namespace), "linux", personality={"domain": "LINUX32"})
        pid = await running.run(bundle)
        assert Path(f"/proc/{pid}/personality").read_text() == "00000008\n"


@in_clean_process
async def test_names(tmp_path: Path, namespace: str) -> None:
    def look() -> str:
        setns(os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY))
        return os.uname().nodename + Path("/proc/sys/kernel/domainname").read_text()

    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace, hostname="host", changes={"domainname": "domain"})
        pid = await running.run(bundle)
        assert in_child(look) == "hostdomain\n"


@in_clean_process
async def test_names_without_a_namespace_are_refused(tmp_path: Path, namespace: str) -> None:
    kinds = dict.fromkeys(("pid", "ipc", "mount", "network"))
    bundle = builder(tmp_path, namespace, hostname="host", namespaces=kinds)
    assert "hostname and domainname need a uts namespace" in await refusal(bundle)


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("intelRdt", {"closID": "x"}, "linux.intelRdt"),
        ("memoryPolicy", {"mode": "MPOL_BIND", "nodes": "0"}, "linux.memoryPolicy"),
        ("netDevices", {"eth1": {}}, "linux.netDevices"),
        ("personality", {"domain": "LINUX", "flags": ["X"]}, "linux.personality.flags"),
        ("personality", {"domain": "BSD"}, 'unknown personality "BSD"'),
    ],
)
@in_clean_process
async def test_what_is_not_done_is_refused(
    tmp_path: Path, namespace: str, field: str, value: dict[str, Any], name: str
) -> None:
    assert name in await refusal(changed(builder(tmp_path, namespace), "linux", **{field: value}))


@in_clean_process
async def test_id_mapped_mount_is_refused(tmp_path: Path, namespace: str) -> None:
    mapping = [{"containerID": 0, "hostID": 1000, "size": 1}]
    entry = {"destination": "/x", "source": str(tmp_path), "options": ["bind"]}
    bundle = builder(tmp_path, namespace, mounts=[entry | {"uidMappings": mapping}])
    assert 'id mapping of mount "/x": not supported' in await refusal(bundle)


# mounts


@pytest.mark.parametrize(("option", "below"), [("ro", "rw"), ("rro", "ro")])
@in_clean_process
async def test_read_only_volume_with_a_mount_below(
    tmp_path: Path, namespace: str, option: str, below: str
) -> None:
    unshare(k.CLONE_NEWNS)
    mount(None, "/", None, k.MS_PRIVATE | k.MS_REC)
    volume = tmp_path / "volume"
    (volume / "below").mkdir(parents=True)
    mount("tmpfs", str(volume / "below"), "tmpfs")
    entry = {"destination": "/data", "source": str(volume), "options": ["rbind", option]}
    async with running_service(namespace) as running:
        pid = await running.run(builder(tmp_path, namespace, mounts=[entry]))
        flags = mount_flags(pid)
    assert (flags["/data"], flags["/data/below"]) == ("ro", below)
    umount2(str(volume / "below"))


def mount_flags(pid: int) -> dict[str, str]:
    """Return ``ro`` or ``rw`` by mount point."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return {fields[4]: fields[5].split(",")[0] for fields in map(str.split, lines)}


@in_clean_process
async def test_volumes_as_kubelet_makes_them(tmp_path: Path, namespace: str) -> None:
    """A ConfigMap, one file of it (subPath), an emptyDir, through links that the image has."""
    config = tmp_path / "config"
    (config / "..1").mkdir(parents=True)
    (config / "..1" / "key").write_text("value")
    (config / "..data").symlink_to("..1")
    (config / "key").symlink_to("..data/key")
    (tmp_path / "empty").mkdir()
    entries = [
        ("/etc/config", config, ["rbind", "rprivate", "ro"]),
        ("/etc/app/key", config / "..1" / "key", ["rbind", "rprivate", "ro"]),
        ("/link/empty", tmp_path / "empty", ["rbind", "rprivate", "rw"]),
    ]
    mounts = [
        {"destination": path, "type": "bind", "source": str(source), "options": options}
        for path, source, options in entries
    ]
    bundle = builder(tmp_path, namespace, mounts=mounts)
    bundle.rootfs.mkdir(parents=True)
    (bundle.rootfs / "link").symlink_to("/../../real")
    async with running_service(namespace) as running:
        pid = await running.run(bundle)
        flags = mount_flags(pid)
        assert {path: flags[path] for path in ("/etc/config", "/etc/app/key", "/real/empty")} == {
            "/etc/config": "ro",
            "/etc/app/key": "ro",
            "/real/empty": "rw",
        }
        root = Path(f"/proc/{pid}/root")
        assert (root / "etc/config/key").read_text() == "value"
        assert (root / "etc/app/key").read_text() == "value"


@in_clean_process
async def test_cgroup_mount_is_the_containers_own(tmp_path: Path, namespace: str) -> None:
    options = ["nosuid", "noexec", "nodev", "relatime", "ro"]
    entry = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}
    kinds = dict.fromkeys(("pid", "ipc", "uts", "mount", "network", "cgroup"))
    async with running_service(namespace) as running:
        bundle = builder(
            tmp_path, namespace, namespaces=kinds, mounts=[entry | {"options": options}]
        )
        pid = await running.run(bundle)
        lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        found = [f for f in map(str.split, lines) if f[f.index("-") + 1] in ("cgroup", "cgroup2")]
        assert found
        # As seen from the host's cgroup namespace, which reads this file.
        assert {fields[3] for fields in found} == {f"/{namespace}/c"}
        assert {fields[5].split(",")[0] for fields in found} == {"ro"}


def test_spec_of_an_ordinary_container_may_ask_for_more(tmp_path: Path) -> None:
    """runc does what a guest cannot have; the pause container's spec is read here, too."""
    from containerd_shimkit.oci.bundle import Bundle

    mapping = [{"containerID": 0, "hostID": 1000, "size": 1}]
    entry = {"destination": "/x", "source": "/x", "options": ["bind"], "uidMappings": mapping}
    bundle = changed(builder(tmp_path, "n", mounts=[entry]), "linux", intelRdt={"closID": "x"})
    assert json.loads((bundle.write() / "config.json").read_text())["linux"]["intelRdt"]
    assert Bundle.load(bundle.path).spec.linux.unsupported == ("linux.intelRdt",)
