"""The namespaces of ``linux.namespaces``: opened first, entered in two places.

The *stage* process enters all but two: it stays in the host's mount namespace, and a pid
namespace only takes its next child. That child, the *init*, enters the others: the mount
namespace, and the cgroup namespace after it has joined its cgroup, which then is its root.

Order, from user_namespaces(7): user first, since it decides over which of the others there are
privileges; pid last, so that whatever fails before it left no process behind. Paths are opened
before anything is entered: they are the host's.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from containerd_shimkit.errors import BundleError
from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.syscalls import setns, step, unshare

STAGE: Mapping[str, int] = {  # in the order they are entered
    "user": k.CLONE_NEWUSER,
    "ipc": k.CLONE_NEWIPC,
    "uts": k.CLONE_NEWUTS,
    "network": k.CLONE_NEWNET,
    "time": k.CLONE_NEWTIME,
    "pid": k.CLONE_NEWPID,
}
INIT: Mapping[str, int] = {"mount": k.CLONE_NEWNS, "cgroup": k.CLONE_NEWCGROUP}
FLAGS: Mapping[str, int] = {**STAGE, **INIT}


class NamespaceSpec(Protocol):
    """What is read of an entry of ``linux.namespaces``."""

    @property
    def type(self) -> str: ...
    @property
    def path(self) -> str | None: ...


class IdMapping(Protocol):
    """What is read of an entry of ``linux.uidMappings`` and ``linux.gidMappings``."""

    @property
    def container_id(self) -> int: ...
    @property
    def host_id(self) -> int: ...
    @property
    def size(self) -> int: ...


class JoinedNamespace(NamedTuple):
    """A namespace that exists already, by an open descriptor."""

    type: str
    path: str
    fd: int


class NamespacePlan:
    """The namespaces of one container. Made in the stage's parent or the stage; then entered."""

    __slots__ = ("joined", "new")

    def __init__(self, new: frozenset[str], joined: tuple[JoinedNamespace, ...]) -> None:
        self.new = new
        self.joined = joined

    @classmethod
    def open(cls, namespaces: Iterable[NamespaceSpec]) -> NamespacePlan:
        """Check the list and open every path in it.

        Raises BundleError for a list that can never work, SandboxError for a path that cannot be
        opened now, such as one of a pod's pause process that has ended.
        """
        paths: dict[str, str | None] = {}
        for entry in namespaces:
            if entry.type not in FLAGS:
                known = ", ".join(FLAGS)
                raise BundleError(f'unknown namespace type "{entry.type}", one of: {known}')
            if entry.type in paths:
                raise BundleError(f'namespace type "{entry.type}" is given twice')
            if entry.path is not None and not entry.path.startswith("/"):
                raise BundleError(f'path of {entry.type} namespace is not absolute: "{entry.path}"')
            paths[entry.type] = entry.path
        if paths.get("mount", "missing") is not None:
            raise BundleError("a new mount namespace is needed: the rootfs is mounted in it only")
        joined: list[JoinedNamespace] = []
        try:
            for kind in FLAGS:
                if path := paths.get(kind):
                    with step(f'open {kind} namespace "{path}"'):
                        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    joined.append(JoinedNamespace(kind, path, fd))
        except BaseException:
            cls(frozenset(), tuple(joined)).close()
            raise
        return cls(frozenset(kind for kind, path in paths.items() if path is None), tuple(joined))

    @property
    def types(self) -> frozenset[str]:
        """Every type that is not the host's, made or joined."""
        return self.new.union(entry.type for entry in self.joined)

    def enter_stage(
        self,
        uid_mappings: Sequence[IdMapping] = (),
        gid_mappings: Sequence[IdMapping] = (),
        time_offsets: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    ) -> None:
        """Enter all but mount and cgroup; the caller's next child is in pid and time namespace.

        time_offsets: of a new time namespace, seconds and nanoseconds by clock.
        """
        if time_offsets and "time" not in self.new:
            raise BundleError("time offsets need a new time namespace")
        self._join(STAGE)
        if "user" in self.new:
            with step("make the user namespace"):
                unshare_user(uid_mappings, gid_mappings)
        if flags := self._new_flags(STAGE) & ~k.CLONE_NEWUSER:
            with step("make the namespaces"):
                unshare(flags)
        if time_offsets:
            with step(f"set time offsets {dict(time_offsets)}"):
                _write_time_offsets(time_offsets)
        if "network" in self.new:
            with step("bring up the loopback interface"):
                bring_up_loopback()

    def enter_init(self) -> None:
        """Enter mount and cgroup. The caller has joined its cgroup already."""
        self._join(INIT)
        if flags := self._new_flags(INIT):
            with step("make the mount and cgroup namespaces"):
                unshare(flags)

    def close(self) -> None:
        for entry in self.joined:
            os.close(entry.fd)
        self.joined = ()

    def _join(self, kinds: Mapping[str, int]) -> None:
        for entry in self.joined:
            if entry.type in kinds:
                with step(f'join {entry.type} namespace "{entry.path}"'):
                    setns(entry.fd, kinds[entry.type])

    def _new_flags(self, kinds: Mapping[str, int]) -> int:
        flags = 0
        for kind in self.new.intersection(kinds):
            flags |= kinds[kind]
        return flags


def unshare_user(uid_mappings: Sequence[IdMapping], gid_mappings: Sequence[IdMapping]) -> None:
    """Make a user namespace and become its root.

    The maps have to be written from outside, by a process that has the privileges: a child that
    is forked before, and told by a byte when the namespace is there.
    """
    parent, (told, tell) = os.getpid(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(tell)
            if os.read(told, 1):
                _write_map(f"/proc/{parent}/uid_map", uid_mappings)
                _write_map(f"/proc/{parent}/gid_map", gid_mappings)
            code = 0
        except OSError as exc:
            code = exc.errno or 1
        finally:
            os._exit(code)
    try:
        unshare(k.CLONE_NEWUSER)
        os.write(tell, b"1")
    finally:
        os.close(tell)
        os.close(told)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, os.strerror(code), f"/proc/{parent}/uid_map")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _write_map(path: str, mappings: Sequence[IdMapping]) -> None:
    lines = "".join(f"{entry.container_id} {entry.host_id} {entry.size}\n" for entry in mappings)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, lines.encode())  # one write: the kernel takes no second one


def _write_time_offsets(offsets: Mapping[str, tuple[int, int]]) -> None:
    """Set the clocks of the namespace that the next child is in. Source: time_namespaces(7)."""
    lines = "".join(f"{clock} {s} {ns}\n" for clock, (s, ns) in offsets.items())
    fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, lines.encode())
    finally:
        os.close(fd)


def bring_up_loopback() -> None:
    """Set ``lo`` up: in a new network namespace it is down. Source: netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        # struct ifreq: name, flags, the rest of the union
        request = fcntl.ioctl(sock, k.SIOCGIFFLAGS, struct.pack("16sh22x", b"lo", 0))
        flags = struct.unpack_from("16xh", request)[0] | k.IFF_UP
        fcntl.ioctl(sock, k.SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags))
