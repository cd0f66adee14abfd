"""Device rules on cgroup version 2: a BPF program that the kernel asks about each access.

Rules, as on version 1 and in the OCI spec:

1. A later rule wins, for each kind of access (read, write, mknod) separately.
2. A rule of type ``a`` is about everything, whatever else it says.
3. What no rule is about is refused. Source: runc's libcontainer/cgroups/devices.
4. ``DEFAULT_RULES`` of version 1 come last.

So the program looks from the last rule to the first. An access that is refused by one is over; of
what a rule allows the program forgets, and when nothing is left the access is granted.
Sources: linux/bpf.h, Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from containerd_shimkit.errors import SandboxError
from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.cgroups.v1 import DEFAULT_RULES, device_rule
from containerd_shimkit.linux.syscalls import (
    bpf_prog_attach,
    bpf_prog_detach,
    bpf_prog_get_fd_by_id,
    bpf_prog_load,
    bpf_prog_query,
    reason,
    step,
)

READ, WRITE, MKNOD = k.BPF_DEVCG_ACC_READ, k.BPF_DEVCG_ACC_WRITE, k.BPF_DEVCG_ACC_MKNOD
_ACCESS: Final = {"r": READ, "w": WRITE, "m": MKNOD}
_TYPES: Final = {"b": k.BPF_DEVCG_DEV_BLOCK, "c": k.BPF_DEVCG_DEV_CHAR}
_NUMBER_END: Final = 1 << 31  # no device has such a number: beyond it an operand has another sign

# Of the kernel's struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor
_CONTEXT_TYPE, _CONTEXT_MAJOR, _CONTEXT_MINOR = 0, 4, 8
_RESULT, _CONTEXT, _TYPE, _PENDING, _MAJOR, _MINOR, _COPY = range(7)  # registers

_LOAD: Final = k.BPF_LDX | k.BPF_MEM | k.BPF_W
_MOVE: Final = k.BPF_ALU | k.BPF_MOV
_MOVE_REGISTER: Final = _MOVE | k.BPF_X
_AND: Final = k.BPF_ALU | k.BPF_AND
_SHIFT_RIGHT: Final = k.BPF_ALU | k.BPF_RSH
_JUMP_EQUAL: Final = k.BPF_JMP | k.BPF_JEQ
_JUMP_NOT_EQUAL: Final = k.BPF_JMP | k.BPF_JNE
_EXIT: Final = k.BPF_JMP | k.BPF_EXIT

_NO_BPF: Final = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


class Instruction(NamedTuple):
    """``struct bpf_insn``."""

    code: int
    target: int = 0
    source: int = 0
    offset: int = 0
    """Of a jump: how many instructions are passed over. Of a load: bytes."""
    operand: int = 0

    def encode(self) -> bytes:
        return struct.pack(
            "<BBhi",
            self.code,
            self.source << 4 | self.target,
            self.offset,
            self.operand,
        )


class _Rule(NamedTuple):
    allow: bool
    type: str
    """``a``, ``b`` or ``c``."""
    major: int | None = None
    minor: int | None = None
    access: int = READ | WRITE | MKNOD

    @classmethod
    def parse(cls, allow: bool, line: str) -> _Rule:
        """Read a line of version 1: ``c 1:3 rwm``, or ``a``."""
        if line == "a":
            return cls(allow, line)
        kind, numbers, letters = line.split(" ")
        major, minor = (None if n == "*" else int(n) for n in numbers.split(":"))
        return cls(allow, kind, major, minor, sum(_ACCESS[letter] for letter in set(letters)))


def apply_device_rules(directory: Path, rules: Sequence[Mapping[str, Any]]) -> list[str]:
    """Have the kernel enforce ``rules`` for the cgroup, instead of those that were there.

    Returns a warning if it cannot and nothing is lost by it: every rule allows everything of a
    device, or this is a user namespace, whose processes cannot make devices. Raises SandboxError.
    """
    try:
        _attach(directory, device_program(rules))
    except OSError as exc:
        name = f'set the device rules of cgroup "{directory}"'
        if exc.errno not in _NO_BPF or not (_are_harmless(rules) or _in_user_namespace()):
            raise SandboxError(name, reason(exc)) from exc
        return [f"device rules are not enforced: {reason(exc)}"]
    return []


def device_program(rules: Iterable[Mapping[str, Any]]) -> list[Instruction]:
    """Return the program for the spec's rules and the default ones. Raises BundleError."""
    parsed = [_Rule.parse(bool(rule.get("allow")), device_rule(rule)) for rule in rules]
    parsed += [_Rule.parse(True, line) for line in DEFAULT_RULES]
    program = [
        Instruction(_LOAD, _TYPE, _CONTEXT, _CONTEXT_TYPE),
        Instruction(_MOVE_REGISTER, _PENDING, _TYPE),
        Instruction(_SHIFT_RIGHT, _PENDING, operand=16),
        Instruction(_AND, _TYPE, operand=0xFFFF),
        Instruction(_LOAD, _MAJOR, _CONTEXT, _CONTEXT_MAJOR),
        Instruction(_LOAD, _MINOR, _CONTEXT, _CONTEXT_MINOR),
        # access(2) may ask for nothing but whether the file is there.
        *_unless(Instruction(_JUMP_NOT_EQUAL, _PENDING, operand=0), _answer(True)),
    ]
    for rule in reversed(parsed):
        if rule.type == "a":
            return program + _answer(rule.allow)  # the kernel takes no code that nothing leads to
        program += _check(rule)
    return program + _answer(False)


