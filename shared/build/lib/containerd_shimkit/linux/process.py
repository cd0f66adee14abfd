"""Properties of the process itself: limits, user, sysctls, names.

What a machine without CAP_SYS_RESOURCE refuses (raising a limit, lowering oom_score_adj) is not an
error: the function returns a sentence for the log instead.

``apply_sysctls`` and ``set_oom_score_adj`` write to the host's ``/proc``, so they come before
pivot_root; the kernel takes the namespaces of the process that writes, and the image has no say.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from containerd_shimkit.errors import BundleError
from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.syscalls import (
    ioprio_set,
    join_new_session_keyring,
    personality,
    sched_setattr,
    setdomainname,
    sethostname,
    step,
)

IPC_SYSCTLS = frozenset(
    "kernel." + name
    for name in (
        "msgmax",
        "msgmnb",
        "msgmni",
        "sem",
        "shmall",
        "shmmax",
        "shmmni",
        "shm_rmid_forced",
    )
)


class RlimitSpec(Protocol):
    """What is read of an entry of ``process.rlimits``."""

    @property
    def type(self) -> str: ...
    @property
    def soft(self) -> int: ...
    @property
    def hard(self) -> int: ...


class SchedulerSpec(Protocol):
    """What is read of ``process.scheduler``."""

    @property
    def policy(self) -> str: ...
    @property
    def nice(self) -> int: ...
    @property
    def priority(self) -> int: ...
    @property
    def flags(self) -> Sequence[str]: ...
    @property
    def runtime(self) -> int: ...
    @property
    def deadline(self) -> int: ...
    @property
    def period(self) -> int: ...


def apply_rlimits(rlimits: Iterable[RlimitSpec]) -> list[str]:
    """Set each limit, as far as this process may; return a warning for each it may not.

    A limit that cannot be raised is set to what is asked or the present hard limit, the lower.
    """
    warnings = []
    for limit in rlimits:
        number = getattr(resource, limit.type, None)
        if number is None or not limit.type.startswith("RLIMIT_"):
            raise BundleError(f'unknown rlimit type "{limit.type}"')
        soft, hard = _rlim(limit.soft), _rlim(limit.hard)
        with step(f"set {limit.type} to {limit.soft}:{limit.hard}"):
            try:
                resource.setrlimit(number, (soft, hard))
            except ValueError as exc:  # Python's name for EINVAL, and for a plain EPERM too
                present = resource.getrlimit(number)[1]
                if _higher(soft, hard):
                    raise BundleError(
                        f"{limit.type}: soft limit {limit.soft} exceeds hard limit {limit.hard}"
                    ) from exc
                resource.setrlimit(number, (_lower(soft, present), _lower(hard, present)))
                warnings.append(
                    f"{limit.type} stays at {present}: no right to raise it to {limit.hard}"
                )
    return warnings


def _rlim(value: int) -> int:
    return resource.RLIM_INFINITY if value >= 2**63 - 1 else value


def _higher(left: int, right: int) -> bool:
    if right == resource.RLIM_INFINITY:
        return False
    return left == resource.RLIM_INFINITY or left > right


def _lower(left: int, right: int) -> int:
    return right if _higher(left, right) else left


def set_oom_score_adj(value: int) -> list[str]:
    """Set this process's ``oom_score_adj``, -1000..1000; a warning if it may not be lowered."""
    with step(f"set oom_score_adj to {value}"):
        try:
            _write("/proc/self/oom_score_adj", str(value))
        except PermissionError:
            return [f"oom_score_adj is not lowered to {value}: CAP_SYS_RESOURCE is missing"]
    return []


def apply_user(
    uid: int, gid: int, additional_gids: Sequence[int] = (), umask: int | None = None
) -> None:
    """Become the user for good: real, effective and saved ids."""
    os.umask(0o022 if umask is None else umask)  # runc's, whatever containerd's is
    with step(f"set groups {[gid, *additional_gids]}"):
        os.setgroups(list(additional_gids))
        os.setresgid(gid, gid, gid)
    with step(f"set user {uid}"):
        os.setresuid(uid, uid, uid)


