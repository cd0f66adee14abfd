"""Limits as properties of a unit, as tables."""

from __future__ import annotations

from typing import Any

import pytest

from containerd_shimkit.errors import BundleError
from containerd_shimkit.linux.cgroups.properties import (
    INFINITY,
    bit_mask,
    device_properties,
    resource_properties,
)

NEW = 252
DENY_ALL = {"allow": False, "access": "rwm"}


def found(resources: dict[str, Any], cgroups: int = 2, systemd: int = NEW) -> dict[str, Any]:
    """The values by name, without their signatures."""
    return {name: value for name, (_, value) in resource_properties(resources, cgroups, systemd)}


@pytest.mark.parametrize(
    ("resources", "v1", "v2"),
    [
        pytest.param({}, {}, {}, id="nothing"),
        pytest.param(
            {"memory": {"limit": 1 << 27, "swap": 1 << 28, "reservation": 1 << 26}},
            {"MemoryLimit": 1 << 27},
            {"MemoryMax": 1 << 27, "MemorySwapMax": 1 << 27, "MemoryLow": 1 << 26},
            id="memory",
        ),
        pytest.param(
            {"memory": {"limit": -1}},
            {"MemoryLimit": INFINITY},
            {"MemoryMax": INFINITY},
            id="memory-unlimited",
        ),
        pytest.param(
            {"memory": {"limit": 1 << 27, "swap": -1}},
            {"MemoryLimit": 1 << 27},
            {"MemoryMax": 1 << 27, "MemorySwapMax": INFINITY},
            id="swap-unlimited",
        ),
        pytest.param({"cpu": {"shares": 1024}}, {"CPUShares": 1024}, {"CPUWeight": 100}, id="cpu"),
        pytest.param({"cpu": {"shares": 1}}, {"CPUShares": 2}, {"CPUWeight": 1}, id="cpu-least"),
        pytest.param(
            {"cpu": {"shares": 1 << 20}}, {"CPUShares": 262144}, {"CPUWeight": 10000}, id="cpu-most"
        ),
        pytest.param({"pids": {"limit": 64}}, {"TasksMax": 64}, {"TasksMax": 64}, id="pids"),
        pytest.param({"pids": {"limit": 0}}, {"TasksMax": 1}, {"TasksMax": 1}, id="pids-0"),
        pytest.param(
            {"pids": {"limit": -1}}, {"TasksMax": INFINITY}, {"TasksMax": INFINITY}, id="pids-none"
        ),
        pytest.param(
            {"blockIO": {"weight": 1000}}, {"BlockIOWeight": 1000}, {"IOWeight": 10000}, id="io"
        ),
        pytest.param(
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}, {}, {}, id="no-property"
        ),
    ],
)
def test_limits_of_each_version(
    resources: dict[str, Any], v1: dict[str, Any], v2: dict[str, Any]
) -> None:
    assert found(resources, 1) == v1
    assert found(resources, 2) == v2


@pytest.mark.parametrize("cgroups", [1, 2])
@pytest.mark.parametrize(
    ("cpu", "properties"),
    [
        pytest.param(
            {"quota": 50000, "period": 100000},
            {"CPUQuotaPeriodUSec": 100000, "CPUQuotaPerSecUSec": 500000},
            id="both",
        ),
        pytest.param({"quota": 50000}, {"CPUQuotaPerSecUSec": 500000}, id="default-period"),
        pytest.param({"quota": 12345}, {"CPUQuotaPerSecUSec": 130000}, id="rounded-up"),
        pytest.param(
            {"period": 50000},
            {"CPUQuotaPeriodUSec": 50000, "CPUQuotaPerSecUSec": INFINITY},
            id="period-alone",
        ),
        pytest.param({"quota": -1}, {"CPUQuotaPerSecUSec": INFINITY}, id="no-limit"),
        pytest.param(
            {"cpus": "0-1,9", "mems": "0"},
            {"AllowedCPUs": b"\x03\x02", "AllowedMemoryNodes": b"\x01"},
            id="cpuset",
        ),
    ],
)
def test_cpu_time_and_sets(cpu: dict[str, Any], properties: dict[str, Any], cgroups: int) -> None:
    assert found({"cpu": cpu}, cgroups) == properties


def test_idle_is_a_weight_of_0_on_version_2() -> None:
    assert found({"cpu": {"idle": 1, "shares": 1024}}) == {"CPUWeight": 0}


