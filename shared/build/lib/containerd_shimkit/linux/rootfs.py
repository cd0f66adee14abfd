"""The container's root: what is mounted and made inside it, and the change into it.

Rules, in the order in which they matter:

1. The image is hostile. Its directories may be links to the host, and a volume may be changed by
   another container meanwhile. Every destination is opened inside the root first (``paths``) and
   then used by its descriptor only.
2. Sources are the host's and are opened in this mount namespace: mount(2) refuses others.
3. proc and sysfs go where the spec says, never through a link: what is written there later (and
   what is masked there) has to be the kernel's.
4. A bind mount takes its flags in a second call, on the mount that the first has made.
5. All of it happens before ``pivot``, while the host's ``/proc/self/fd`` is there.
6. Propagation: the whole tree becomes the container's own (rslave) before anything is mounted, and
   so does the old root before it is detached. Nothing done here ever reaches the host.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from containerd_shimkit.errors import BundleError, SandboxError
from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.lsm import with_context
from containerd_shimkit.linux.mounts import MountOptions, MountSpec, parse_options
from containerd_shimkit.linux.paths import closing, fd_path, make_in_root, open_in_root, open_parent
from containerd_shimkit.linux.syscalls import (
    filesystem_type,
    mount,
    mount_setattr,
    pivot_root,
    step,
    umount2,
)

PROPAGATION = {
    "": k.MS_SLAVE | k.MS_REC,
    "private": k.MS_PRIVATE,
    "rprivate": k.MS_PRIVATE | k.MS_REC,
    "shared": k.MS_SHARED,
    "rshared": k.MS_SHARED | k.MS_REC,
    "slave": k.MS_SLAVE,
    "rslave": k.MS_SLAVE | k.MS_REC,
    "unbindable": k.MS_UNBINDABLE,
}
# What takes no context option: the kernel labels the first two itself, and the third one only by an
# attribute of its root. Source: runc's libcontainer, mountToRootfs.
UNLABELLED = frozenset({"proc", "sysfs", "mqueue"})
# Files of proc that a bind mount may cover (lxcfs does). Anything else there could mislead what
# reads or writes proc on the container's behalf. Source: CVE-2019-16884 and what runc permits.
PROC_FILES = frozenset(
    f"/proc/{name}"
    for name in (
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "net/dev",
        "slabinfo",
        "stat",
        "swaps",
        "sys/crypto/fips_enabled",
        "sys/kernel/ns_last_pid",
        "uptime",
    )
)
LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
)


class DeviceSpec(Protocol):
    """What is read of an entry of ``linux.devices``."""

    @property
    def path(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def major(self) -> int: ...
    @property
    def minor(self) -> int: ...
    @property
    def file_mode(self) -> int | None: ...
    @property
    def uid(self) -> int | None: ...
    @property
    def gid(self) -> int | None: ...


class Device(NamedTuple):
    """A device file."""

    path: str
    type: str
    major: int
    minor: int
    file_mode: int | None = 0o666
    uid: int | None = 0
    gid: int | None = 0


# OCI runtime spec, "Default Devices"
DEFAULT_DEVICES: tuple[Device, ...] = (
    Device("/dev/null", "c", 1, 3),
    Device("/dev/zero", "c", 1, 5),
    Device("/dev/full", "c", 1, 7),
    Device("/dev/random", "c", 1, 8),
    Device("/dev/urandom", "c", 1, 9),
    Device("/dev/tty", "c", 5, 0),
)
DEVICE_TYPES = {
    "b": stat.S_IFBLK,
    "c": stat.S_IFCHR,
    "u": stat.S_IFCHR,
    "p": stat.S_IFIFO,
}


def isolate_propagation(rootfs_path: str, propagation: str = "") -> None:
    """Cut this mount namespace off the host's. Before the rootfs is mounted.

    propagation: ``linux.rootfsPropagation``. With a shared one, mounts made in volumes reach the
    host as they are meant to; those made on the rootfs do not, as its parent is made private.
    """
    if propagation not in PROPAGATION:
        known = ", ".join(name for name in PROPAGATION if name)
        raise BundleError(f'unknown rootfsPropagation "{propagation}", one of: {known}')
    # The whole tree, always: a mount left shared would hand on what is mounted on it. What cannot
    # be bound cannot become a root either; ``pivot`` sets that.
    kind = k.MS_PRIVATE if propagation == "unbindable" else PROPAGATION[propagation]
    with step(f"make the mounts {propagation or 'rslave'}"):
        mount(None, "/", None, kind | k.MS_REC)
    if "shared" in propagation:
        with step(f'make the mount above "{rootfs_path}" private'):
            _make_parent_private(rootfs_path)


def has_own_dev(mounts: Iterable[MountSpec]) -> bool:
    """Say whether /dev is the container's, to be filled, and not bound from the host."""
    return not any(
        entry.destination.rstrip("/") == "/dev" and parse_options(entry.options).flags & k.MS_BIND
        for entry in mounts
    )


