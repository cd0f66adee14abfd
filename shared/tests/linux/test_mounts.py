"""Mount options, and a container's rootfs mounts."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from containerd_shimkit.errors import BundleError, SandboxError
from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.mounts import (
    PAGE_BYTES,
    clone_readonly,
    mount_rootfs,
    parse_options,
    relative_lowerdirs,
)
from containerd_shimkit.linux.rootfs import Rootfs, isolate_propagation
from containerd_shimkit.linux.syscalls import mount, unshare

InChild = Callable[[Callable[[], object]], Any]


@pytest.mark.parametrize(
    ("options", "flags", "data"),
    [
        (["rbind", "ro"], k.MS_BIND | k.MS_REC | k.MS_RDONLY, ""),
        (["ro", "rw"], 0, ""),
        (["nosuid", "suid", "noexec"], k.MS_NOEXEC, ""),
        (["strictatime", "mode=755", "size=64k"], k.MS_STRICTATIME, "mode=755,size=64k"),
        (["defaults", "", "newinstance"], 0, "newinstance"),
    ],
)
def test_parse_options(options: list[str], flags: int, data: str) -> None:
    parsed = parse_options(options)
    assert (parsed.flags, parsed.data) == (flags, data)


def test_parse_options_recursive_and_propagation() -> None:
    parsed = parse_options(["rbind", "rprivate", "rro", "rnoexec", "rexec"])
    assert parsed.propagation == (k.MS_PRIVATE | k.MS_REC,)
    assert parsed.attr_set & k.MOUNT_ATTR_RDONLY
    assert parsed.attr_clr == k.MOUNT_ATTR_NOEXEC


def test_parse_options_refuses_what_is_not_done() -> None:
    with pytest.raises(BundleError, match="idmap"):
        parse_options(["bind", "idmap=uids=0-1-1"])


def test_relative_lowerdirs() -> None:
    data = "index=off,lowerdir=/var/s/2/fs:/var/s/1/fs,upperdir=/x"
    assert relative_lowerdirs(data) == ("/var/s", "index=off,lowerdir=2/fs:1/fs,upperdir=/x")
    assert relative_lowerdirs("lowerdir=/a/b") == ("/a", "lowerdir=b")


def entry(destination: str, source: str, *options: str) -> SimpleNamespace:
    return SimpleNamespace(destination=destination, type="bind", source=source, options=options)


@pytest.mark.root
def test_overlay_with_more_layers_than_a_page_holds(tmp_path: Path, in_child: InChild) -> None:
    layers = [tmp_path / "snapshots" / f"{number:03}" / ("x" * 60) for number in range(50)]
    for number, layer in enumerate(layers):
        layer.mkdir(parents=True)
        (layer / f"file{number}").write_text("")
    options = ["lowerdir=" + ":".join(map(str, layers))]
    assert len(options[0]) > PAGE_BYTES
    (tmp_path / "root").mkdir()

    def run() -> object:
        unshare(k.CLONE_NEWNS)
        isolate_propagation(str(tmp_path))
        before = os.getcwd()
        overlay = SimpleNamespace(type="overlay", source="overlay", target="", options=options)
        mount_rootfs([overlay], str(tmp_path / "root"))
        return len(list((tmp_path / "root").iterdir())), os.getcwd() == before

    assert in_child(run) == [50, True]


@pytest.mark.root
@pytest.mark.parametrize(
    ("destination", "options", "outcome"),
    [
        ("/file", ("bind", "ro"), "Read-only file system"),
        ("/file", ("bind",), "written"),
        ("/new/deep/file", ("rbind", "rw", "nosuid", "rprivate"), "written"),
        ("/abs/file", ("bind", "rro"), "Read-only file system"),
        ("/loop/file", ("bind",), "Too many levels"),
        ("/plain/file", ("bind",), "Not a directory"),
        ("/", ("bind",), "cover the rootfs itself"),
        ("/up/../../../file", ("bind",), "written"),
    ],
)
def test_bind(
    destination: str, options: tuple[str, ...], outcome: str, tmp_path: Path, in_child: InChild
) -> None:
    root, source = tmp_path / "root", tmp_path / "source"
    (root / "up").mkdir(parents=True)
    (root / "abs").symlink_to("/target/../elsewhere")
    (root / "loop").symlink_to("loop")
    (root / "plain").write_text("")
    source.write_text("before")

    def run() -> object:
        unshare(k.CLONE_NEWNS)
        isolate_propagation(str(root))
        try:
            mount_rootfs([], str(root))
            rootfs = Rootfs(str(root))
            rootfs.mount_all([entry(destination, "source", *options)], str(tmp_path))
            rootfs.pivot()
            Path("elsewhere/file" if "abs" in destination else destination).write_text("written")
        except SandboxError as exc:
            return exc.cause
        except OSError as exc:
            return exc.strerror
        return "written"

    assert outcome in in_child(run)
    assert source.read_text() == ("written" if outcome == "written" else "before")


@pytest.mark.root
def test_device_that_the_image_replaced_is_refused(tmp_path: Path, in_child: InChild) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/null").write_text("mine")

    def run() -> object:
        unshare(k.CLONE_NEWNS)
        try:
            Rootfs(str(tmp_path)).create_devices()
        except SandboxError as exc:
            return str(exc)
        return ""

    assert in_child(run) == 'create device "/dev/null": the image has something else there'


@pytest.mark.root
@pytest.mark.parametrize(
    ("destination", "error"),
    [
        ("/proc/self/attr", "inside proc"),
        ("/link/sys", "inside proc"),
        ("/proc", "inside proc"),
        ("/proc/cpuinfo", ""),
    ],
)
def test_only_files_that_hide_nothing_are_mounted_in_proc(
    destination: str, error: str, tmp_path: Path, in_child: InChild
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to("proc")
    source = tmp_path / "source"
    source.write_text("") if destination == "/proc/cpuinfo" else source.mkdir()

    def run() -> object:
        unshare(k.CLONE_NEWNS)
        rootfs = Rootfs(str(tmp_path / "root"))
        proc = SimpleNamespace(destination="/proc", type="proc", source="proc", options=())
        try:
            rootfs.mount_all([proc, entry(destination, str(source), "bind")], "/")
        except SandboxError as exc:
            return exc.cause
        return ""

    assert error in in_child(run)


@pytest.mark.root
def test_file_of_a_readonly_clone_cannot_be_opened_for_writing(
    tmp_path: Path, in_child: InChild
) -> None:
    (tmp_path / "file").write_text("content")

    def attempt() -> object:
        view = clone_readonly(str(tmp_path))
        fd = os.open("file", os.O_RDONLY, dir_fd=view)
        try:
            os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        except OSError as exc:
            return os.read(fd, 10).decode(), exc.errno
        return "open"

    assert in_child(attempt) == ["content", errno.EROFS]
    (tmp_path / "file").write_text("the directory itself is as before")


@pytest.mark.root
def test_mount_error_names_step_call_and_reason(tmp_path: Path, in_child: InChild) -> None:
    def run() -> object:
        try:
            Rootfs(str(tmp_path)).mount_all([entry("/a", "/no/such", "bind")], "/")
        except SandboxError as exc:
            return [exc.step, exc.cause]
        return None

    assert in_child(run) == ['mount "/a"', 'No such file or directory: "/no/such"']


@pytest.mark.root
@pytest.mark.parametrize("propagation", ["", "rprivate", "rslave", "rshared", "unbindable"])
def test_pivot_with_every_propagation(propagation: str, tmp_path: Path, in_child: InChild) -> None:
    (tmp_path / "marker").write_text("")

    def run() -> object:
        unshare(k.CLONE_NEWNS)
        isolate_propagation(str(tmp_path), propagation)
        mount_rootfs([], str(tmp_path))
        Rootfs(str(tmp_path)).pivot(propagation=propagation, readonly=True)
        return sorted(found.name for found in Path("/").iterdir())

    assert in_child(run) == ["marker"]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.root
@pytest.mark.parametrize(
    ("propagation", "option", "reaches_host"),
    [
        ("rshared", "rshared", True),
        ("rslave", "rslave", False),
        ("slave", "rprivate", False),
        ("", "rprivate", False),
    ],
)
def test_mounts_reach_the_host_from_shared_volumes_only(
    propagation: str, option: str, reaches_host: bool, tmp_path: Path, in_child: InChild
) -> None:
    """The host is a mount namespace of the test's own in which everything is shared."""
    for name in ("image/inner", "image/vol", "volume/sub", "root/fs"):
        (tmp_path / name).mkdir(parents=True)

    def container() -> None:
        unshare(k.CLONE_NEWNS)
        target = str(tmp_path / "root/fs")
        isolate_propagation(target, propagation)
        image = str(tmp_path / "image")
        bind = SimpleNamespace(type="bind", source=image, target="", options=["rbind"])
        mount_rootfs([bind], target)
        rootfs = Rootfs(target)
        tmpfs = SimpleNamespace(destination="/inner", type="tmpfs", source="", options=())
        volume = entry("/vol", str(tmp_path / "volume"), "rbind", option)
        inside = SimpleNamespace(destination="/vol/sub", type="tmpfs", source="", options=())
        rootfs.mount_all([tmpfs, volume, inside], "/")
        rootfs.pivot(propagation=propagation)

    def host() -> object:
        unshare(k.CLONE_NEWNS)
        mount(None, "/", None, k.MS_SHARED | k.MS_REC)
        for path in (tmp_path / "root", tmp_path / "volume"):  # as /run and /var/lib are
            mount(str(path), str(path), None, k.MS_BIND)
            mount(None, str(path), None, k.MS_SHARED)
        before = Path("/proc/self/mountinfo").read_text().splitlines()
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                container()
                os.write(tell, b"1")
                signal.pause()
            finally:
                os._exit(1)
        os.close(tell)
        assert os.read(told, 1) == b"1"
        after = Path("/proc/self/mountinfo").read_text().splitlines()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        # Twice where it is: the volume is a peer of the mount below it as well.
        return sorted({line.split()[4] for line in after if line not in before})

    expected = [str(tmp_path / "volume/sub")] if reaches_host else []
    assert in_child(host) == expected


def test_unknown_propagation_is_refused() -> None:
    with pytest.raises(BundleError, match="rootfsPropagation"):
        isolate_propagation("/", "sideways")
