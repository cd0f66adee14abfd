"""The whole of ``linux`` on a real kernel: one process isolated as a container's would be."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from containerd_shimkit.errors import SandboxError
from containerd_shimkit.linux import capabilities, paths, process, rootfs
from containerd_shimkit.linux.cgroups import Cgroup, join
from containerd_shimkit.linux.mounts import mount_rootfs
from containerd_shimkit.linux.namespaces import NamespacePlan
from containerd_shimkit.linux.rootfs import Rootfs
from containerd_shimkit.linux.syscalls import set_no_new_privs
from containerd_shimkit.oci.bundle import Bundle

pytestmark = pytest.mark.root
InChild = Callable[[Callable[[], object]], Any]
CONFIG = Path(__file__).parent / "data" / "config.json"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose image is one layer of an overlay, with volumes beside it."""
    path = tmp_path / "bundle"
    for name in ("rootfs", "volume", "secret"):
        (path / name).mkdir(parents=True)
    for name in ("upper", "work", "layer/etc", "layer/app"):
        (tmp_path / name).mkdir(parents=True)
    (path / "config.json").write_bytes(CONFIG.read_bytes())
    (path / "hosts").write_text("127.0.0.1 localhost\n")
    (path / "secret" / "value").write_text("s3cret")
    (tmp_path / "layer/app/app.wasm").write_bytes(b"\0asm")
    (tmp_path / "layer/var").mkdir()
    (tmp_path / "layer/var/run").symlink_to("/missing/run")  # dangling until it is made
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.getuid() and directory != Path("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o711)
        if directory == Path("/tmp"):
            break
    return path


def overlay(tmp_path: Path) -> list[SimpleNamespace]:
    options = [
        f"lowerdir={tmp_path}/layer",
        f"upperdir={tmp_path}/upper",
        f"workdir={tmp_path}/work",
    ]
    return [SimpleNamespace(type="overlay", source="overlay", target="", options=options)]


def isolate(
    bundle: Bundle, mounts: list[SimpleNamespace], cgroup: Cgroup, report: Callable[[], object]
) -> Any:
    """Do what stage and init do, in their order; return what ``report`` finds inside."""
    spec, linux = bundle.spec, bundle.spec.linux
    plan = NamespacePlan.open(linux.namespaces)
    procs_fds = cgroup.procs_fds()
    plan.enter_stage()
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        with os.fdopen(read, "rb") as file:
            answer = json.loads(file.read() or b"null")
        os.waitpid(pid, 0)
        if isinstance(answer, dict) and "error" in answer:
            raise SandboxError(*answer["error"])
        return answer
    try:
        init(bundle, mounts, cgroup, plan, procs_fds)
        answer = {"report": report(), "spec": spec.hostname}
    except SandboxError as exc:
        answer = {"error": [exc.step, exc.cause]}
    except BaseException as exc:
        answer = {"error": ["test", repr(exc)]}
    finally:
        os.write(write, json.dumps(answer).encode())
        os._exit(0)


def init(
    bundle: Bundle,
    mounts: list[SimpleNamespace],
    cgroup: Cgroup,
    plan: NamespacePlan,
    procs_fds: list[int],
) -> None:
    spec, linux = bundle.spec, bundle.spec.linux
    join(procs_fds)
    plan.enter_init()
    rootfs.isolate_propagation(str(bundle.rootfs), linux.rootfs_propagation)
    mount_rootfs(mounts, str(bundle.rootfs))
    root = Rootfs(str(bundle.rootfs))
    root.mount_all(spec.mounts, str(bundle.path), cgroup.mounts())
    if rootfs.has_own_dev(spec.mounts):
        root.create_devices(linux.devices)
    process.apply_sysctls(linux.sysctl, plan.types)
    process.set_oom_score_adj(500)
    root.make_readonly(linux.readonly_paths)
    root.mask(linux.masked_paths)
    process.apply_names(spec.hostname, spec.domainname)
    root.pivot(readonly=spec.root.readonly, propagation=linux.rootfs_propagation)
    process.apply_rlimits(spec.process.rlimits)
    sets, _ = capabilities.plan_sets(spec.process.capabilities)
    capabilities.limit_bounding(sets)
    user = spec.process.user
    process.apply_user(user.uid, user.gid, user.additional_gids, user.umask)
    capabilities.apply_sets(sets)
    set_no_new_privs()


def try_write(path: str) -> str:
    try:
        with open(path, "w") as file:
            file.write("x")
    except OSError as exc:
        return os.strerror(exc.errno or 0)
    return "written"


def listing(path: str) -> list[str]:
    return sorted(os.listdir(path))  # noqa: PTH208 - names are what is wanted


def inside() -> dict[str, object]:
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
    return {
        "pid": os.getpid(),
        "root": listing("/"),
        "dev": listing("/dev"),
        "cgroups": listing("/sys/fs/cgroup"),
        "interfaces": listing("/sys/class/net"),
        "mounts": [line.split()[4] for line in open("/proc/self/mountinfo")],
        "hostname": os.uname().nodename,
        "ids": [status["Uid"], status["Gid"], status["Groups"].split()],
        "caps": [status["CapEff"], status["CapPrm"], status["CapBnd"], status["CapAmb"]],
        "no_new_privs": status["NoNewPrivs"],
        "cgroup": Path("/proc/self/cgroup").read_text(),
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
        "oom": Path("/proc/self/oom_score_adj").read_text(),
        "port_start": Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text(),
        "shmmax": Path("/proc/sys/kernel/shmmax").read_text(),
        "secret": Path("/var/run/secrets/token/value").read_text(),
        "keys": Path("/proc/keys").read_text(),
        "firmware": listing("/sys/firmware"),
        "null": try_write("/dev/null"),
        "writes": [try_write(p) for p in ("/new", "/etc/hosts", "/proc/sys/kernel/shmmax")],
        "fd": str(Path("/dev/fd").readlink()),
        "umask_of_null": oct(Path("/dev/null").stat().st_mode),
    }


@pytest.fixture
def seen(bundle: Path, tmp_path: Path, cgroup: Cgroup, in_child: InChild) -> dict[str, Any]:
    loaded = Bundle.load(bundle)
    cgroup.create()
    assert cgroup.apply(loaded.spec.linux.resources) == []
    answer = in_child(lambda: isolate(loaded, overlay(tmp_path), cgroup, inside))
    report: dict[str, Any] = answer["report"]
    return report


def test_container_sees_itself_only(seen: dict[str, Any], tmp_path: Path) -> None:
    """The root is the image's, the pid 1, the names its own; no host mount is left."""
    top = ["app", "data", "dev", "etc", "missing", "proc", "run", "sys", "var"]
    assert seen["root"] == top
    assert seen["pid"] == 1
    assert seen["hostname"] == "wasm-pod"
    assert seen["interfaces"] == ["lo"]
    assert not [path for path in seen["mounts"] if str(tmp_path) in path]
    assert seen["mounts"][:3] == ["/", "/proc", "/dev"]
    assert seen["secret"] == "s3cret"
    assert "shimkit-test" not in seen["cgroup"]  # the cgroup namespace's root is its own
    assert "memory" in seen["cgroups"] or "memory.max" in seen["cgroups"]


def test_container_has_no_more_rights_than_its_spec(seen: dict[str, Any]) -> None:
    assert seen["ids"] == ["\t".join(["1000"] * 4), "\t".join(["1000"] * 4), ["10", "1000"]]
    bind, kill = 1 << 10, 1 << 5
    effective, permitted, bounding, ambient = (int(mask, 16) for mask in seen["caps"])
    assert (effective, permitted, ambient) == (bind, bind | kill, bind)
    assert bounding == bind | kill | 1 | 1 << 13
    assert seen["no_new_privs"] == "1"
    assert seen["nofile"] == [1024, 1024]
    assert seen["oom"] == "500\n"
    assert (seen["port_start"], seen["shmmax"]) == ("0\n", "1048576\n")


def test_container_paths_are_masked_and_read_only(seen: dict[str, Any]) -> None:
    assert seen["keys"] == ""
    assert seen["firmware"] == []
    assert seen["writes"] == ["Read-only file system"] * 3
    assert seen["null"] == "written"
    assert seen["umask_of_null"] == "0o20666"
    assert seen["fd"] == "/proc/self/fd"
    devices = {"full", "null", "ptmx", "pts", "random", "shm", "tty", "urandom", "zero"}
    assert devices <= set(seen["dev"])


def test_nothing_is_left_on_the_host(seen: dict[str, Any], bundle: Path, cgroup: Cgroup) -> None:
    """The mounts lived in the container's namespace; the host's directory is as it was."""
    assert list((bundle / "rootfs").iterdir()) == []
    assert str(bundle) not in Path("/proc/self/mountinfo").read_text()
    assert cgroup.pids() == []


# A hostile image


def no_such_call(*_args: object, **_options: object) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def tree(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


@pytest.mark.parametrize("has_openat2", [True, False], ids=["openat2", "walk"])
@pytest.mark.parametrize(
    ("link", "target", "error"),
    [
        ("proc", "/", "symbolic link"),
        ("proc", "/etc", "symbolic link"),
        ("sys", "../../../..", "symbolic link"),
        ("dev", "/", "cover the rootfs itself"),
        ("run", "..", "cover the rootfs itself"),
        ("dev", "/etc", None),
        ("dev", "{victim}", None),
        ("dev", "../../../../../../..{victim}", None),
        ("data", "{victim}", None),
        ("run", "loop", None),
        ("var", "/proc/self/root", None),
        ("var", "/proc/1/root{victim}", None),
        ("etc", "{victim}", None),
    ],
)
def test_hostile_image_reaches_nothing_outside(
    link: str,
    target: str,
    error: str | None,
    bundle: Path,
    tmp_path: Path,
    cgroup: Cgroup,
    in_child: InChild,
    has_openat2: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the image has a link instead of a directory, nothing outside of the image changes."""
    if not has_openat2:
        monkeypatch.setattr(paths, "openat2", no_such_call)
    victim, layer = tmp_path / "victim", tmp_path / "layer"
    victim.mkdir()
    (victim / "precious").write_text("precious")
    (layer / "var/run").unlink()
    (layer / "etc").rmdir() if link == "etc" else None
    (layer / "var").rmdir() if link == "var" else None
    (layer / link).symlink_to(target.format(victim=victim))
    loaded = Bundle.load(bundle)
    before = {path: tree(path) for path in (victim, bundle)}
    host = set(os.listdir("/"))  # noqa: PTH208
    cgroup.create()

    def run() -> object:
        try:
            return isolate(loaded, overlay(tmp_path), cgroup, lambda: listing("/"))
        except SandboxError as exc:
            return {"error": str(exc)}

    answer = in_child(run)
    assert {path: tree(path) for path in (victim, bundle)} == before
    assert (victim / "precious").read_text() == "precious"
    assert set(os.listdir("/")) == host  # noqa: PTH208
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    if error:
        assert error in answer["error"]
    elif not target.startswith("/proc"):
        assert "proc" in answer["report"]
