"""``linux.seccomp`` of the spec, loaded through the node's libseccomp.

libseccomp knows the system calls and compiles the filter; a node without it cannot apply a
profile, which ``seccomp_available`` says. The profile's ``architectures`` are left out: the
engine makes native calls only, and libseccomp kills what makes others. Source of the names: OCI
runtime spec, "Seccomp".
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any, Final

from containerd_shimkit.errors import BundleError
from containerd_shimkit.linux.syscalls import step

try:
    import pyseccomp
except RuntimeError:  # no libseccomp.so on this node
    pyseccomp = None

_ACTIONS: Final = {
    "SCMP_ACT_KILL": "KILL_THREAD",
    "SCMP_ACT_KILL_THREAD": "KILL_THREAD",
    "SCMP_ACT_KILL_PROCESS": "KILL_PROCESS",
    "SCMP_ACT_TRAP": "TRAP",
    "SCMP_ACT_LOG": "LOG",
    "SCMP_ACT_ALLOW": "ALLOW",
}
_OPERATORS: Final = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
# The numbers are those of enum scmp_filter_attr, seccomp.h. TSYNC is about other threads, and there
# are none when the filter is loaded.
_FLAGS: Final = {
    "SECCOMP_FILTER_FLAG_TSYNC": None,
    "SECCOMP_FILTER_FLAG_LOG": 6,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 7,
}
_ERRNO_LIMIT: Final = 4096
_UNKNOWN_CALL: Final = -1  # __NR_SCMP_ERROR; below it are the calls of other architectures


NOT_APPLIED: Final = "the seccomp profile is not applied: this node has no libseccomp"


def seccomp_available() -> bool:
    """Whether this node has libseccomp."""
    return pyseccomp is not None


class SeccompFilter:
    """A profile, compiled; ``load`` applies it to this process for good."""

    def __init__(self, profile: Mapping[str, Any]) -> None:
        """Raises BundleError for a profile that breaks a rule of the spec, SandboxError else."""
        with step("compile the seccomp profile"):
            default = _action(profile.get("defaultAction"), profile.get("defaultErrnoRet"))
            self._filter = pyseccomp.SyscallFilter(default)
            # Whether no_new_privs is set is the spec's decision, not libseccomp's.
            self._filter.set_attr(pyseccomp.Attr.CTL_NNP, 0)
            for flag in _strings(profile, "flags"):
                self._set_flag(flag)
            for rule in _objects(profile, "syscalls"):
                self._add_rule(rule, default)

    def load(self) -> None:
        """Apply. Raises SandboxError."""
        with step("load the seccomp filter"):
            self._filter.load()

    def _set_flag(self, flag: str) -> None:
        if flag not in _FLAGS:
            raise BundleError(f"linux.seccomp: flag {flag!r}: not supported")
        if (attribute := _FLAGS[flag]) is not None:
            self._filter.set_attr(attribute, 1)

    def _add_rule(self, rule: Mapping[str, Any], default: int) -> None:
        action = _action(rule.get("action"), rule.get("errnoRet"))
        if action == default:
            return  # libseccomp refuses what changes nothing
        arguments = [_argument(entry) for entry in _objects(rule, "args")]
        # Several conditions on one argument are alternatives; libseccomp wants a rule for each.
        indices = [index for index, _ in arguments]
        together = len(set(indices)) == len(indices)
        for name in _strings(rule, "names"):
            number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
            if number == _UNKNOWN_CALL:
                continue  # to this libseccomp
            groups = [[a for _, a in arguments]] if together else [[a] for _, a in arguments]
            for group in groups:
                self._filter.add_rule(action, number, *group)


def _action(name: Any, errno_ret: Any) -> int:
    value = errno.EPERM if errno_ret is None else errno_ret
    if not isinstance(value, int) or not 0 <= value < _ERRNO_LIMIT:
        raise BundleError(f"linux.seccomp: errnoRet = {value!r}: not an error number")
    if name == "SCMP_ACT_ERRNO":
        return int(pyseccomp.ERRNO(value))
    if name == "SCMP_ACT_TRACE":
        return int(pyseccomp.TRACE(value))
    if not isinstance(name, str) or name not in _ACTIONS:
        raise BundleError(f"linux.seccomp: action {name!r}: not supported")
    return int(getattr(pyseccomp, _ACTIONS[name]))


def _argument(entry: Mapping[str, Any]) -> tuple[int, Any]:
    index, operator = entry.get("index"), _OPERATORS.get(str(entry.get("op")))
    value, second = entry.get("value", 0), entry.get("valueTwo", 0)
    if not isinstance(index, int) or not 0 <= index < 6 or operator is None:
        raise BundleError(f"linux.seccomp: argument {dict(entry)!r}: bad index or op")
    if not isinstance(value, int) or not isinstance(second, int):
        raise BundleError(f"linux.seccomp: argument {dict(entry)!r}: bad value")
    # For MASKED_EQ the spec's value is the mask, as libseccomp's first datum is.
    return index, pyseccomp.Arg(index, operator, value, second)


def _objects(section: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    values = section.get(key) or ()
    if not isinstance(values, list | tuple) or not all(isinstance(v, Mapping) for v in values):
        raise BundleError(f"linux.seccomp: {key}: not a list of objects")
    return values


def _strings(section: Mapping[str, Any], key: str) -> Sequence[str]:
    values = section.get(key) or ()
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise BundleError(f"linux.seccomp: {key}: not a list of strings")
    return values
