"""cgroups version 2: one directory, and the limits of the OCI spec converted to its files.

Source of files and units: the kernel's Documentation/admin-guide/cgroup-v2.rst. Device rules are
no file here but a program: ``device_filter``.
"""

from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Self

from containerd_shimkit.errors import BundleError, SandboxError
from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.cgroups.base import (
    ROOT,
    Cgroup,
    CgroupStats,
    CpuStats,
    IoStats,
    MemoryCounter,
    Resources,
    not_applied,
    own_cgroups,
    read_number,
    read_table,
    read_text,
    set_value,
    wait_for,
    write_file,
)
from containerd_shimkit.linux.cgroups.device_filter import apply_device_rules
from containerd_shimkit.linux.cgroups.v1 import KNOWN as V1_KNOWN
from containerd_shimkit.linux.cgroups.v1 import pids_max
from containerd_shimkit.linux.syscalls import inotify_open, step

UNLIMITED = 2**64 - 1
# What version 1 has and this one has not.
_V1_ONLY = {
    "memory": frozenset(("kernelTCP", "swappiness", "disableOOMKiller")),
    "cpu": frozenset(("realtimePeriod", "realtimeRuntime")),
}
KNOWN = {
    section: names - _V1_ONLY.get(section, frozenset())
    for section, names in V1_KNOWN.items()
    if section != "network"
}
IO_MAX_KEYS = {
    "throttleReadBpsDevice": "rbps",
    "throttleWriteBpsDevice": "wbps",
    "throttleReadIOPSDevice": "riops",
    "throttleWriteIOPSDevice": "wiops",
}


class CgroupV2(Cgroup):
    """One container's cgroup on version 2."""

    version = 2

    def __init__(self, path: str, directory: Path, top: Path) -> None:
        super().__init__(path, {"": directory})
        self.directory = directory
        self._top = top

    @classmethod
    def open(cls, path: str, root: str = ROOT, proc_cgroup: str = "/proc/self/cgroup") -> Self:
        """A relative ``path`` starts beside this process's own cgroup.

        Not inside: that one has processes and so can have no child with controllers.
        """
        top = base = Path(root)
        if not path.startswith("/"):
            own = own_cgroups(proc_cgroup).get("", "/")
            base = top / own.strip("/").rpartition("/")[0]
        return cls(path, base / path.strip("/"), top)

    @property
    def main(self) -> Path:
        return self.directory

    def create(self) -> None:
        """Make the directory, with every controller the parents have handed down to it."""
        with step(f'create cgroup "{self.directory}"'):
            current = self._top
            available = read_text(current / "cgroup.controllers").split()
            for part in self.directory.relative_to(self._top).parts:
                _enable(current, available)
                current /= part
                current.mkdir(exist_ok=True)
                available = read_text(current / "cgroup.controllers").split()
        self._check_empty()

    # Limits

    def apply(self, resources: Resources) -> list[str]:
        warnings = not_applied(resources, KNOWN, "not on cgroup version 2")
        if (rules := resources.get("devices")) is not None:
            warnings += apply_device_rules(self.directory, rules)
        self._apply_memory(resources.get("memory") or {}, warnings)
        self._apply_cpu(resources.get("cpu") or {})
        if (limit := (resources.get("pids") or {}).get("limit")) is not None:
            self._set("pids.max", pids_max(limit))
        self._apply_io(resources.get("blockIO") or {}, warnings)
        for page in resources.get("hugepageLimits") or ():
            self._set_optional(f"hugetlb.{page['pageSize']}.max", page["limit"], warnings)
        for name, value in (resources.get("unified") or {}).items():
            if "/" in name or not name or name.startswith("."):
                raise BundleError(f'linux.resources.unified: "{name}" is not a file of a cgroup')
            for line in value.splitlines():
                self._set(name, line)
        return warnings

    def _apply_memory(self, memory: Resources, warnings: list[str]) -> None:
        limit, swap = memory.get("limit"), memory.get("swap")
        if (value := swap_max(limit, swap)) is not None:
            self._set_optional("memory.swap.max", value, warnings)
        if limit:
            self._set("memory.max", "max" if limit == -1 else limit)
        if reservation := memory.get("reservation"):
            self._set("memory.low", "max" if reservation == -1 else reservation)

    def _apply_cpu(self, cpu: Resources) -> None:
        if weight := cpu_weight(cpu.get("shares") or 0):
            self._set("cpu.weight", weight)
        if cpu.get("quota") or cpu.get("period"):
            self._set("cpu.max", cpu_max(cpu.get("quota") or 0, cpu.get("period") or 0))
        for key, name in (
            ("burst", "cpu.max.burst"),
            ("cpus", "cpuset.cpus"),
            ("mems", "cpuset.mems"),
        ):
            if cpu.get(key):
                self._set(name, cpu[key])
        if cpu.get("idle") is not None:
            self._set("cpu.idle", cpu["idle"])

    def _apply_io(self, block_io: Resources, warnings: list[str]) -> None:
        if weight := block_io.get("weight"):
            if (self.directory / "io.bfq.weight").exists():
                self._set("io.bfq.weight", weight)
            else:
                self._set_optional("io.weight", f"default {io_weight(weight)}", warnings)
        for key, name in IO_MAX_KEYS.items():
            for entry in block_io.get(key) or ():
                self._set("io.max", f"{entry['major']}:{entry['minor']} {name}={entry['rate']}")

    def _set(self, name: str, value: object) -> None:
        set_value(self.directory / name, value)

    def _set_optional(self, name: str, value: object, warnings: list[str]) -> None:
        if (self.directory / name).exists():
            self._set(name, value)
        else:
            warnings.append(f"{name} is not set to {value}: the kernel does not have it")

    # Processes

    def freeze(self, timeout: float = 2.0) -> None:
        self._set_frozen(1, timeout)

    def thaw(self, timeout: float = 2.0) -> None:
        self._set_frozen(0, timeout)

    def _set_frozen(self, frozen: int, timeout: float) -> None:
        name = f'{"freeze" if frozen else "thaw"} cgroup "{self.path}"'
        with step(name):
            write_file(self.directory / "cgroup.freeze", str(frozen))
        events = self.directory / "cgroup.events"
        if not wait_for(lambda: read_table(events).get("frozen", 0) == frozen, timeout):
            if frozen:
                write_file(self.directory / "cgroup.freeze", "0")
            raise SandboxError(name, f"not done in {timeout} s")

    def kill_all(self) -> None:
        try:
            write_file(self.directory / "cgroup.kill", "1")  # Linux 5.14
        except FileNotFoundError:
            super().kill_all()

    def oom_kills(self) -> int:
        return read_table(self.directory / "memory.events").get("oom_kill", 0)

    def open_oom_events(self) -> int:
        file = self.directory / "memory.events"
        with step(f'watch "{file}"'):
            return inotify_open(str(file), k.IN_MODIFY)

    # Statistics

    def stats(self) -> CgroupStats:
        directory, cpu = self.directory, read_table(self.directory / "cpu.stat")
        return CgroupStats(
            version=2,
            cpu=CpuStats(
                usage_ns=cpu.get("usage_usec", 0) * 1000,
                user_ns=cpu.get("user_usec", 0) * 1000,
                system_ns=cpu.get("system_usec", 0) * 1000,
                periods=cpu.get("nr_periods", 0),
                throttled_periods=cpu.get("nr_throttled", 0),
                throttled_ns=cpu.get("throttled_usec", 0) * 1000,
            ),
            memory=_counter(directory, "memory"),
            swap=_counter(directory, "memory.swap"),
            kernel=MemoryCounter(),
            kernel_tcp=MemoryCounter(),
            memory_stat=read_table(directory / "memory.stat"),
            memory_events=read_table(directory / "memory.events"),
            pids_current=read_number(directory / "pids.current"),
            pids_limit=read_number(directory / "pids.max"),
            io=_io_stats(read_text(directory / "io.stat")),
        )


