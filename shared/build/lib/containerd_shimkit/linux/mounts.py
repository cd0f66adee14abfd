"""Mount options, and the mounts containerd hands over as the rootfs.

These are the host's own words: paths here are trusted. What is mounted *inside* the image's tree
is in ``rootfs``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from containerd_shimkit.errors import BundleError, SandboxError
from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.paths import closing, fd_path, make_in_root
from containerd_shimkit.linux.syscalls import mount, mount_setattr, open_tree, step, umount2

PAGE_BYTES = os.sysconf("SC_PAGESIZE")  # the most that mount(2) takes as data

# mount(8): the flags an option sets and those it clears
FLAG_OPTIONS: dict[str, tuple[int, int]] = {
    "async": (0, k.MS_SYNCHRONOUS),
    "atime": (0, k.MS_NOATIME),
    "bind": (k.MS_BIND, 0),
    "defaults": (0, 0),
    "dev": (0, k.MS_NODEV),
    "diratime": (0, k.MS_NODIRATIME),
    "dirsync": (k.MS_DIRSYNC, 0),
    "exec": (0, k.MS_NOEXEC),
    "lazytime": (k.MS_LAZYTIME, 0),
    "mand": (k.MS_MANDLOCK, 0),
    "noatime": (k.MS_NOATIME, 0),
    "nodev": (k.MS_NODEV, 0),
    "nodiratime": (k.MS_NODIRATIME, 0),
    "noexec": (k.MS_NOEXEC, 0),
    "nolazytime": (0, k.MS_LAZYTIME),
    "nomand": (0, k.MS_MANDLOCK),
    "norelatime": (0, k.MS_RELATIME),
    "nostrictatime": (0, k.MS_STRICTATIME),
    "nosuid": (k.MS_NOSUID, 0),
    "nosymfollow": (k.MS_NOSYMFOLLOW, 0),
    "rbind": (k.MS_BIND | k.MS_REC, 0),
    "relatime": (k.MS_RELATIME, 0),
    "remount": (k.MS_REMOUNT, 0),
    "ro": (k.MS_RDONLY, 0),
    "rw": (0, k.MS_RDONLY),
    "silent": (k.MS_SILENT, 0),
    "strictatime": (k.MS_STRICTATIME, 0),
    "suid": (0, k.MS_NOSUID),
    "symfollow": (0, k.MS_NOSYMFOLLOW),
    "sync": (k.MS_SYNCHRONOUS, 0),
}
PROPAGATION_OPTIONS: dict[str, int] = {
    "private": k.MS_PRIVATE,
    "rprivate": k.MS_PRIVATE | k.MS_REC,
    "shared": k.MS_SHARED,
    "rshared": k.MS_SHARED | k.MS_REC,
    "slave": k.MS_SLAVE,
    "rslave": k.MS_SLAVE | k.MS_REC,
    "unbindable": k.MS_UNBINDABLE,
    "runbindable": k.MS_UNBINDABLE | k.MS_REC,
}
# OCI runtime spec, "Linux mount options": attributes of the mount and of all below it
RECURSIVE_OPTIONS: dict[str, tuple[int, int]] = {
    "rro": (k.MOUNT_ATTR_RDONLY, 0),
    "rrw": (0, k.MOUNT_ATTR_RDONLY),
    "rnosuid": (k.MOUNT_ATTR_NOSUID, 0),
    "rsuid": (0, k.MOUNT_ATTR_NOSUID),
    "rnodev": (k.MOUNT_ATTR_NODEV, 0),
    "rdev": (0, k.MOUNT_ATTR_NODEV),
    "rnoexec": (k.MOUNT_ATTR_NOEXEC, 0),
    "rexec": (0, k.MOUNT_ATTR_NOEXEC),
    "rnodiratime": (k.MOUNT_ATTR_NODIRATIME, 0),
    "rdiratime": (0, k.MOUNT_ATTR_NODIRATIME),
    "rnoatime": (k.MOUNT_ATTR_NOATIME, k.MOUNT_ATTR_ATIME),
    "rrelatime": (k.MOUNT_ATTR_RELATIME, k.MOUNT_ATTR_ATIME),
    "rstrictatime": (k.MOUNT_ATTR_STRICTATIME, k.MOUNT_ATTR_ATIME),
    "rnosymfollow": (k.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "rsymfollow": (0, k.MOUNT_ATTR_NOSYMFOLLOW),
}
UNSUPPORTED_OPTIONS = frozenset({"idmap", "ridmap", "loop", "tmpcopyup"})


class MountSpec(Protocol):
    """What is read of an entry of ``mounts``."""

    @property
    def destination(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def options(self) -> Sequence[str]: ...


class RootfsMount(Protocol):
    """A mount as ``CreateTaskRequest.rootfs`` carries it (containerd.types.Mount)."""

    @property
    def type(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def options(self) -> Sequence[str]: ...


class MountOptions(NamedTuple):
    """Parsed options of one mount."""

    flags: int
    """MS_* flags that are set."""
    propagation: tuple[int, ...]
    """Changes of the propagation type, each a call of its own."""
    attr_set: int
    attr_clr: int
    """MOUNT_ATTR_* flags for the whole tree below the mount."""
    data: str
    """What the filesystem itself reads."""


def parse_options(options: Iterable[str]) -> MountOptions:
    """Sort the options of fstab, of mount(8) and of the OCI spec; a later one wins.

    Raises BundleError for an option that would have to be done by us and is not.
    """
    flags, attr_set, attr_clr = 0, 0, 0
    propagation: list[int] = []
    data: list[str] = []
    for option in options:
        if change := FLAG_OPTIONS.get(option):
            flags = (flags & ~change[1]) | change[0]
        elif kind := PROPAGATION_OPTIONS.get(option):
            propagation.append(kind)
        elif change := RECURSIVE_OPTIONS.get(option):
            attr_set = (attr_set & ~change[1]) | change[0]
            attr_clr = (attr_clr & ~change[0]) | change[1]
        elif option.partition("=")[0] in UNSUPPORTED_OPTIONS:
            raise BundleError(f'mount option "{option}" is not supported')
        elif option:
            data.append(option)
    return MountOptions(flags, tuple(propagation), attr_set, attr_clr, ",".join(data))


def mount_rootfs(mounts: Iterable[RootfsMount], target: str) -> None:
    """Mount what containerd prepared on ``target``, in order, in this mount namespace.

    With no mounts the directory is the rootfs as it stands and is bound to itself, since
    pivot_root(2) wants a mount. Raises SandboxError.
    """
    done = False
    for entry in mounts:
        with step(f'mount rootfs ({entry.type} "{entry.source}")'):
            _mount_rootfs_entry(entry, target)
        done = True
    if not done:
        with step(f'bind rootfs "{target}"'):
            mount(target, target, None, k.MS_BIND | k.MS_REC)
    # Bound from a shared mount it is that mount's peer, and the container's mounts would show
    # there.
    with step(f'make rootfs "{target}" private'):
        mount(None, target, None, k.MS_PRIVATE | k.MS_REC)


def _mount_rootfs_entry(entry: RootfsMount, target: str) -> None:
    options = parse_options(entry.options)
    if not entry.target:
        _mount_host(entry.type, entry.source, target, options)
        return
    # A mount below the first one: by then the tree is the image's.
    with closing(os.open(target, os.O_PATH | os.O_CLOEXEC)) as root_fd:  # noqa: SIM117
        with closing(make_in_root(root_fd, entry.target, directory=True)) as fd:
            _mount_host(entry.type, entry.source, fd_path(fd), options)


def _mount_host(fstype: str, source: str, target: str, options: MountOptions) -> None:
    flags, data = options.flags, options.data
    bind = bool(flags & k.MS_BIND)
    if fstype == "overlay" and len(data) >= PAGE_BYTES - 1:
        _mount_long_overlay(source, target, flags, data)
    else:
        # Of a bind's other flags the kernel takes none in the first call.
        first = flags & (k.MS_BIND | k.MS_REC) if bind else flags
        mount(source, target, None if bind else fstype, first, "" if bind else data)
    for kind in options.propagation:
        mount(None, target, None, kind)
    if bind and flags & ~(k.MS_BIND | k.MS_REC):
        mount(None, target, None, flags | k.MS_REMOUNT)


def _mount_long_overlay(source: str, target: str, flags: int, data: str) -> None:
    """Mount an overlay whose data exceeds a page: its layers named from their common directory.

    The working directory is the process's, so this is for a process with one thread.
    """
    common, data = relative_lowerdirs(data)
    if len(data) >= PAGE_BYTES:
        cause = f"overlay options of {len(data)} bytes exceed {PAGE_BYTES - 1}: too many layers"
        raise SandboxError("mount rootfs", cause)
    with closing(os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as cwd:
        os.chdir(common)
        try:
            mount(source, target, "overlay", flags, data)
        finally:
            os.fchdir(cwd)


def relative_lowerdirs(data: str) -> tuple[str, str]:
    """Return the directory all of ``lowerdir`` have in common, and the options relative to it."""
    options = data.split(",")
    for index, option in enumerate(options):
        key, _, value = option.partition("=")
        if key == "lowerdir":
            layers = value.split(":")
            if not all(layer.startswith("/") for layer in layers):
                break
            common = os.path.commonpath(layers)
            if common in layers:  # a single layer, or one inside another: "" is no name
                common = common.rpartition("/")[0] or "/"
            layers = [os.path.relpath(layer, common) for layer in layers]
            options[index] = "lowerdir=" + ":".join(layers)
            return common, ",".join(options)
    return ".", data


def clone_readonly(directory: str, attributes: int = 0) -> int:
    """Return a descriptor of a read-only mount of ``directory`` that no path leads to.

    attributes: further MOUNT_ATTR_* flags.

    A file opened below it cannot be opened for writing again, by ``/proc/self/fd`` either, whoever
    its descriptor is passed to. Raises OSError: ENOSYS before Linux 5.12.
    """
    fd = open_tree(directory, k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC)
    try:
        mount_setattr(fd, k.MOUNT_ATTR_RDONLY | attributes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def unmount(target: str) -> bool:
    """Detach every mount on ``target``; False if there was none. For cleaning up in the host."""
    found = False
    while True:
        try:
            umount2(target, k.MNT_DETACH | k.UMOUNT_NOFOLLOW)
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):
                return found
            raise
        found = True
