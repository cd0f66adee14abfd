"""AppArmor and SELinux. What needs a kernel with them, ``test_uml`` runs on one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from containerd_shimkit.errors import SandboxError, ShimError
from containerd_shimkit.linux import lsm
from containerd_shimkit.linux.lsm import ProcessLabels, apparmor_enabled, selinux_enabled
from containerd_shimkit.testing import BundleBuilder, in_clean_process, running_service

LABEL = "system_u:system_r:container_t:s0:c1,c2"
PROFILE = "shimkit-test"


# What is written


@pytest.fixture
def attributes(tmp_path: Path) -> Path:
    """A directory that stands for ``/proc/self/attr``."""
    directory = tmp_path / "attr"
    (directory / "apparmor").mkdir(parents=True)
    for name in ("current", "exec", "apparmor/current", "apparmor/exec"):
        (directory / name).write_bytes(b"")
    return directory


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A directory that stands for ``/sys`` with AppArmor switched on."""
    directory = tmp_path / "sys"
    parameters = directory / "module" / "apparmor" / "parameters"
    parameters.mkdir(parents=True)
    (parameters / "enabled").write_text("Y\n")
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(f.relative_to(directory)): data for f in files if (data := f.read_bytes())}


def open_labels(attributes: Path, sysfs: Path, profile: str, label: str = "") -> ProcessLabels:
    return ProcessLabels.open(profile, label, attributes=str(attributes), sysfs=str(sysfs))


def test_apparmor_profile_is_changed_at_once(attributes: Path, sysfs: Path) -> None:
    labels = open_labels(attributes, sysfs, "cri-containerd.apparmor.d")
    assert contents(attributes) == {}
    labels.apply()
    expected = b"changeprofile cri-containerd.apparmor.d"
    assert contents(attributes) == {"apparmor/current": expected}


def test_apparmor_of_a_kernel_before_5_8(attributes: Path, sysfs: Path) -> None:
    (attributes / "apparmor" / "current").unlink()
    open_labels(attributes, sysfs, "a").apply()
    assert contents(attributes) == {"current": b"changeprofile a"}


def test_selinux_label_is_written_as_it_is(
    attributes: Path, sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lsm, "selinux_enabled", lambda _: True)
    open_labels(attributes, sysfs, "", LABEL).apply()
    assert contents(attributes) == {"current": LABEL.encode()}


def test_files_are_those_that_were_opened(attributes: Path, sysfs: Path) -> None:
    """By the time of the change /proc is the container's, if there is one."""
    labels = open_labels(attributes, sysfs, "a")
    attributes.rename(attributes.with_name("old"))
    labels.apply()
    assert contents(attributes.with_name("old")) == {"apparmor/current": b"changeprofile a"}


def test_nothing_asked_for_opens_nothing(tmp_path: Path) -> None:
    open_labels(tmp_path / "nowhere", tmp_path / "nowhere", "").apply()