@pytest.mark.parametrize(
    ("name", "text", "properties"),
    [
        ("memory.high", "1000", {"MemoryHigh": 1000}),
        ("memory.high", "max\n", {"MemoryHigh": INFINITY}),
        ("memory.min", "4096", {"MemoryMin": 4096}),
        ("pids.max", "5", {"TasksMax": 5}),
        ("cpu.weight", "7", {"CPUWeight": 7}),
        ("cpu.max", "max 50000", {"CPUQuotaPeriodUSec": 50000, "CPUQuotaPerSecUSec": INFINITY}),
        ("cpu.max", "25000", {"CPUQuotaPerSecUSec": 250000}),
        ("cpuset.cpus", "1", {"AllowedCPUs": b"\x02"}),
        ("memory.oom.group", "1", {}),
    ],
)
def test_unified_file(name: str, text: str, properties: dict[str, Any]) -> None:
    assert found({"unified": {name: text}}) == properties


def test_unified_file_comes_after_the_limit_it_replaces() -> None:
    resources = {"memory": {"limit": 4096}, "unified": {"memory.max": "8192"}}
    names = [(name, value) for name, (_, value) in resource_properties(resources, 2, NEW)]
    assert names == [("MemoryMax", 4096), ("MemoryMax", 8192)]


@pytest.mark.parametrize("text", ["", "many", "-", "1 2 3", str(1 << 64)])
def test_unified_file_without_a_number_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"unified: cpu\.max"):
        found({"unified": {"cpu.max": text}})


@pytest.mark.parametrize("version", [239, 241, 243])
def test_older_systemd_is_not_told_what_it_does_not_know(version: int) -> None:
    cpu = {"quota": 50000, "period": 100000, "cpus": "0"}
    properties = found({"cpu": cpu, "devices": [DENY_ALL]}, 1, version)
    assert ("CPUQuotaPeriodUSec" in properties) == (version >= 242)
    assert ("DeviceAllow" in properties) == (version >= 240)
    assert "AllowedCPUs" not in properties


@pytest.mark.parametrize(
    "text", ["", "a", "1-", "-1", "3-1", "0,,1", "8192", "0-99999", "99999999999", "٣", "0-1-2"]
)
def test_list_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="not a list of numbers"):
        bit_mask("cpus", text)


# Devices

DEFAULTS = [
    *[("char-*", "m"), ("block-*", "m")],
    *[(f"/dev/char/1:{minor}", "rwm") for minor in (3, 5, 7, 8, 9)],
    *[(f"/dev/char/5:{minor}", "rwm") for minor in (0, 1, 2)],
    ("char-136", "rwm"),
]


def allow(kind: str, major: int, minor: int, access: str = "rwm") -> dict[str, Any]:
    return {"allow": True, "type": kind, "major": major, "minor": minor, "access": access}


def deny(kind: str, major: int, minor: int, access: str = "rwm") -> dict[str, Any]:
    return allow(kind, major, minor, access) | {"allow": False}


@pytest.mark.parametrize(
    ("rules", "entries"),
    [
        pytest.param([], [], id="none"),
        pytest.param([allow("c", 10, 200)], [("/dev/char/10:200", "rwm")], id="one"),
        pytest.param([allow("b", 8, -1, "r")], [("block-8", "r")], id="every-minor"),
        pytest.param([allow("c", -1, -1, "w")], [("char-*", "w")], id="every-one"),
        pytest.param([allow("c", -1, 3)], [], id="one-minor-of-every-major"),
        pytest.param(
            [allow("c", 10, 200), deny("c", 10, 200, "w")], [("/dev/char/10:200", "rm")], id="part"
        ),
        pytest.param(
            [allow("c", 10, 200), allow("b", 8, 0), deny("c", 10, -1)],
            [("/dev/block/8:0", "rwm")],
            id="denied-again",
        ),
        pytest.param([allow("b", 8, 0), DENY_ALL], [], id="all-denied-again"),
    ],
)
def test_devices_after_denying_all(
    rules: list[dict[str, Any]], entries: list[tuple[str, str]]
) -> None:
    policy, cleared, allowed = device_properties([DENY_ALL, *rules], NEW)
    assert policy == ("DevicePolicy", ("s", "strict"))
    assert cleared == ("DeviceAllow", ("a(ss)", []))
    assert allowed == ("DeviceAllow", ("a(ss)", [*entries, *DEFAULTS]))


def test_devices_are_all_allowed_again() -> None:
    properties = device_properties([DENY_ALL, {"allow": True, "access": "rwm"}], NEW)
    assert properties == [("DevicePolicy", ("s", "auto")), ("DeviceAllow", ("a(ss)", []))]


@pytest.mark.parametrize("rules", [None, [], [deny("c", 1, 3)], [allow("c", 1, 3)]])
def test_devices_are_left_alone_by_what_says_nothing_of_all(rules: Any) -> None:
    assert device_properties(rules, NEW) == []