def cpu_weight(shares: int) -> int:
    """Return the cgroup v2 ``cpu.weight`` for OCI ``cpu.shares``.

    shares: 2..262144, 0 = unset (v1 default 1024).  Result: 1..10000, 0 = leave the file alone.
    Out-of-range values are clamped; 1024 maps to 100, both defaults.
    Raises BundleError if ``shares`` is negative.
    Source: opencontainers/cgroups#20, runc v1.3.2 (quadratic fit in log2(shares)).
    """
    if shares < 0:
        raise BundleError(f"linux.resources.cpu.shares: {shares} is negative")
    if shares == 0:
        return 0
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    power = math.log2(shares)
    return math.ceil(10 ** ((power * power + 125 * power) / 612.0 - 7.0 / 34.0))


def cpu_max(quota: int, period: int) -> str:
    """Return ``cpu.max`` for quota and period in microseconds; a quota of 0 or less is none."""
    text = str(quota) if quota > 0 else "max"
    return f"{text} {period}" if period else text


def swap_max(limit: int | None, swap: int | None) -> str | None:
    """Return ``memory.swap.max``: the spec's swap counts memory and swap together, the file not.

    None leaves the file alone. Source: opencontainers/cgroups, ConvertMemorySwapToCgroupV2Value.
    """
    if not swap:
        return None
    if swap == -1 or limit == -1:
        return "max"
    if not limit:
        raise BundleError(f"linux.resources.memory: swap {swap} bytes without a memory limit")
    if swap < limit:
        raise BundleError(
            f"linux.resources.memory: swap {swap} bytes counts memory too: below limit {limit}"
        )
    return str(swap - limit)


def io_weight(weight: int) -> int:
    """Return ``io.weight``, 1..10000, for blkio weight, 10..1000, linearly.

    Source: Documentation/admin-guide/cgroup-v2.rst for the range, crun for the formula.
    """
    return 1 + (weight - 10) * 9999 // 990


def _enable(directory: Path, controllers: list[str]) -> None:
    """Hand the controllers down to the children, all at once or else each that goes."""
    if not controllers:
        return
    path = directory / "cgroup.subtree_control"
    wanted = [name for name in controllers if name not in read_text(path).split()]
    if not wanted:
        return
    try:
        write_file(path, " ".join(f"+{name}" for name in wanted))
    except OSError as exc:
        if exc.errno not in (errno.EBUSY, errno.EOPNOTSUPP, errno.ENOENT, errno.EINVAL):
            raise
        for name in wanted:
            try:
                write_file(path, f"+{name}")
            except OSError:
                continue  # a limit that needs it then says which file is missing


def _counter(directory: Path, prefix: str) -> MemoryCounter:
    return MemoryCounter(
        usage=read_number(directory / f"{prefix}.current"),
        limit=read_number(directory / f"{prefix}.max", unlimited=UNLIMITED),
        max_usage=read_number(directory / f"{prefix}.peak"),
    )


def _io_stats(text: str) -> tuple[IoStats, ...]:
    found = []
    for line in text.splitlines():
        device, *fields = line.split()  # "254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 …"
        major, _, minor = device.partition(":")
        values = {key: int(value) for key, _, value in (item.partition("=") for item in fields)}
        counters = (values.get(key, 0) for key in ("rbytes", "wbytes", "rios", "wios"))
        found.append(IoStats(int(major), int(minor), *counters))
    return tuple(found)
