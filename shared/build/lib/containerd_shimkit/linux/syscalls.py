"""System calls that Python has no function for, one thin wrapper each.

A failure is a plain ``OSError(errno, strerror, path)`` with the name of the call as a note;
``step`` turns it into a ``SandboxError`` where it is known what was attempted.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping
from types import TracebackType

from containerd_shimkit.errors import SandboxError
from containerd_shimkit.linux import constants as k

_libc = ctypes.CDLL(None, use_errno=True)


class OpenHow(ctypes.Structure):
    """``struct open_how``, linux/openat2.h."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class MountAttr(ctypes.Structure):
    """``struct mount_attr``, linux/mount.h."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class BpfProgLoad(ctypes.Structure):
    """The part of ``union bpf_attr`` for BPF_PROG_LOAD, linux/bpf.h; the rest is 0."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
    )


class BpfProgAttach(ctypes.Structure):
    """For BPF_PROG_ATTACH and BPF_PROG_DETACH."""

    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("replace_bpf_fd", ctypes.c_uint32),
    )


class BpfProgQuery(ctypes.Structure):
    """For BPF_PROG_QUERY."""

    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_uint64),
        ("prog_cnt", ctypes.c_uint32),
    )


class BpfGetFd(ctypes.Structure):
    """For BPF_PROG_GET_FD_BY_ID."""

    _fields_ = (("id", ctypes.c_uint32), ("next_id", ctypes.c_uint32), ("flags", ctypes.c_uint32))


class SchedAttr(ctypes.Structure):
    """``struct sched_attr``, linux/sched/types.h, as far as Linux 3.14 knew it."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("sched_policy", ctypes.c_uint32),
        ("sched_flags", ctypes.c_uint64),
        ("sched_nice", ctypes.c_int32),
        ("sched_priority", ctypes.c_uint32),
        ("sched_runtime", ctypes.c_uint64),
        ("sched_deadline", ctypes.c_uint64),
        ("sched_period", ctypes.c_uint64),
    )


class CapHeader(ctypes.Structure):
    """``struct __user_cap_header_struct``, linux/capability.h."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class CapData(ctypes.Structure):
    """``struct __user_cap_data_struct``; version 3 has two, for the low and the high 32 bits."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_long, _str, _ptr = ctypes.c_ulong, ctypes.c_char_p, ctypes.c_void_p
_libc.mount.argtypes = (_str, _str, _str, _long, _str)
_libc.umount2.argtypes = (_str, ctypes.c_int)
_libc.prctl.argtypes = (ctypes.c_int, _long, _long, _long, _long)
_libc.sethostname.argtypes = _libc.setdomainname.argtypes = (_str, ctypes.c_size_t)
_libc.syscall.restype = ctypes.c_long
# fsid and later fields differ between architectures; f_type is the first word on all of ours.
_Statfs = ctypes.c_long * 32


def _oserror(call: str, path: str | None = None) -> OSError:
    number = ctypes.get_errno()
    exc = OSError(number, os.strerror(number), path)
    exc.add_note(f"{call}()")
    return exc


class step:  # noqa: N801, RUF100 - reads as a statement: with step('mount "/proc"')
    """Name what is attempted: an ``OSError`` inside leaves as a ``SandboxError`` of this name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(exc, OSError):
            raise SandboxError(self.name, reason(exc)) from exc


def reason(exc: OSError) -> str:
    """Return ``mount(): Operation not permitted: "/path"`` for an error of this module."""
    call = "".join(f"{note}: " for note in getattr(exc, "__notes__", ()))
    where = f': "{exc.filename}"' if exc.filename else ""
    return f"{call}{exc.strerror or exc}{where}"


def unshare(flags: int) -> None:
    if _libc.unshare(flags) < 0:
        raise _oserror("unshare")


def setns(fd: int, nstype: int = 0) -> None:
    if _libc.setns(fd, nstype) < 0:
        raise _oserror("setns")


def mount(
    source: str | None, target: str, fstype: str | None = None, flags: int = 0, data: str = ""
) -> None:
    src = os.fsencode(source) if source is not None else None
    kind = fstype.encode() if fstype is not None else None
    if _libc.mount(src, os.fsencode(target), kind, flags, os.fsencode(data) or None) < 0:
        raise _oserror("mount", target)


def umount2(target: str, flags: int = 0) -> None:
    if _libc.umount2(os.fsencode(target), flags) < 0:
        raise _oserror("umount2", target)


def pivot_root(new_root: str, put_old: str) -> None:
    if _libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)) < 0:
        raise _oserror("pivot_root", new_root)


