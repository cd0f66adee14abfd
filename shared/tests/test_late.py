"""Modules imported in a container, as engines do that ask for it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit import late
from containerd_shimkit.errors import ShimError
from containerd_shimkit.testing import BundleBuilder, in_clean_process, running_service
from containerd_shimkit.testing.stub_engine import LATE_STUB_KIND

pytestmark = pytest.mark.root

FIRST_ID = 100_000  # of a user namespace

LOOK = """\
import os
DIRECTORY = os.path.dirname(__file__)
with open(os.path.join(DIRECTORY, "data.txt")) as file:
    TEXT = file.read()
try:
    os.open(os.path.join(DIRECTORY, "new"), os.O_WRONLY | os.O_CREAT)
except OSError as exc:
    ERROR = exc.errno
def look():
    return {"text": TEXT, "error": ERROR, "above": sorted(os.listdir(DIRECTORY + "/.." * 9)),
            "uid": os.getuid()}
"""


def make_tree(tmp_path: Path, **files: str) -> Path:
    """Write modules, as a part of sys.path that no other user may enter. Names: A__B is A/B.py."""
    tree = tmp_path / "private" / "modules"
    for name, text in {"lib__look__inner": LOOK, **files}.items():
        file = tree.joinpath(*name.split("__")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tree / "lib/look/data.txt").write_text("data")
    tree.parent.chmod(0o700)
    sys.path.append(str(tree))
    return tree


def builder(tmp_path: Path, namespace: str, imports: str, **fields: Any) -> BundleBuilder:
    env = {"STUB_REPORT": "1", "STUB_IMPORT": imports, **fields.pop("env", {})}
    return BundleBuilder(tmp_path / "c", task_id="c", namespace=namespace, env=env, **fields)


async def run(tmp_path: Path, namespace: str, bundle: BundleBuilder) -> dict[str, Any]:
    """Return the report of a container that has started, with its descriptors."""
    async with running_service(namespace, LATE_STUB_KIND) as running:
        pid = await running.run(bundle, stdout=f"file://{tmp_path}/out")
        report: dict[str, Any] = json.loads((tmp_path / "out").read_text().splitlines()[-1])
        descriptors = Path(f"/proc/{pid}/fd").iterdir()
        report["descriptors"] = [str(fd.readlink()) for fd in descriptors]
        report["mounts"] = Path(f"/proc/{pid}/mountinfo").read_text()
    return report


async def refusal(namespace: str, bundle: BundleBuilder) -> str:
    """Return why a container does not start."""
    async with running_service(namespace, LATE_STUB_KIND) as running:
        await running.create(bundle)
        with pytest.raises(ShimError) as caught:
            await running.start("c")
    return str(caught.value)


@pytest.mark.parametrize("readonly", [False, True], ids=["writable", "read-only"])
@in_clean_process
async def test_modules_are_imported_as_the_containers_user(
    tmp_path: Path, namespace: str, readonly: bool
) -> None:
    """From a package that is a namespace; the module reads data beside it."""
    make_tree(tmp_path)
    fields = {"uid": 1000, "gid": 1000, "capabilities": ()}
    bundle = builder(tmp_path, namespace, "lib.look.inner", readonly=readonly, **fields)
    if readonly:  # where mounts go has to be there
        bundle.files = {f"{name}/.keep": "" for name in ("proc", "dev", "sys", "run")}
    report = await run(tmp_path, namespace, bundle)
    seen = report["imported"]["lib.look.inner"]
    assert seen == {"text": "data", "error": errno.EROFS, "above": ["lib"], "uid": 1000}


@in_clean_process
async def test_nothing_is_open_or_found_when_the_app_is_prepared(
    tmp_path: Path, namespace: str
) -> None:
    make_tree(tmp_path, lib__look__other="")
    names = "lib.look.other,intruder"
    bundle = builder(tmp_path, namespace, "lib.look.inner", env={"STUB_IMPORT_SERVING": names})
    report = await run(tmp_path, namespace, bundle)
    assert set(report["serving"].values()) == {f"No module named '{n}'" for n in names.split(",")}
    allowed = ("/dev/null", "socket:", "pipe:", "anon_inode:", "/etc/ssl/", "/etc/pki/")
    left = [link for link in report["descriptors"] if not link.startswith(allowed)]
    assert left == [f"{tmp_path}/out", "/"]  # the image, see guest_files
    assert str(tmp_path) not in report["mounts"].replace(f"{tmp_path}/c/rootfs", "")


@in_clean_process
async def test_extension_modules_and_the_libraries_of_their_wheel(
    tmp_path: Path, namespace: str
) -> None:
    """In the standard library, and in a wheel that brings libraries that need each other."""
    bundle = builder(tmp_path, namespace, "PIL._imagingft,xxlimited")
    report = await run(tmp_path, namespace, bundle)
    assert all(file.startswith("/proc/self/fd/") for file in report["imported"].values())


@in_clean_process
async def test_bytecode_without_sources(tmp_path: Path, namespace: str) -> None:
    import py_compile

    tree = make_tree(tmp_path)
    for source in tree.rglob("*.py"):
        py_compile.compile(str(source), str(source.with_suffix(".pyc")))
        source.unlink()
    report = await run(tmp_path, namespace, builder(tmp_path, namespace, "lib.look.inner"))
    assert report["imported"]["lib.look.inner"]["text"] == "data"


@in_clean_process
async def test_submodules_of_a_package_that_was_imported_before(
    tmp_path: Path, namespace: str
) -> None:
    name = "containerd_shimkit.testing.uml"
    assert name not in sys.modules
    report = await run(tmp_path, namespace, builder(tmp_path, namespace, name))
    assert report["imported"][name].startswith("/proc/self/fd/")


@in_clean_process
async def test_a_user_namespace_changes_nothing(tmp_path: Path, namespace: str) -> None:
    make_tree(tmp_path)
    bundle = builder(tmp_path, namespace, "lib.look.inner", cgroups_path="")
    section = bundle.config()["linux"]
    section["namespaces"].append({"type": "user"})
    ids = [{"containerID": 0, "hostID": FIRST_ID, "size": 65536}]
    bundle.changes = {"linux": section | {"uidMappings": ids, "gidMappings": ids}}
    bundle.write()
    os.chown(bundle.rootfs, FIRST_ID, FIRST_ID)
    tmp_path.chmod(0o711)
    for directory in {*tmp_path.parents[:3]} - {Path("/tmp"), Path("/")}:
        directory.chmod(directory.stat().st_mode | 0o011)
    report = await run(tmp_path, namespace, bundle)
    assert report["imported"]["lib.look.inner"]["uid"] == 0


# Images that would like to be imported


@in_clean_process
async def test_image_cannot_add_modules(tmp_path: Path, namespace: str) -> None:
    """Neither where the node has its own nor beside what runs."""
    tree = make_tree(tmp_path)
    paths = [
        f"{tree}/intruder.py",
        f"{tree}/lib/look/intruder.py",
        "/intruder.py",
        "/app/intruder.py",
    ]
    for name in ("intruder", "lib.look.intruder"):
        bundle = builder(tmp_path, namespace, name, cwd="/app", files=dict.fromkeys(paths, ""))
        assert await refusal(namespace, bundle) == f"No module named '{name}'"
        shutil.rmtree(tmp_path / "c")


@in_clean_process
async def test_image_cannot_add_modules_later(tmp_path: Path, namespace: str) -> None:
    """To an engine that never asked for any, as well; sys.path still names directories there."""
    tree = make_tree(tmp_path)
    files = {f"{tree}/intruder.py": ""}
    for kind in (None, LATE_STUB_KIND):
        bundle = builder(
            tmp_path, namespace, "", files=files, env={"STUB_IMPORT_SERVING": "intruder,json.tool"}
        )
        async with running_service(namespace, *([kind] if kind else [])) as running:
            await running.run(bundle, stdout=f"file://{tmp_path}/out")
        report = json.loads((tmp_path / "out").read_text())
        assert "imported" not in report["serving"].values()
        (tmp_path / "out").unlink()


@in_clean_process
async def test_links_out_of_a_tree_are_not_followed(tmp_path: Path, namespace: str) -> None:
    """An absolute one would lead into the image."""
    tree = make_tree(tmp_path)
    (tree / "intruder.py").symlink_to("/app/intruder.py")
    bundle = builder(tmp_path, namespace, "intruder", files={"/app/intruder.py": ""})
    assert await refusal(namespace, bundle) == "No module named 'intruder'"


@in_clean_process
async def test_no_proc_or_a_forged_one(tmp_path: Path, namespace: str) -> None:
    files = {f"/proc/self/fd/{number}/intruder.py": "" for number in range(3, 30)}
    for image in ({}, files):
        bundle = builder(tmp_path, namespace, "intruder", files=image)
        mounts = [m for m in bundle.config()["mounts"] if m["destination"] != "/proc"]
        bundle.changes = {"mounts": mounts}
        assert await refusal(namespace, bundle) == (
            'cannot import "intruder": the container has no /proc'
        )
        shutil.rmtree(tmp_path / "c")


@in_clean_process
async def test_where_directories_cannot_be_mounted_the_reason_is_told(
    tmp_path: Path, namespace: str
) -> None:
    def refuse(directory: str, _attributes: int = 0) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), directory)

    vars(late)["clone_readonly"] = refuse
    message = await refusal(namespace, builder(tmp_path, namespace, "intruder"))
    assert message.startswith('cannot import "intruder": Function not implemented')
    shutil.rmtree(tmp_path / "c")
    report = await run(tmp_path, namespace, builder(tmp_path, namespace, ""))
    assert report["imported"] == {}