def _make_parent_private(path: str) -> None:
    """Walk up to the nearest mount point: pivot_root(2) wants it not shared.

    A volume on that same mount is then cut off too, as with runc; bundles are usually in /run.
    """
    path = os.path.realpath(path)
    while True:
        try:
            mount(None, path, None, k.MS_PRIVATE)
            return
        except OSError as exc:
            if exc.errno != errno.EINVAL or path == "/":
                raise
        path = path.rpartition("/")[0] or "/"


class Rootfs:
    """A mounted rootfs that this process has not entered yet; see the module's rules."""

    __slots__ = ("_inode", "_label", "fd", "path")

    def __init__(self, path: str, mount_label: str = "") -> None:
        """mount_label: an SELinux label for the filesystems that are made here."""
        with step(f'open rootfs "{path}"'):
            self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.path = path
        self._label = mount_label
        self._inode = self._identity(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # Mounts

    def mount_all(
        self,
        mounts: Iterable[MountSpec],
        bundle_path: str,
        cgroup_mounts: Mapping[str, str] | None = None,
    ) -> None:
        """Perform the spec's mounts, in order.

        bundle_path: what a relative source of a bind mount starts from.
        cgroup_mounts: the container's own directory of each hierarchy by name, "" for version 2;
        None leaves mounts of type cgroup out.
        """
        for entry in mounts:
            with step(f'mount "{entry.destination}"'):
                self._mount(entry, parse_options(entry.options), bundle_path, cgroup_mounts)

    def _mount(
        self,
        entry: MountSpec,
        options: MountOptions,
        bundle_path: str,
        cgroup_mounts: Mapping[str, str] | None,
    ) -> None:
        if options.flags & k.MS_BIND:
            self._bind(entry, options, bundle_path)
        elif entry.type in ("cgroup", "cgroup2"):
            if cgroup_mounts is not None:
                self._mount_cgroup(entry.destination, options, cgroup_mounts)
        else:
            self._mount_filesystem(entry, options)

    def _mount_filesystem(self, entry: MountSpec, options: MountOptions) -> None:
        with closing(self._open_directory(entry.destination, entry.type)) as fd:
            data = options.data
            if entry.type == "tmpfs" and "mode=" not in data:
                # tmpfs would take 1777; the image's directory says what is meant.
                mode = f"mode={stat.S_IMODE(os.fstat(fd).st_mode):o}"
                data = f"{data},{mode}" if data else mode
            source = entry.source or entry.type
            if entry.type not in UNLABELLED:
                data = with_context(data, self._label)
            mount(source, fd_path(fd), entry.type, options.flags, data)
        if entry.type == "mqueue" and self._label:
            with closing(open_in_root(self.fd, entry.destination)) as mounted:
                os.setxattr(fd_path(mounted), "security.selinux", self._label.encode())
        self._finish(entry.destination, options)

    def _bind(self, entry: MountSpec, options: MountOptions, bundle_path: str) -> None:
        source = entry.source if entry.source[:1] == "/" else f"{bundle_path}/{entry.source}"
        with closing(os.open(source, os.O_PATH | os.O_CLOEXEC)) as source_fd:
            directory = stat.S_ISDIR(os.fstat(source_fd).st_mode)
            with closing(make_in_root(self.fd, entry.destination, directory=directory)) as fd:
                self._check_destination(fd, entry.destination)
                flags = options.flags & (k.MS_BIND | k.MS_REC)
                mount(fd_path(source_fd), fd_path(fd), None, flags)
            self._finish(entry.destination, options, source_fd)

    def _mount_cgroup(
        self, destination: str, options: MountOptions, cgroup_mounts: Mapping[str, str]
    ) -> None:
        """Show the container its own cgroups and nothing above them: each is bound in place.

        Version 1 has a directory for each hierarchy, in a tmpfs that is made read-only last, with
        a link for each controller of a hierarchy that has several.
        """
        flags = options.flags
        if "" in cgroup_mounts:
            with closing(self._open_directory(destination, "cgroup2")) as fd:
                mount(cgroup_mounts[""], fd_path(fd), None, k.MS_BIND)
            with closing(open_in_root(self.fd, destination)) as mounted:
                _remount(mounted, flags)
            return
        with closing(self._open_directory(destination, "cgroup")) as fd:
            data = with_context("mode=755", self._label)
            mount("tmpfs", fd_path(fd), "tmpfs", flags & ~k.MS_RDONLY, data)
        with closing(open_in_root(self.fd, destination)) as top:
            for name, source in cgroup_mounts.items():
                # A name of the kernel's in a tmpfs of our own: nothing here is the image's.
                os.mkdir(name, 0o755, dir_fd=top)
                directory = f"{fd_path(top)}/{name}"
                mount(source, directory, None, k.MS_BIND)
                mount(None, directory, None, flags | k.MS_BIND | k.MS_REMOUNT)
                if "," in name:
                    for controller in name.split(","):
                        os.symlink(name, controller, dir_fd=top)
            if flags & k.MS_RDONLY:
                mount(None, fd_path(top), None, flags | k.MS_REMOUNT | k.MS_BIND)

    def _finish(
        self, destination: str, options: MountOptions, source_fd: int | None = None
    ) -> None:
        """Give the mount just made what mount(2) does not take in its first call.

        It is found again by its path, and has to be what was bound: in a volume that others
        change at the same time, the path may lead elsewhere by now.
        """
        flags = options.flags & ~(k.MS_BIND | k.MS_REC)
        remount = source_fd is not None and flags
        if not (remount or options.propagation or options.attr_set or options.attr_clr):
            return
        with closing(open_in_root(self.fd, destination)) as fd:
            if source_fd is not None and self._identity(fd) != self._identity(source_fd):
                cause = "the destination was replaced while it was mounted"
                raise SandboxError(f'mount "{destination}"', cause)
            if remount:
                _remount(fd, flags, recursive=options.flags & k.MS_REC)
            for kind in options.propagation:
                mount(None, fd_path(fd), None, kind)
            if options.attr_set or options.attr_clr:
                mount_setattr(fd, options.attr_set, options.attr_clr, recursive=True)

    def _open_directory(self, destination: str, fstype: str) -> int:
        links = fstype not in ("proc", "sysfs")
        try:
            fd = make_in_root(self.fd, destination, directory=True, links=links)
        except OSError as exc:
            if exc.errno != errno.ELOOP or links:
                raise
            cause = f"{fstype} is not mounted through the image's symbolic link"
            raise SandboxError(f'mount "{destination}"', cause) from exc
        try:
            self._check_destination(fd, destination)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check_destination(self, fd: int, destination: str) -> None:
        if self._identity(fd) == self._inode:
            raise SandboxError(f'mount "{destination}"', "it would cover the rootfs itself")
        if filesystem_type(fd) == k.PROC_SUPER_MAGIC and destination not in PROC_FILES:
            raise SandboxError(f'mount "{destination}"', "it is inside proc")

    @staticmethod
    def _identity(fd: int) -> tuple[int, int]:
        status = os.fstat(fd)
        return status.st_dev, status.st_ino

    # Devices

    def create_devices(self, devices: Iterable[DeviceSpec] = ()) -> None:
        """Make the default devices, ``devices`` on top of them, and the usual links in /dev.

        Not where /dev is the host's own: ``has_own_dev``.
        """
        wanted: dict[str, DeviceSpec] = {device.path: device for device in DEFAULT_DEVICES}
        wanted.update((device.path, device) for device in devices)
        umask = os.umask(0)
        try:
            for device in wanted.values():
                with step(f'create device "{device.path}"'):
                    self._create_device(device)
        finally:
            os.umask(umask)
        for path, target in LINKS:
            with step(f'link "{path}"'):
                self._symlink(path, target)

    def _create_device(self, device: DeviceSpec) -> None:
        if device.type not in DEVICE_TYPES:
            known = ", ".join(DEVICE_TYPES)
            raise BundleError(f'device "{device.path}": unknown type "{device.type}" ({known})')
        kind = DEVICE_TYPES[device.type]
        number = 0 if device.type == "p" else os.makedev(device.major, device.minor)
        mode = stat.S_IMODE(0o666 if device.file_mode is None else device.file_mode)
        directory, name = open_parent(self.fd, device.path)
        with closing(directory):
            try:
                os.mknod(name, kind | mode, number, dir_fd=directory)
            except FileExistsError:
                self._check_device(directory, name, kind, number, device.path)
                return
            except PermissionError:  # in a user namespace: the host's file serves
                self._bind_device(device.path)
                return
            if device.uid or device.gid:
                owner = device.uid or 0, device.gid or 0
                os.chown(name, *owner, dir_fd=directory, follow_symlinks=False)

    @staticmethod
    def _check_device(directory: int, name: str, kind: int, number: int, path: str) -> None:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_IFMT(status.st_mode) != kind or status.st_rdev != number:
            cause = "the image has something else there"
            raise SandboxError(f'create device "{path}"', cause)

    def _bind_device(self, path: str) -> None:
        with closing(make_in_root(self.fd, path, directory=False)) as fd:
            mount(path, fd_path(fd), None, k.MS_BIND)

    def _symlink(self, path: str, target: str) -> None:
        directory, name = open_parent(self.fd, path)
        with closing(directory):
            try:
                os.symlink(target, name, dir_fd=directory)
            except FileExistsError:
                # The image may bring these along; devpts wants its own ptmx.
                if name != "ptmx":
                    return
                os.unlink(name, dir_fd=directory)
                os.symlink(target, name, dir_fd=directory)

    # What is hidden

    def mask(self, paths: Sequence[str]) -> None:
        """Cover files with the host's /dev/null, directories with an empty read-only tmpfs."""
        if not paths:
            return
        with step('open "/dev/null"'):
            null_fd = os.open("/dev/null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        with closing(null_fd):
            if os.fstat(null_fd).st_rdev != os.makedev(1, 3):
                raise SandboxError('open "/dev/null"', "it is not the null device")
            for path in paths:
                with step(f'mask "{path}"'):
                    self._mask(path, null_fd)

    def _mask(self, path: str, null_fd: int) -> None:
        try:
            fd = open_in_root(self.fd, path)
        except (FileNotFoundError, NotADirectoryError):
            return
        with closing(fd):
            if self._identity(fd) == self._inode:
                raise SandboxError(f'mask "{path}"', "it would cover the rootfs itself")
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                data = with_context("nr_blocks=1,nr_inodes=1", self._label)
                mount("tmpfs", fd_path(fd), "tmpfs", k.MS_RDONLY, data)
            else:
                mount(fd_path(null_fd), fd_path(fd), None, k.MS_BIND)

    def make_readonly(self, paths: Iterable[str]) -> None:
        """Bind each path that is there to itself, read-only with all below it."""
        for path in paths:
            with step(f'make "{path}" read-only'):
                self._make_readonly(path)

    def _make_readonly(self, path: str) -> None:
        try:
            fd = open_in_root(self.fd, path)
        except (FileNotFoundError, NotADirectoryError):
            return
        with closing(fd):
            mount(fd_path(fd), fd_path(fd), None, k.MS_BIND | k.MS_REC)
            with closing(open_in_root(self.fd, path)) as mounted:
                _remount(mounted, _mount_flags(mounted) | k.MS_RDONLY)

    # The change

    def pivot(self, *, readonly: bool = False, propagation: str = "") -> None:
        """Make this the root of the process's mount namespace; nothing of the old one is left."""
        # Both in one place: new_root and put_old may be the same directory, and the old root is
        # then stacked on the new one, so that no directory for it is needed. pivot_root(2)
        with step("pivot_root"), closing(os.open("/", os.O_DIRECTORY | os.O_CLOEXEC)) as old:
            os.fchdir(self.fd)
            pivot_root(".", ".")
            os.fchdir(old)
            mount(None, ".", None, k.MS_SLAVE | k.MS_REC)
            umount2(".", k.MNT_DETACH)
            os.chdir("/")
        if propagation:
            with step(f"make the rootfs {propagation}"):
                mount(None, "/", None, PROPAGATION[propagation])
        if readonly:
            with step("make the rootfs read-only"):
                _remount(self.fd, _mount_flags(self.fd) | k.MS_RDONLY, path="/")
        self.close()


def _remount(fd: int, flags: int, *, recursive: int = 0, path: str | None = None) -> None:
    """Set the flags of the mount ``fd`` is in. Those that a user namespace locked stay."""
    target, call = path or fd_path(fd), k.MS_BIND | k.MS_REMOUNT | recursive
    try:
        mount(None, target, None, call | flags)
    except PermissionError:
        locked = _mount_flags(fd)
        if locked | flags == flags:
            raise
        mount(None, target, None, call | flags | locked)


def _mount_flags(fd: int) -> int:
    """Return the MS_* flags of the mount ``fd`` is in. Source: statvfs(3)."""
    found = os.fstatvfs(fd).f_flag
    same = k.MS_RDONLY | k.MS_NOSUID | k.MS_NODEV | k.MS_NOEXEC | k.MS_NOATIME | k.MS_NODIRATIME
    return (found & same) | (k.MS_RELATIME if found & 4096 else 0)  # 4096: ST_RELATIME