def sethostname(name: str) -> None:
    raw = name.encode()
    if _libc.sethostname(raw, len(raw)) < 0:
        raise _oserror("sethostname")


def setdomainname(name: str) -> None:
    raw = name.encode()
    if _libc.setdomainname(raw, len(raw)) < 0:
        raise _oserror("setdomainname")


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    result: int = _libc.prctl(option, arg2, arg3, arg4, arg5)
    if result < 0:
        raise _oserror("prctl")
    return result


def set_no_new_privs() -> None:
    prctl(k.PR_SET_NO_NEW_PRIVS, 1)


def set_pdeathsig(signal: int) -> None:
    """Have ``signal`` sent when the parent thread ends; the caller checks getppid() after."""
    prctl(k.PR_SET_PDEATHSIG, signal)


def set_child_subreaper(enable: bool = True) -> None:
    prctl(k.PR_SET_CHILD_SUBREAPER, int(enable))


def set_keepcaps(enable: bool) -> None:
    prctl(k.PR_SET_KEEPCAPS, int(enable))


def set_dumpable(enable: bool) -> None:
    prctl(k.PR_SET_DUMPABLE, int(enable))


def capbset_drop(capability: int) -> None:
    prctl(k.PR_CAPBSET_DROP, capability)


def cap_ambient_raise(capability: int) -> None:
    prctl(k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_RAISE, capability)


def cap_ambient_clear_all() -> None:
    prctl(k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_CLEAR_ALL)


def capget() -> tuple[int, int, int]:
    """Return this thread's effective, permitted and inheritable sets as bit masks."""
    header, data = CapHeader(k.LINUX_CAPABILITY_VERSION_3, 0), (CapData * 2)()
    if _libc.capget(ctypes.byref(header), data) < 0:
        raise _oserror("capget")
    low, high = data
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def capset(effective: int, permitted: int, inheritable: int) -> None:
    header, sets = CapHeader(k.LINUX_CAPABILITY_VERSION_3, 0), (effective, permitted, inheritable)
    data = (CapData * 2)(
        CapData(*(mask & 0xFFFFFFFF for mask in sets)), CapData(*(mask >> 32 for mask in sets))
    )
    if _libc.capset(ctypes.byref(header), data) < 0:
        raise _oserror("capset")


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    if _libc.close_range(ctypes.c_uint(first), ctypes.c_uint(last), flags) < 0:
        raise _oserror("close_range")


