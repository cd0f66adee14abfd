"""The program for device rules: run by a small machine here, and by the kernel."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shimkit.errors import BundleError, SandboxError
from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux import syscalls
from containerd_shimkit.linux.cgroups import Cgroup, device_filter, join
from containerd_shimkit.linux.cgroups.device_filter import (
    Instruction,
    apply_device_rules,
    device_program,
)

InChild = Callable[[Callable[[], object]], Any]
Rule = Mapping[str, Any]

ACCESS = {"r": 2, "w": 4, "m": 1}
TYPES = {"b": 1, "c": 2}
DENY_ALL: Rule = {"allow": False, "access": "rwm"}
ALLOW_ALL: Rule = {"allow": True, "access": "rwm"}
DEFAULTS: tuple[Rule, ...] = (
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2))
    ),
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},
)


# A machine for the few instructions there are


def run(program: Sequence[Instruction], access: int, kind: int, major: int, minor: int) -> int:
    """Return the program's result. Each register, each step as in the kernel's instruction set."""
    context = {0: access << 16 | kind, 4: major, 8: minor}
    registers: dict[int, int] = {1: -1}
    position = 0
    for _ in range(len(program) + 1):
        code, target, source, offset, operand = program[position]
        position += 1
        if code == k.BPF_JMP | k.BPF_EXIT:
            return registers[0]
        if code == k.BPF_LDX | k.BPF_MEM | k.BPF_W:
            assert registers[source] == -1, "it reads something else than the context"
            registers[target] = context[offset]
            continue
        assert offset >= 0
        right = registers[source] if code & k.BPF_X else operand
        match code & 0xF7:
            case 0xB4:
                registers[target] = right & 0xFFFFFFFF
            case 0x54:
                registers[target] &= right & 0xFFFFFFFF
            case 0x74:
                registers[target] = (registers[target] & 0xFFFFFFFF) >> right
            case 0x15:
                position += offset if registers[target] == right else 0
            case 0x55:
                position += offset if registers[target] != right else 0
            case _:
                pytest.fail(f"instruction {code:#x}")
    pytest.fail("it does not end")


def is_allowed(rules: Sequence[Rule], access: str, kind: str, major: int, minor: int) -> bool:
    """The model: for each letter, the last rule that is about it."""
    return all(
        next(
            (
                bool(rule["allow"])
                for rule in reversed([*rules, *DEFAULTS])
                if is_about(rule, letter, kind, major, minor)
            ),
            False,
        )
        for letter in access
    )


def is_about(rule: Rule, letter: str, kind: str, major: int, minor: int) -> bool:
    if rule.get("type", "a") == "a":
        return True
    numbers = ((rule.get("major"), major), (rule.get("minor"), minor))
    same = all(wanted in (None, -1, number) for wanted, number in numbers)
    return rule["type"] == kind and same and letter in (rule.get("access") or "rwm")


NUMBERS = st.sampled_from([0, 1, 3, 5, 136, 254, 4095])
LETTERS = st.lists(st.sampled_from("rwm"), max_size=3, unique=True).map("".join)
WILD = st.one_of(st.none(), st.just(-1), NUMBERS, st.just(2**31), st.just(2**32 - 1))
RULES = st.lists(
    st.fixed_dictionaries(
        {"allow": st.booleans()},
        optional={
            "type": st.sampled_from("abc"),
            "major": WILD,
            "minor": WILD,
            "access": LETTERS,
        },
    ),
    max_size=12,
)


@given(RULES, LETTERS, st.sampled_from("bc"), NUMBERS, NUMBERS)
def test_program_decides_as_the_rules_say(
    rules: list[Rule], access: str, kind: str, major: int, minor: int
) -> None:
    mask = sum(ACCESS[letter] for letter in access)
    result = run(device_program(rules), mask, TYPES[kind], major, minor)
    assert result == is_allowed(rules, access, kind, major, minor)


@pytest.mark.parametrize(
    ("rules", "device", "access", "allowed"),
    [
        ([DENY_ALL], "c 1:3", "rwm", True),
        ([DENY_ALL], "c 1:1", "r", False),
        ([DENY_ALL], "c 1:1", "m", True),
        ([DENY_ALL], "b 8:0", "rm", False),
        ([DENY_ALL, ALLOW_ALL], "b 8:0", "rwm", True),
        ([ALLOW_ALL, DENY_ALL], "b 8:0", "r", False),
        ([], "b 8:0", "r", False),
        ([{"allow": True, "type": "b", "major": 8, "access": "r"}], "b 8:1", "r", True),
        ([{"allow": True, "type": "b", "major": 8, "access": "r"}], "b 8:1", "rw", False),
        ([ALLOW_ALL, {"allow": False, "type": "b", "access": "w"}], "b 8:1", "r", True),
        ([ALLOW_ALL, {"allow": False, "type": "b", "access": "w"}], "b 8:1", "rw", False),
    ],
)
def test_program_for_a_list(rules: list[Rule], device: str, access: str, allowed: bool) -> None:
    kind, _, numbers = device.partition(" ")
    major, minor = map(int, numbers.split(":"))
    mask = sum(ACCESS[letter] for letter in access)
    assert run(device_program(rules), mask, TYPES[kind], major, minor) == allowed


def test_program_refuses_unknown_rules() -> None:
    with pytest.raises(BundleError, match='unknown type "x"'):
        device_program([{"allow": True, "type": "x"}])


# What the kernel makes of it


@pytest.fixture
def directory(unified: Cgroup) -> Path:
    unified.create()
    return unified.main


def attempts(cgroup: Cgroup, where: Path) -> dict[str, int]:
    """Join the cgroup; return the errors of what is attempted, 0 for none."""
    join(cgroup.procs_fds())
    return {
        "null": error_of(lambda: os.close(os.open("/dev/null", os.O_RDWR))),
        "memory": error_of(lambda: os.close(os.open("/dev/mem", os.O_RDONLY))),
        "kmsg r": error_of(lambda: os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))),
        "kmsg w": error_of(lambda: os.close(os.open("/dev/kmsg", os.O_WRONLY))),
        "mknod": error_of(lambda: os.mknod(where / "node", stat.S_IFCHR, os.makedev(1, 11))),
    }


def error_of(attempt: Any) -> int:
    try:
        attempt()
    except OSError as exc:
        return exc.errno or -1
    return 0


KMSG = {"type": "c", "major": 1, "minor": 11}


@pytest.mark.root
@pytest.mark.parametrize(
    ("rules", "refused"),
    [
        ([DENY_ALL], {"kmsg r", "kmsg w"}),
        ([DENY_ALL, {"allow": True, **KMSG, "access": "r"}], {"kmsg w"}),
        ([DENY_ALL, {"allow": True, **KMSG, "access": "rw"}], set()),
        ([ALLOW_ALL, {"allow": False, **KMSG, "access": "w"}], {"kmsg w"}),
        ([ALLOW_ALL], set()),
    ],
)
def test_kernel_enforces_the_rules(
    rules: list[Rule],
    refused: set[str],
    unified: Cgroup,
    directory: Path,
    tmp_path: Path,
    in_child: InChild,
) -> None:
    without = in_child(lambda: attempts(unified, tmp_path / "nowhere"))
    assert apply_device_rules(directory, rules) == []
    found = in_child(lambda: attempts(unified, tmp_path))
    assert (without["kmsg r"], without["kmsg w"], found["mknod"], found["null"]) == (0, 0, 0, 0)
    assert {what for what in ("kmsg r", "kmsg w") if found[what] == errno.EPERM} == refused


def attached(directory: Path) -> list[int]:
    cgroup = os.open(directory, os.O_RDONLY)
    try:
        return syscalls.bpf_prog_query(cgroup, k.BPF_CGROUP_DEVICE)
    finally:
        os.close(cgroup)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.root
@pytest.mark.parametrize("replacing", [True, False], ids=["replaced", "kernel before 5.6"])
def test_update_leaves_one_program(
    replacing: bool,
    unified: Cgroup,
    directory: Path,
    tmp_path: Path,
    in_child: InChild,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not replacing:
        monkeypatch.setattr(device_filter, "_replace", lambda *_: False)
    before = descriptors()
    apply_device_rules(directory, [DENY_ALL])
    [first] = attached(directory)
    apply_device_rules(directory, [ALLOW_ALL])
    [second] = attached(directory)
    assert first != second
    assert in_child(lambda: attempts(unified, tmp_path))["kmsg r"] == 0
    apply_device_rules(directory, [DENY_ALL])
    assert in_child(lambda: attempts(unified, tmp_path))["kmsg r"] == errno.EPERM
    assert descriptors() == before


@pytest.mark.root
def test_programs_of_others_are_replaced(directory: Path) -> None:
    """systemd attaches one to each unit; with ours beside it both would have to agree."""
    other = os.open(directory, os.O_RDONLY)
    code = b"".join(i.encode() for i in device_program([DENY_ALL]))
    for _ in range(2):
        program = syscalls.bpf_prog_load(k.BPF_PROG_TYPE_CGROUP_DEVICE, code, "other")
        flags = k.BPF_F_ALLOW_MULTI
        syscalls.bpf_prog_attach(other, program, k.BPF_CGROUP_DEVICE, flags)
        os.close(program)
    os.close(other)
    before = set(attached(directory))
    assert len(before) == 2
    apply_device_rules(directory, [ALLOW_ALL])
    [present] = attached(directory)
    assert present not in before


@pytest.mark.root
def test_cgroup_applies_device_rules(
    unified: Cgroup, directory: Path, tmp_path: Path, in_child: InChild
) -> None:
    assert unified.apply({"devices": [DENY_ALL]}) == []
    assert in_child(lambda: attempts(unified, tmp_path))["kmsg r"] == errno.EPERM
    unified.apply({"pids": None})  # an Update that says nothing of devices
    assert in_child(lambda: attempts(unified, tmp_path / "nowhere"))["kmsg r"] == errno.EPERM


@pytest.mark.root
def test_program_of_hundreds_of_rules_is_loaded(directory: Path) -> None:
    rules = [
        {"allow": bool(n % 2), "type": "b", "major": n % 4096, "minor": n, "access": "rw"}
        for n in range(500)
    ]
    assert apply_device_rules(directory, rules) == []


# A kernel that refuses


@pytest.fixture(params=[errno.EPERM, errno.ENOSYS, errno.EINVAL])
def refusing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(device_filter, "bpf_prog_load", refuse)


@pytest.mark.usefixtures("refusing")
def test_refused_rules_that_deny_something_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match=f'set the device rules of cgroup "{tmp_path}"'):
        apply_device_rules(tmp_path, [DENY_ALL])
    with pytest.raises(SandboxError):
        apply_device_rules(tmp_path, [{"allow": True, "access": "r"}])


@pytest.mark.usefixtures("refusing")
def test_refused_rules_that_allow_everything_are_a_warning(tmp_path: Path) -> None:
    [warning] = apply_device_rules(tmp_path, [ALLOW_ALL])
    assert warning.startswith("device rules are not enforced: ")


@pytest.mark.usefixtures("refusing")
def test_refused_rules_in_a_user_namespace_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_filter, "_in_user_namespace", lambda: True)
    assert len(apply_device_rules(tmp_path, [DENY_ALL])) == 1