def _check(rule: _Rule) -> list[Instruction]:
    if max(rule.major or 0, rule.minor or 0) >= _NUMBER_END:
        return []
    if rule.allow:
        body = [Instruction(_AND, _PENDING, operand=~rule.access)]
        body += _unless(Instruction(_JUMP_NOT_EQUAL, _PENDING, operand=0), _answer(True))
    else:
        body = [
            Instruction(_MOVE_REGISTER, _COPY, _PENDING),
            Instruction(_AND, _COPY, operand=rule.access),
            *_unless(Instruction(_JUMP_EQUAL, _COPY, operand=0), _answer(False)),
        ]
    wanted = ((_MINOR, rule.minor), (_MAJOR, rule.major), (_TYPE, _TYPES[rule.type]))
    for register, number in wanted:
        if number is not None:
            body = _unless(Instruction(_JUMP_NOT_EQUAL, register, operand=number), body)
    return body


def _unless(jump: Instruction, body: list[Instruction]) -> list[Instruction]:
    return [jump._replace(offset=len(body)), *body]


def _answer(allow: bool) -> list[Instruction]:
    return [Instruction(_MOVE, _RESULT, operand=int(allow)), Instruction(_EXIT)]


def _attach(directory: Path, program: Sequence[Instruction]) -> None:
    """Put the program in the place of all that are attached; there is no moment without any."""
    with step(f'open cgroup "{directory}"'):
        cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    opened = [cgroup]
    try:
        code = b"".join(instruction.encode() for instruction in program)
        opened.append(new := bpf_prog_load(k.BPF_PROG_TYPE_CGROUP_DEVICE, code, "device_rules"))
        present = bpf_prog_query(cgroup, k.BPF_CGROUP_DEVICE)
        old = [bpf_prog_get_fd_by_id(number) for number in present]
        opened += old
        if len(old) == 1 and _replace(cgroup, new, old[0]):
            return
        bpf_prog_attach(cgroup, new, k.BPF_CGROUP_DEVICE, k.BPF_F_ALLOW_MULTI)
        for program_fd in old:
            bpf_prog_detach(cgroup, program_fd, k.BPF_CGROUP_DEVICE)
    finally:
        for fd in opened:
            os.close(fd)


def _replace(cgroup: int, new: int, old: int) -> bool:
    try:
        flags = k.BPF_F_ALLOW_MULTI | k.BPF_F_REPLACE
        bpf_prog_attach(cgroup, new, k.BPF_CGROUP_DEVICE, flags, replace=old)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a kernel before 5.6, or attached by another without MULTI
            raise
        return False
    return True


def _are_harmless(rules: Iterable[Mapping[str, Any]]) -> bool:
    return all(
        rule.get("allow") and set(rule.get("access") or "rwm") == set("rwm") for rule in rules
    )


def _in_user_namespace() -> bool:
    """Whether this process's ids are not the machine's. Source: user_namespaces(7)."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", str(2**32 - 1)]