def openat2(dir_fd: int, path: str, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Return a descriptor, always close-on-exec. ENOSYS before Linux 5.6."""
    how, raw = OpenHow(flags | os.O_CLOEXEC, mode, resolve), os.fsencode(path)
    for _ in range(32):
        fd: int = _libc.syscall(
            k.SYS_OPENAT2, dir_fd, raw, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
        )
        if fd >= 0:
            return fd
        # A rename anywhere on the machine may be the reason: the kernel asks to try again.
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    raise _oserror("openat2", path)


def mount_setattr(fd: int, attr_set: int, attr_clr: int = 0, *, recursive: bool = False) -> None:
    """Change the flags of the mount that ``fd`` is in. ENOSYS before Linux 5.12."""
    attr = MountAttr(attr_set, attr_clr, 0, 0)
    flags = k.AT_EMPTY_PATH | (k.AT_RECURSIVE if recursive else 0)
    try:
        function = _libc.mount_setattr
    except AttributeError:  # a C library older than the call
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if function(fd, b"", flags, ctypes.byref(attr), ctypes.c_size_t(ctypes.sizeof(attr))) < 0:
        raise _oserror("mount_setattr")


def open_tree(path: str, flags: int) -> int:
    """Return a descriptor of a mount, close-on-exec if so flagged. ENOSYS before Linux 5.2."""
    fd: int = _libc.syscall(k.SYS_OPEN_TREE, k.AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags))
    if fd < 0:
        raise _oserror("open_tree", path)
    return fd


def _number(call: str, numbers: Mapping[str, int]) -> int:
    """Return the call's number on this machine; OSError(ENOSYS) if it is not known."""
    machine = os.uname().machine
    if machine not in numbers:
        raise OSError(errno.ENOSYS, f"the number of {call}(2) on {machine} is not known")
    return numbers[machine]


def sched_setattr(
    policy: int, flags: int, nice: int, priority: int, times_ns: tuple[int, int, int]
) -> None:
    """Set this thread's scheduling. times_ns: runtime, deadline and period of SCHED_DEADLINE."""
    size = ctypes.sizeof(SchedAttr)
    attr = SchedAttr(size, policy, flags, nice, priority, *times_ns)
    number = _number("sched_setattr", k.SYS_SCHED_SETATTR)
    if _libc.syscall(number, 0, ctypes.byref(attr), 0) < 0:
        raise _oserror("sched_setattr")


def ioprio_set(value: int) -> None:
    """Set this thread's I/O priority: class and level."""
    number = _number("ioprio_set", k.SYS_IOPRIO_SET)
    if _libc.syscall(number, k.IOPRIO_WHO_PROCESS, 0, value) < 0:
        raise _oserror("ioprio_set")


def personality(domain: int) -> None:
    if _libc.personality(_long(domain)) < 0:
        raise _oserror("personality")


def join_new_session_keyring() -> None:
    """Leave the session keyring; the new one is empty and has no name."""
    if _libc.syscall(_number("keyctl", k.SYS_KEYCTL), k.KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        raise _oserror("keyctl")


def bpf(command: int, attr: ctypes.Structure) -> int:
    """Return what the command does, a descriptor that is close-on-exec or 0."""
    size = ctypes.c_uint(ctypes.sizeof(attr))
    result: int = _libc.syscall(_number("bpf", k.SYS_BPF), command, ctypes.byref(attr), size)
    if result < 0:
        raise _oserror("bpf")
    return result


def bpf_prog_load(kind: int, code: bytes, name: str) -> int:
    """Return a descriptor of the program that ``code``, whole instructions, has become."""
    instructions, licence = (
        ctypes.create_string_buffer(code),
        ctypes.create_string_buffer(b"Apache"),
    )
    attr = BpfProgLoad(
        prog_type=kind,
        insn_cnt=len(code) // 8,
        insns=ctypes.addressof(instructions),
        license=ctypes.addressof(licence),
        prog_name=name.encode(),
    )
    return bpf(k.BPF_PROG_LOAD, attr)


def bpf_prog_attach(target: int, program: int, kind: int, flags: int, *, replace: int = 0) -> None:
    bpf(k.BPF_PROG_ATTACH, BpfProgAttach(target, program, kind, flags, replace))


def bpf_prog_detach(target: int, program: int, kind: int) -> None:
    bpf(k.BPF_PROG_DETACH, BpfProgAttach(target, program, kind))


def bpf_prog_query(target: int, kind: int) -> list[int]:
    """Return the ids of the programs attached to ``target`` itself, at most 64."""
    numbers = (ctypes.c_uint32 * 64)()
    attr = BpfProgQuery(
        target_fd=target, attach_type=kind, prog_ids=ctypes.addressof(numbers), prog_cnt=64
    )
    bpf(k.BPF_PROG_QUERY, attr)
    return numbers[: attr.prog_cnt]


def bpf_prog_get_fd_by_id(number: int) -> int:
    return bpf(k.BPF_PROG_GET_FD_BY_ID, BpfGetFd(number))


def pidfd_open(pid: int) -> int:
    """Return a descriptor of the process, close-on-exec, readable from its end on."""
    result: int = _libc.syscall(k.SYS_PIDFD_OPEN, ctypes.c_int(pid), 0)
    if result < 0:
        raise _oserror("pidfd_open")
    return result


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """Send ``signal``, or with 0 only look whether the process is there."""
    if _libc.syscall(k.SYS_PIDFD_SEND_SIGNAL, pidfd, signal, None, 0) < 0:
        raise _oserror("pidfd_send_signal")


def memfd_create(name: str) -> int:
    """Return a descriptor of a new file in memory, close-on-exec."""
    result: int = _libc.memfd_create(os.fsencode(name), ctypes.c_uint(k.MFD_CLOEXEC))
    if result < 0:
        raise _oserror("memfd_create")
    return result


def filesystem_type(target: int | str) -> int:
    """Return ``f_type`` of statfs(2), a number of linux/magic.h."""
    buffer = _Statfs()
    if isinstance(target, int):
        if _libc.fstatfs(target, buffer) < 0:
            raise _oserror("fstatfs")
    elif _libc.statfs(os.fsencode(target), buffer) < 0:
        raise _oserror("statfs", target)
    return buffer[0]


def inotify_open(path: str, mask: int) -> int:
    """Return a descriptor that is readable, without waiting, when ``path`` changes by ``mask``."""
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise _oserror("inotify_init1")
    if _libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(mask)) < 0:
        exc = _oserror("inotify_add_watch", path)
        os.close(fd)
        raise exc
    return fd