def test_no_descriptor_is_left(attributes: Path, sysfs: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    open_labels(attributes, sysfs, "a").apply()
    with pytest.raises(SandboxError):
        open_labels(attributes, sysfs, "a", LABEL)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("enabled", ["N\n", None])
def test_profile_on_a_kernel_without_apparmor_is_an_error(
    attributes: Path, sysfs: Path, enabled: str | None
) -> None:
    file = sysfs / "module" / "apparmor" / "parameters" / "enabled"
    file.unlink() if enabled is None else file.write_text(enabled)
    message = 'apply AppArmor profile "a": the kernel has no AppArmor, or it is switched off'
    with pytest.raises(SandboxError, match=message):
        open_labels(attributes, sysfs, "a")


def test_label_on_a_kernel_without_selinux_is_an_error(attributes: Path, sysfs: Path) -> None:
    with pytest.raises(SandboxError, match=f'apply SELinux label "{LABEL}": the kernel has no'):
        open_labels(attributes, sysfs, "", LABEL)
    with pytest.raises(SandboxError, match=f'label the mounts "{LABEL}": the kernel has no'):
        lsm.check_mount_label(LABEL, str(sysfs))
    lsm.check_mount_label("", str(sysfs))


def test_context_is_quoted() -> None:
    assert lsm.with_context("size=64k", LABEL) == f'size=64k,context="{LABEL}"'
    assert lsm.with_context("", LABEL) == f'context="{LABEL}"'
    assert lsm.with_context("size=64k", "") == "size=64k"


# A container that asks for what this kernel does not have


@pytest.mark.root
@pytest.mark.parametrize(
    ("section", "field"),
    [("process", "selinuxLabel"), ("linux", "mountLabel")] * (not selinux_enabled())
    + [("process", "apparmorProfile")] * (not apparmor_enabled()),
)
@in_clean_process
async def test_container_is_refused(
    tmp_path: Path, namespace: str, section: str, field: str
) -> None:
    bundle = BundleBuilder(tmp_path / "c", task_id="c", namespace=namespace)
    bundle.changes = {section: bundle.config()[section] | {field: "none-such"}}
    async with running_service(namespace) as running:
        with pytest.raises(ShimError, match='"none-such": the kernel has no'):
            await running.create(bundle)


# On a kernel with AppArmor


needs_apparmor = pytest.mark.skipif(
    not apparmor_enabled(), reason="needs a kernel with AppArmor: test_uml runs it on one"
)
needs_selinux = pytest.mark.skipif(
    not selinux_enabled(), reason="needs a kernel with SELinux: test_uml runs it on one"
)
RULES = """\
profile shimkit-test flags=(attach_disconnected) {
  capability,
  network,
  file,
  signal,
  deny /secret r,
  deny mount,
}
"""


@pytest.fixture
def profile() -> Iterator[str]:
    """A profile that is loaded."""
    load = ("apparmor_parser", "--skip-cache")
    subprocess.run([*load, "--replace"], input=RULES, text=True, check=True)
    yield PROFILE
    subprocess.run([*load, "--remove"], input=RULES, text=True, check=True)


def apparmor_of(pid: int) -> str:
    return Path(f"/proc/{pid}/attr/apparmor/current").read_text().strip()


@pytest.mark.root
@needs_apparmor
@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("uid", [0, 1000])
@in_clean_process
async def test_apparmor_engine_is_in_its_profile(
    tmp_path: Path, namespace: str, profile: str, no_new_privileges: bool, uid: int
) -> None:
    bundle = BundleBuilder(
        tmp_path / "c",
        task_id="c",
        namespace=namespace,
        uid=uid,
        no_new_privileges=no_new_privileges,
        env={"STUB_LISTEN": "127.0.0.1:8080"},
    )
    bundle.changes = {"process": bundle.config()["process"] | {"apparmorProfile": profile}}
    async with running_service(namespace) as running:
        pid = await running.run(bundle)
        assert apparmor_of(pid) == f"{profile} (enforce)"
        assert apparmor_of(os.getpid()) == "unconfined"


@pytest.mark.root
@needs_apparmor
@in_clean_process
async def test_apparmor_profile_forbids(tmp_path: Path, namespace: str, profile: str) -> None:
    """The engine as root reads a file of its image, and not with the profile."""
    async with running_service(namespace) as running:
        for name, asked in (("free", {}), ("bound", {"apparmorProfile": profile})):
            bundle = BundleBuilder(
                tmp_path / name,
                task_id=name,
                namespace=namespace,
                env={"STUB_COMPILE": "/secret"},
                files={"secret": b"\0asm\x01\0\0\0"},
            )
            bundle.changes = {"process": bundle.config()["process"] | asked}
            if not asked:
                await running.run(bundle)
                continue
            with pytest.raises(ShimError, match="Permission denied: '/secret'"):
                await running.run(bundle)


@pytest.mark.root
@needs_apparmor
@in_clean_process
async def test_apparmor_profile_that_is_not_loaded_is_an_error(
    tmp_path: Path, namespace: str
) -> None:
    bundle = BundleBuilder(tmp_path / "c", task_id="c", namespace=namespace)
    bundle.changes = {"process": bundle.config()["process"] | {"apparmorProfile": "none-such"}}
    message = 'apply AppArmor profile "none-such": no profile of that name is loaded'
    async with running_service(namespace) as running:
        with pytest.raises(ShimError, match=message):
            await running.create(bundle)


# On a kernel with SELinux

POLICY = """\
(handleunknown allow)
(class process (transition dyntransition setcurrent))
(class dir (mounton))
(classorder (process dir))
(sid kernel)
(sid security)
(sid unlabeled)
(sidorder (kernel security unlabeled))
(sensitivity s0)
(sensitivityorder (s0))
(category c1)
(category c2)
(categoryorder (c1 c2))
(sensitivitycategory s0 (c1 c2))
(user system_u)
(role system_r)
(type kernel_t)
(type container_t)
(type forbidden_t)
(userrole system_u system_r)
(roletype system_r kernel_t)
(roletype system_r container_t)
(roletype system_r forbidden_t)
(userlevel system_u (s0))
(userrange system_u ((s0) (s0 (c1 c2))))
(context own (system_u system_r kernel_t ((s0) (s0))))
(fsuse trans mqueue own)
(sidcontext kernel own)
(sidcontext security own)
(sidcontext unlabeled own)
(allow kernel_t self (process (setcurrent)))
(allow kernel_t self (dir (mounton)))
(allow kernel_t container_t (dir (mounton)))
(allow kernel_t container_t (process (dyntransition)))
"""


@pytest.fixture
def policy(tmp_path: Path) -> str:
    """A policy that is loaded and enforced; the label it has for containers."""
    (tmp_path / "policy.cil").write_text(POLICY)
    compiled = tmp_path / "policy"
    command = ("secilc", "--mls", "true", "--policyvers", "33", "--filecontext", "/dev/null")
    subprocess.run([*command, "--output", str(compiled), str(tmp_path / "policy.cil")], check=True)
    Path("/sys/fs/selinux/load").write_bytes(compiled.read_bytes())
    Path("/sys/fs/selinux/enforce").write_text("1")
    return LABEL


@pytest.mark.root
@needs_selinux
@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("uid", [0, 1000])
@in_clean_process
async def test_selinux_engine_has_its_label(
    tmp_path: Path, namespace: str, policy: str, no_new_privileges: bool, uid: int
) -> None:
    bundle = BundleBuilder(
        tmp_path / "c",
        task_id="c",
        namespace=namespace,
        uid=uid,
        no_new_privileges=no_new_privileges,
        env={"STUB_LISTEN": "127.0.0.1:8080"},
    )
    bundle.changes = {"process": bundle.config()["process"] | {"selinuxLabel": policy}}
    async with running_service(namespace) as running:
        pid = await running.run(bundle)
        assert Path(f"/proc/{pid}/attr/current").read_text().rstrip("\0") == policy


@pytest.mark.root
@needs_selinux
@in_clean_process
async def test_selinux_mounts_have_their_label(tmp_path: Path, namespace: str, policy: str) -> None:
    bundle = BundleBuilder(tmp_path / "c", task_id="c", namespace=namespace)
    bundle.changes = {"linux": bundle.config()["linux"] | {"mountLabel": policy}}
    async with running_service(namespace) as running:
        pid = await running.run(bundle)
        root = f"/proc/{pid}/root"
        labels = {
            path: os.getxattr(root + path, "security.selinux").rstrip(b"\0").decode()
            for path in ("/dev", "/dev/shm", "/dev/pts", "/dev/mqueue", "/run", "/sys/firmware")
            if Path(root + path).exists()
        }
        assert {"/dev", "/dev/shm", "/dev/pts", "/dev/mqueue", "/run"} <= labels.keys()
        assert set(labels.values()) == {policy}


@pytest.mark.root
@needs_selinux
@pytest.mark.parametrize(
    ("label", "cause"),
    [
        ("system_u:system_r:none_t:s0", "the kernel's policy has none like it"),
        ("system_u:system_r:forbidden_t:s0", "Permission denied"),
    ],
)
@in_clean_process
async def test_selinux_label_that_cannot_be_had_is_an_error(
    tmp_path: Path, namespace: str, policy: str, label: str, cause: str
) -> None:
    bundle = BundleBuilder(tmp_path / "c", task_id="c", namespace=namespace)
    bundle.changes = {"process": bundle.config()["process"] | {"selinuxLabel": label}}
    async with running_service(namespace) as running:
        with pytest.raises(ShimError, match=f'apply SELinux label "{label}": {cause}'):
            await running.create(bundle)
