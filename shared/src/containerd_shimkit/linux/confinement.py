"""Leaving a process that reads hostile bytes with nothing but what computing takes.

No files but those that are open, no network, no other processes: it has its memory, its threads
and its descriptors. There is no way back.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any, Final

from containerd_shimkit.linux.seccomp import SeccompFilter, seccomp_available
from containerd_shimkit.linux.syscalls import set_no_new_privs, step

_NOBODY: Final = 65534
_EMPTY: Final = "/proc/self/fdinfo"  # has nothing in it when the process has ended

_MEMORY: Final = ("brk", "madvise", "mmap", "mprotect", "mremap", "munmap")
_THREADS: Final = (
    *("clock_nanosleep", "exit", "exit_group", "futex", "get_robust_list", "getcpu", "getpid"),
    *("gettid", "membarrier", "nanosleep", "restart_syscall", "rseq", "sched_getaffinity"),
    *("sched_yield", "set_robust_list", "set_tid_address"),
)
_SIGNALS: Final = ("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack")
_DESCRIPTORS: Final = (
    *("close", "fcntl", "fstat", "lseek", "poll", "ppoll", "pread64", "pwrite64", "read", "readv"),
    *("write", "writev"),
)
_KNOWLEDGE: Final = (
    *("clock_getres", "clock_gettime", "getegid", "geteuid", "getgid", "getrandom", "getresgid"),
    *(
        "getresuid",
        "getgroups",
        "getrlimit",
        "getrusage",
        "gettimeofday",
        "getuid",
        "sysinfo",
        "uname",
    ),
)
_CLONE_THREAD: Final = 0x00010000  # linux/sched.h


def _computing() -> Mapping[str, Any]:
    """Return a profile as the spec has it.

    What is not there need not exist for a program: many have another way then, as C's library has
    for clone3, whose flags no filter can see.
    """
    names = [*_MEMORY, *_THREADS, *_SIGNALS, *_DESCRIPTORS, *_KNOWLEDGE]
    thread = {"index": 0, "op": "SCMP_CMP_MASKED_EQ"}
    thread |= {"value": _CLONE_THREAD, "valueTwo": _CLONE_THREAD}
    itself = {"index": 0, "op": "SCMP_CMP_EQ", "value": os.getpid()}
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "syscalls": [
            {"names": names, "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [thread]},
            {"names": ["tgkill"], "action": "SCMP_ACT_ALLOW", "args": [itself]},  # abort
        ],
    }


def confine() -> None:
    """Confine this process, which has one thread, for good. Raises SandboxError.

    Nothing can be imported any more. Without root it keeps its user and its view of files, and
    without libseccomp all system calls.
    """
    if os.geteuid() == 0:
        with step("leave the file system"):
            os.chroot(_EMPTY)
            os.chdir("/")
        with step("become nobody"):
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    with step("set no_new_privs"):
        set_no_new_privs()
    if seccomp_available():
        SeccompFilter(_computing()).load()