def leave_session_keyring() -> None:
    """Have no part in the keys of whoever started containerd; a kernel without keys has none."""
    with step("make a session keyring"):
        try:
            join_new_session_keyring()
        except OSError as exc:
            if exc.errno != errno.ENOSYS:
                raise


def apply_scheduler(scheduler: SchedulerSpec) -> None:
    """Set the policy of this process and of the threads it will have. Raises BundleError."""
    policy = k.SCHED_POLICIES.get(scheduler.policy)
    if policy is None:
        known = ", ".join(k.SCHED_POLICIES)
        raise BundleError(f'unknown scheduler policy "{scheduler.policy}", one of: {known}')
    flags = 0
    for name in scheduler.flags:
        if name not in k.SCHED_FLAGS:
            raise BundleError(
                f'unknown scheduler flag "{name}", one of: {", ".join(k.SCHED_FLAGS)}'
            )
        flags |= k.SCHED_FLAGS[name]
    times = scheduler.runtime, scheduler.deadline, scheduler.period
    with step(f"set scheduler {scheduler.policy}"):
        sched_setattr(policy, flags, scheduler.nice, scheduler.priority, times)


def apply_io_priority(name: str, level: int) -> None:
    """Set class and level, 0..7, of this process's I/O. Raises BundleError."""
    if name not in k.IOPRIO_CLASSES:
        known = ", ".join(k.IOPRIO_CLASSES)
        raise BundleError(f'unknown I/O priority class "{name}", one of: {known}')
    with step(f"set I/O priority {name} {level}"):
        ioprio_set(k.IOPRIO_CLASSES[name] << k.IOPRIO_CLASS_SHIFT | level)


def apply_personality(domain: str) -> None:
    """Set the execution domain. Raises BundleError."""
    if domain not in k.PERSONALITIES:
        known = ", ".join(k.PERSONALITIES)
        raise BundleError(f'unknown personality "{domain}", one of: {known}')
    with step(f"set personality {domain}"):
        personality(k.PERSONALITIES[domain])


def apply_names(hostname: str | None, domainname: str | None = None) -> None:
    """Set the names of the uts namespace this process is in, which must not be the host's."""
    if hostname:
        with step(f'set hostname "{hostname}"'):
            sethostname(hostname)
    if domainname:
        with step(f'set domainname "{domainname}"'):
            setdomainname(domainname)


def apply_sysctls(sysctls: Mapping[str, str], namespaces: Collection[str]) -> None:
    """Write the sysctls, each of which has to belong to one of the container's namespaces.

    namespaces: the types that are not the host's (``NamespacePlan.types``).
    Raises BundleError for one that would change the host.
    """
    for name, value in sysctls.items():
        path = sysctl_path(name, namespaces)
        with step(f'set sysctl "{name}" to "{value}"'):
            _write(path, value)


def sysctl_path(name: str, namespaces: Collection[str]) -> str:
    """Return the file of a sysctl. Both spellings of sysctl(8): a.b and a/b, the first one decides.

    ``net/ipv4/conf/eth0.1/forwarding`` keeps the dot in the interface's name.
    """
    dot, slash = name.find("."), name.find("/")
    if dot >= 0 and (slash < 0 or dot < slash):
        name = name.translate({ord("."): "/", ord("/"): "."})
    parts = name.split("/")
    if not all(parts) or "." in parts or ".." in parts:
        raise BundleError(f'sysctl "{name}": not a name')
    dotted = f"{parts[0]}.{parts[1]}" if len(parts) == 2 else ""
    if parts[0] == "net":
        needed = "network"
    elif dotted in IPC_SYSCTLS or parts[:2] == ["fs", "mqueue"]:
        needed = "ipc"
    elif dotted == "kernel.domainname":
        needed = "uts"
    else:
        raise BundleError(f'sysctl "{name}": it is not separate for each namespace')
    if needed not in namespaces:
        raise BundleError(f'sysctl "{name}": the container shares the host\'s {needed} namespace')
    return "/proc/sys/" + name


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
