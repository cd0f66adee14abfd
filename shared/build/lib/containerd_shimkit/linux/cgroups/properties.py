"""Limits of the OCI spec as properties of a systemd unit.

What systemd knows it must be told: at each change of the unit and at each ``daemon-reload`` it
writes all of its properties, defaults included, into the cgroup again. Of what has no property it
leaves the files alone. Source: systemd.resource-control(5), runc's libcontainer/cgroups/systemd.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from containerd_shimkit.errors import BundleError
from containerd_shimkit.linux.cgroups.base import Resources
from containerd_shimkit.linux.cgroups.v1 import DEFAULT_RULES, device_rule, pids_max
from containerd_shimkit.linux.cgroups.v2 import cpu_weight, io_weight, swap_max
from containerd_shimkit.linux.systemd import Property

INFINITY: Final = 2**64 - 1
_MAX_CPUS: Final = 8192  # NR_CPUS of Linux on x86-64 at most; of memory nodes there are fewer
_DEFAULT_PERIOD_US: Final = 100_000
_ROUND_US: Final = 10_000  # systemd keeps whole percents of a CPU
# Versions of systemd that were first to know something. Source: its NEWS.
_DEVICE_NUMBERS: Final = 240
_QUOTA_PERIOD: Final = 242
_CPUSET: Final = 244
_IDLE: Final = 252

# Files of linux.resources.unified that systemd writes, too, with its default if it is not told.
_UNIFIED_LIMITS: Final = {
    "memory.min": "MemoryMin",
    "memory.low": "MemoryLow",
    "memory.high": "MemoryHigh",
    "memory.max": "MemoryMax",
    "memory.swap.max": "MemorySwapMax",
    "memory.zswap.max": "MemoryZSwapMax",
    "pids.max": "TasksMax",
}
_ZSWAP: Final = 253


def resource_properties(resources: Resources, cgroups: int, systemd: int) -> list[Property]:
    """Return the properties for those limits that ``resources`` names.

    cgroups: version 1 or 2. systemd: its version; what it does not know yet is left out.
    Raises BundleError for values that are none.
    """
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    properties = [
        *device_properties(resources.get("devices"), systemd),
        *(_memory_v2(memory) if cgroups == 2 else _memory_v1(memory)),
        *_cpu_shares(cpu, cgroups, systemd),
        *_cpu_quota(cpu.get("quota") or 0, cpu.get("period") or 0, systemd),
        *_cpuset(cpu.get("cpus") or "", cpu.get("mems") or "", systemd),
    ]
    if (limit := (resources.get("pids") or {}).get("limit")) is not None:
        properties.append(_number("TasksMax", pids_max(limit)))
    if weight := (resources.get("blockIO") or {}).get("weight"):
        if cgroups == 2:
            properties.append(_number("IOWeight", io_weight(weight)))
        else:
            properties.append(_number("BlockIOWeight", weight))
    if cgroups == 2:
        properties += _unified(resources.get("unified") or {}, systemd)
    return properties


def _memory_v1(memory: Resources) -> list[Property]:
    return [_number("MemoryLimit", memory["limit"])] if memory.get("limit") else []


def _memory_v2(memory: Resources) -> list[Property]:
    limit, properties = memory.get("limit"), []
    if limit:
        properties.append(_number("MemoryMax", limit))
    if (swap := swap_max(limit, memory.get("swap"))) is not None:
        properties.append(_number("MemorySwapMax", swap))
    if reservation := memory.get("reservation"):
        properties.append(_number("MemoryLow", reservation))
    return properties


def _cpu_shares(cpu: Resources, cgroups: int, systemd: int) -> list[Property]:
    shares = cpu.get("shares") or 0
    if cgroups == 1:
        return [_number("CPUShares", min(max(shares, 2), 262144))] if shares else []
    if cpu.get("idle") == 1 and systemd >= _IDLE:
        return [_number("CPUWeight", 0)]
    weight = cpu_weight(shares)
    return [_number("CPUWeight", weight)] if weight else []


def _cpu_quota(quota: int, period: int, systemd: int) -> list[Property]:
    """quota: microseconds of CPU time in each ``period``; 0 is unset, less is no limit."""
    properties = []
    if period and systemd >= _QUOTA_PERIOD:
        properties.append(_number("CPUQuotaPeriodUSec", period))
    if quota or period:
        each_second = INFINITY
        if quota > 0:
            # Rounded up: the exact value goes to the file, and must not exceed systemd's.
            each_second = quota * 1_000_000 // (period or _DEFAULT_PERIOD_US)
            each_second = -(-each_second // _ROUND_US) * _ROUND_US
        properties.append(_number("CPUQuotaPerSecUSec", each_second))
    return properties


def _cpuset(cpus: str, mems: str, systemd: int) -> list[Property]:
    if systemd < _CPUSET:
        return []
    lists = (("AllowedCPUs", "cpus", cpus), ("AllowedMemoryNodes", "mems", mems))
    return [(name, ("ay", bit_mask(key, text))) for name, key, text in lists if text]


def bit_mask(key: str, text: str) -> bytes:
    """Return a list such as ``0-3,5`` as bits, number 0 in the first byte's lowest one.

    key: the field of linux.resources.cpu it is from. Source: cpuset(7), "List format".
    """
    mask = 0
    for part in text.strip().split(","):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part.strip(), re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < _MAX_CPUS:
            raise BundleError(
                f'linux.resources.cpu.{key}: "{text}" is not a list of numbers below {_MAX_CPUS}'
            )
        mask |= (1 << (last + 1)) - (1 << first)
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def _unified(unified: Resources, systemd: int) -> list[Property]:
    convert: dict[str, Callable[[str], list[Property]]] = {
        "cpu.weight": lambda text: [_number("CPUWeight", text)],
        "cpu.max": lambda text: _cpu_max(text, systemd),
        "cpuset.cpus": lambda text: _cpuset(text, "", systemd),
        "cpuset.mems": lambda text: _cpuset("", text, systemd),
    }
    properties: list[Property] = []
    for name, text in unified.items():
        text = text.strip()
        try:
            if name in convert:
                properties += convert[name](text)
            elif name in _UNIFIED_LIMITS and (name != "memory.zswap.max" or systemd >= _ZSWAP):
                properties.append(_number(_UNIFIED_LIMITS[name], text))
        except ValueError:
            raise BundleError(f'linux.resources.unified: {name}: "{text}" is no value') from None
    return properties


def _cpu_max(text: str, systemd: int) -> list[Property]:
    quota, _, period = text.partition(" ")
    return _cpu_quota(-1 if quota == "max" else int(quota), int(period or 0), systemd)


def _number(name: str, value: int | str) -> Property:
    """Return a property of an unsigned number; "max" and less than 0 are none."""
    number = INFINITY if value == "max" else int(value)
    if number > INFINITY:
        raise ValueError(value)
    return name, ("t", number if number >= 0 else INFINITY)


# Devices


def device_properties(rules: Sequence[Resources] | None, systemd: int) -> list[Property]:
    """Return the list of what is allowed, for rules that deny or allow everything first.

    Others change what is there, which is not known here: nothing then. systemd has no rule for one
    minor number of every major one: it stays denied.
    """
    if systemd < _DEVICE_NUMBERS or all(device_rule(rule) != "a" for rule in rules or ()):
        return []
    assert rules is not None
    allowed = _allowed(rules)
    if allowed is None:
        return [("DevicePolicy", ("s", "auto")), ("DeviceAllow", ("a(ss)", []))]
    entries = [entry for line in allowed if (entry := _device(line)) is not None]
    # An empty list first clears what was there: others are added to it.
    return [
        ("DevicePolicy", ("s", "strict")),
        ("DeviceAllow", ("a(ss)", [])),
        ("DeviceAllow", ("a(ss)", entries)),
    ]


def _allowed(rules: Sequence[Resources]) -> list[str] | None:
    """Return the lines that are in force in the end, None if everything is allowed."""
    allowed: list[str] | None = None  # as it is in a new cgroup
    for rule in rules:
        line = device_rule(rule)
        if line == "a":
            allowed = None if rule.get("allow") else []
        elif allowed is None:
            continue
        elif rule.get("allow"):
            allowed.append(line)
        else:
            allowed = [left for other in allowed if (left := _without(other, line))]
    return None if allowed is None else [*allowed, *DEFAULT_RULES]


def _without(line: str, denied: str) -> str:
    """Return what ``denied`` leaves of an allowed line, "" if nothing."""
    kind, numbers, access = line.split()
    denied_kind, denied_numbers, denied_access = denied.split()
    pairs = zip(denied_numbers.split(":"), numbers.split(":"), strict=True)
    if denied_kind != kind or not all(other in ("*", number) for other, number in pairs):
        return line
    left = "".join(letter for letter in access if letter not in denied_access)
    return f"{kind} {numbers} {left}" if left else ""


def _device(line: str) -> tuple[str, str] | None:
    """Return ``/dev/char/1:3`` or ``char-136`` and the access, for ``c 1:3 rwm``."""
    kind, numbers, access = line.split()
    name = {"b": "block", "c": "char"}[kind]
    major, minor = numbers.split(":")
    if major == "*":
        return (f"{name}-*", access) if minor == "*" else None
    return (f"{name}-{major}" if minor == "*" else f"/dev/{name}/{numbers}"), access
