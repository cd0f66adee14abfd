"""Seccomp profiles, applied to processes that end with the test."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.errors import BundleError
from containerd_shimkit.linux.seccomp import SeccompFilter, seccomp_available
from containerd_shimkit.linux.syscalls import set_no_new_privs

pytestmark = pytest.mark.skipif(not seccomp_available(), reason="needs libseccomp.so.2")

InChild = Callable[[Callable[[], object]], Any]
ALLOW: Mapping[str, Any] = {"defaultAction": "SCMP_ACT_ALLOW"}
# What a child has to call so that it can say what happened, and end.
NEEDED = [
    *("read", "write", "close", "exit_group", "exit", "futex", "brk", "mmap", "munmap"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "madvise", "mremap", "getpid"),
    *("openat", "open", "newfstatat", "fstat", "fstat64", "lseek", "ioctl"),
]


def rule(*names: str, action: str = "SCMP_ACT_ERRNO", **fields: Any) -> dict[str, Any]:
    return {"names": list(names), "action": action, **fields}


def denying(*rules: dict[str, Any]) -> dict[str, Any]:
    """A profile that allows what no rule is about."""
    return {**ALLOW, "syscalls": list(rules)}


def load(profile: Mapping[str, Any]) -> None:
    set_no_new_privs()  # so that no privilege is needed
    SeccompFilter(profile).load()


def error_of(call: Callable[[], object]) -> int:
    """Return the error number of a call, 0 if it succeeds."""
    try:
        call()
    except OSError as exc:
        return exc.errno or 0
    return 0


def status(name: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


def signal_that_ends(action: str) -> int:
    """Return the signal by which a child ends that makes a call with this action."""
    pid = os.fork()
    if pid == 0:
        try:
            load(denying(rule("getppid", action=action)))
            os.getppid()
        finally:
            os._exit(0)
    _, waited = os.waitpid(pid, 0)
    return os.WTERMSIG(waited) if os.WIFSIGNALED(waited) else 0


# What a profile does


def test_loaded_filter_is_seen_by_the_kernel(in_child: InChild) -> None:
    def child() -> list[str]:
        before = status("Seccomp")
        load(ALLOW)
        return [before, status("Seccomp")]

    before, after = in_child(child)
    assert (before, after) in [("0", "2"), ("2", "2")]


def test_filter_with_flags_is_loaded(in_child: InChild) -> None:
    names = ("TSYNC", "LOG", "SPEC_ALLOW")
    flags = [f"SECCOMP_FILTER_FLAG_{name}" for name in names]

    def child() -> object:
        load({**ALLOW, "flags": flags})
        return status("Seccomp")

    assert in_child(child) == "2"


def test_compiled_filter_is_not_loaded(in_child: InChild) -> None:
    def child() -> int:
        SeccompFilter(denying(rule("mkdir", "mkdirat")))
        return error_of(Path("/proc/no").mkdir)

    assert in_child(child) == errno.ENOENT


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, errno.EPERM, id="default"),
        pytest.param({"errnoRet": errno.ENOSYS}, errno.ENOSYS, id="chosen"),
        pytest.param({"errnoRet": 0}, 0, id="none"),
    ],
)
def test_denied_call_fails(in_child: InChild, fields: dict[str, Any], expected: int) -> None:
    def child() -> int:
        load(denying(rule("sethostname", **fields)))
        return error_of(lambda: socket.sethostname("denied-by-the-test"))

    assert in_child(child) == expected


def test_calls_that_no_rule_names_get_the_default(in_child: InChild) -> None:
    """An allow list, as those of Docker and Kubernetes are."""

    def child() -> list[int]:
        load(
            {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": errno.ENOTTY,
                "syscalls": [rule(*NEEDED, action="SCMP_ACT_ALLOW")],
            }
        )
        return [error_of(Path("/proc/no").mkdir), error_of(os.getpid)]

    assert in_child(child) == [errno.ENOTTY, 0]


def test_rule_with_the_default_action_changes_nothing(in_child: InChild) -> None:
    def child() -> int:
        load(denying(rule("getppid", action="SCMP_ACT_ALLOW")))
        return error_of(os.getppid)

    assert in_child(child) == 0


def test_names_that_this_machine_does_not_know_are_passed_over(in_child: InChild) -> None:
    """A profile is written for every architecture, and for kernels that are newer."""

    def child() -> int:
        load(denying(rule("call_of_the_year_2100", "arm_fadvise64_64", "mkdir", "mkdirat")))
        return error_of(Path("/proc/no").mkdir)

    assert in_child(child) == errno.EPERM


def test_later_rules_add_to_earlier_ones(in_child: InChild) -> None:
    def child() -> list[int]:
        load(denying(rule("mkdir", "mkdirat"), rule("rmdir", "unlinkat", errnoRet=errno.EIO)))
        return [error_of(Path("/proc/no").mkdir), error_of(Path("/proc/no").rmdir)]

    assert in_child(child) == [errno.EPERM, errno.EIO]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("SCMP_ACT_KILL", signal.SIGSYS),
        ("SCMP_ACT_KILL_THREAD", signal.SIGSYS),
        ("SCMP_ACT_KILL_PROCESS", signal.SIGSYS),
        ("SCMP_ACT_TRAP", signal.SIGSYS),
        ("SCMP_ACT_LOG", 0),
    ],
)
def test_action(in_child: InChild, action: str, expected: int) -> None:
    assert in_child(lambda: signal_that_ends(action)) == expected


def test_tracer_that_is_not_there_lets_the_call_fail(in_child: InChild) -> None:
    def child() -> int:
        load(denying(rule("mkdir", "mkdirat", action="SCMP_ACT_TRACE")))
        return error_of(Path("/proc/no").mkdir)

    assert in_child(child) == errno.ENOSYS


# Conditions on arguments


def dup_errors(conditions: list[dict[str, Any]], *numbers: int) -> list[int]:
    """Return the errors of fcntl(0, number), of which those that match fail with EBADMSG."""
    load(denying(rule("fcntl", "fcntl64", errnoRet=errno.EBADMSG, args=conditions)))
    libc = ctypes.CDLL(None, use_errno=True)
    errors = []
    for number in numbers:
        ctypes.set_errno(0)
        libc.fcntl(0, number, 0)
        errors.append(ctypes.get_errno() == errno.EBADMSG)
    return [int(error) for error in errors]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"op": "SCMP_CMP_EQ", "value": 2}, [0, 1, 0]),
        ({"op": "SCMP_CMP_NE", "value": 2}, [1, 0, 1]),
        ({"op": "SCMP_CMP_LT", "value": 2}, [1, 0, 0]),
        ({"op": "SCMP_CMP_LE", "value": 2}, [1, 1, 0]),
        ({"op": "SCMP_CMP_GT", "value": 2}, [0, 0, 1]),
        ({"op": "SCMP_CMP_GE", "value": 2}, [0, 1, 1]),
        ({"op": "SCMP_CMP_MASKED_EQ", "value": 2, "valueTwo": 0}, [1, 0, 0]),
    ],
    ids=lambda value: value["op"] if isinstance(value, dict) else "",
)
def test_condition(in_child: InChild, condition: dict[str, Any], expected: list[int]) -> None:
    # 1 to 3: F_GETFD, F_SETFD, F_GETFL
    assert in_child(lambda: dup_errors([{"index": 1, **condition}], 1, 2, 3)) == expected


def test_conditions_on_several_arguments_hold_together(in_child: InChild) -> None:
    both = [
        {"index": 0, "op": "SCMP_CMP_EQ", "value": 1_000_000},
        {"index": 1, "op": "SCMP_CMP_EQ", "value": 1},
    ]
    assert in_child(lambda: dup_errors(both, 1, 2)) == [0, 0]
    both[0]["value"] = 0
    assert in_child(lambda: dup_errors(both, 1, 2)) == [1, 0]


def test_conditions_on_one_argument_are_alternatives(in_child: InChild) -> None:
    either = [{"index": 1, "op": "SCMP_CMP_EQ", "value": value} for value in (1, 3)]
    assert in_child(lambda: dup_errors(either, 1, 2, 3)) == [1, 0, 1]


# What is refused


@pytest.mark.parametrize(
    ("profile", "text"),
    [
        pytest.param({}, "action None", id="no-default"),
        pytest.param({"defaultAction": "ALLOW"}, "action 'ALLOW'", id="unknown-default"),
        pytest.param(denying(rule("read", action="SCMP_ACT_NO")), "SCMP_ACT_NO", id="action"),
        pytest.param(denying(rule("read", errnoRet=-1)), "errnoRet = -1", id="errno-negative"),
        pytest.param(denying(rule("read", errnoRet=4096)), "errnoRet = 4096", id="errno-large"),
        pytest.param(denying(rule("read", errnoRet="EPERM")), "'EPERM'", id="errno-text"),
        pytest.param(denying({"names": "read", "action": "SCMP_ACT_LOG"}), "names", id="names"),
        pytest.param(denying({"names": [1], "action": "SCMP_ACT_LOG"}), "names", id="name"),
        pytest.param(
            denying(rule("read", args=[{"index": 6, "op": "SCMP_CMP_EQ"}])), "index", id="index"
        ),
        pytest.param(
            denying(rule("read", args=[{"index": "0", "op": "SCMP_CMP_EQ"}])), "index", id="text"
        ),
        pytest.param(denying(rule("read", args=[{"index": 0, "op": "=="}])), "op", id="operator"),
        pytest.param(denying(rule("read", args=[{"index": 0}])), "op", id="no-operator"),
        pytest.param(
            denying(rule("read", args=[{"index": 0, "op": ["SCMP_CMP_EQ"]}])), "op", id="op-list"
        ),
        pytest.param(
            denying(rule("read", args=[{"index": 0, "op": "SCMP_CMP_EQ", "value": "1"}])),
            "value",
            id="value-text",
        ),
        pytest.param({"defaultAction": ["SCMP_ACT_LOG"]}, "action", id="action-list"),
        pytest.param({**ALLOW, "flags": ["SECCOMP_FILTER_FLAG_X"]}, "FLAG_X", id="flag"),
        pytest.param({**ALLOW, "syscalls": ["read"]}, "syscalls", id="rule-text"),
        pytest.param({**ALLOW, "syscalls": {"a": 1}}, "syscalls", id="rules-object"),
    ],
)
def test_bad_profile_is_refused(profile: dict[str, Any], text: str) -> None:
    with pytest.raises(BundleError, match=r"linux\.seccomp") as caught:
        SeccompFilter(profile)
    assert text in str(caught.value)
