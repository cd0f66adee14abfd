"""cgroups version 1: a directory in each hierarchy, and each controller with its own files.

Source of files and units: the kernel's Documentation/admin-guide/cgroup-v1.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from containerd_shimkit.errors import BundleError, SandboxError
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
    read_numbers,
    read_table,
    read_text,
    set_value,
    wait_for,
    write_file,
)
from containerd_shimkit.linux.syscalls import step

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")  # the unit of cpuacct.stat
# What a container may use whatever its list says: to make any device file, and to use the harmless
# ones and its own terminals. Source: OCI spec "Default Devices" and runc's additions.
DEFAULT_RULES = (
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
)
# The limits that ``apply`` knows, by section; a section without names is applied as a whole.
# Hierarchies are always what useHierarchy asks for.
KNOWN = {
    section: frozenset(names.split())
    for section, names in {
        "devices": "",
        "hugepageLimits": "",
        "unified": "",
        "memory": "limit swap reservation kernelTCP swappiness disableOOMKiller useHierarchy",
        "cpu": "shares quota period burst idle cpus mems realtimePeriod realtimeRuntime",
        "pids": "limit",
        "blockIO": "weight throttleReadBpsDevice throttleWriteBpsDevice throttleReadIOPSDevice "
        "throttleWriteIOPSDevice",
        "network": "classID priorities",
    }.items()
}
# How often freezing is tried before the processes get a pause: some 0.1 s.
FREEZE_ATTEMPTS = 10
# blockIO fields of the spec and their files
THROTTLE_FILES = {
    "throttleReadBpsDevice": "blkio.throttle.read_bps_device",
    "throttleWriteBpsDevice": "blkio.throttle.write_bps_device",
    "throttleReadIOPSDevice": "blkio.throttle.read_iops_device",
    "throttleWriteIOPSDevice": "blkio.throttle.write_iops_device",
}


class CgroupV1(Cgroup):
    """One container's cgroup on version 1, or on a hybrid host, where version 2 has no limits."""

    version = 1
    # Of a process with one thread the same as cgroup.procs, without the lock on all forks of the
    # machine: to get that one takes some 10 ms. Source: cgroup_procs_write_start(), Linux 6.0.
    join_file = "tasks"

    def __init__(self, path: str, directories: Mapping[str, Path], tops: Mapping[str, Path]):
        super().__init__(path, directories)
        self._tops = dict(tops)
        self._by_controller = {
            controller: directory
            for name, directory in self.directories.items()
            for controller in name.split(",")
        }

    @classmethod
    def open(cls, path: str, root: str = ROOT, proc_cgroup: str = "/proc/self/cgroup") -> Self:
        """Find the hierarchies; a relative ``path`` starts at this process's own cgroup."""
        tops, directories = {}, {}
        for controllers, own in own_cgroups(proc_cgroup).items():
            if not controllers:
                continue  # the version 2 half of a hybrid host
            name = controllers.removeprefix("name=")
            # Mounted together, one directory has the name of all of them, or each is a link to it.
            top = Path(root) / name
            if not top.is_dir():
                top = Path(root) / name.partition(",")[0]
                if not top.is_dir():
                    continue  # not mounted, so nothing to limit with
            tops[name] = top
            base = top if path.startswith("/") else top / own.strip("/")
            directories[name] = base / path.strip("/")
        if not directories:
            raise SandboxError("find the cgroup hierarchies", f'none is mounted below "{root}"')
        return cls(path, directories, tops)

    @property
    def main(self) -> Path:
        for name in ("pids", "systemd", "devices"):
            if name in self._by_controller:
                return self._by_controller[name]
        return next(iter(self.directories.values()))

    def create(self) -> None:
        for name, directory in self.directories.items():
            with step(f'create cgroup "{directory}"'):
                if "cpuset" in name.split(","):
                    self._create_cpuset(directory, self._tops[name])
                else:
                    directory.mkdir(parents=True, exist_ok=True)
        self._check_empty()

    @staticmethod
    def _create_cpuset(directory: Path, top: Path) -> None:
        """Make each level with its parent's cpus and memory nodes: none can join an empty one."""
        current = top
        for part in directory.relative_to(top).parts:
            parent, current = current, current / part
            try:
                current.mkdir()
            except FileExistsError:
                if read_text(current / "cpuset.cpus").strip():
                    continue
            for name in ("cpuset.cpus", "cpuset.mems"):
                value = read_text(parent / name).strip()
                if value:
                    write_file(current / name, value)

    # Limits

    def apply(self, resources: Resources) -> list[str]:
        if resources.get("unified"):
            raise BundleError("linux.resources.unified: this host has cgroup version 1")
        warnings = not_applied(resources, KNOWN, "not by this shim")
        self._apply_devices(resources)
        self._apply_memory(resources.get("memory") or {})
        self._apply_cpu(resources.get("cpu") or {})
        if (limit := (resources.get("pids") or {}).get("limit")) is not None:
            set_value(self._file("pids", "pids.max"), pids_max(limit))
        self._apply_blkio(resources.get("blockIO") or {}, warnings)
        for page in resources.get("hugepageLimits") or ():
            name = f"hugetlb.{page['pageSize']}.limit_in_bytes"
            self._set_optional("hugetlb", name, page["limit"], warnings)
        network = resources.get("network") or {}
        if network.get("classID") is not None:
            self._set_optional("net_cls", "net_cls.classid", network["classID"], warnings)
        for entry in network.get("priorities") or ():
            value = f"{entry['name']} {entry['priority']}"
            self._set_optional("net_prio", "net_prio.ifpriomap", value, warnings)
        return warnings

    def _apply_devices(self, resources: Resources) -> None:
        rules = resources.get("devices")
        if rules is None:
            return
        for rule in rules:
            name = "devices.allow" if rule.get("allow") else "devices.deny"
            set_value(self._file("devices", name), device_rule(rule))
        for line in DEFAULT_RULES:
            set_value(self._file("devices", "devices.allow"), line)

    def _apply_memory(self, memory: Resources) -> None:
        limit, swap = memory.get("limit"), memory.get("swap")
        if limit is not None and limit > 0 and swap is not None and 0 < swap < limit:
            raise BundleError(
                f"linux.resources.memory: swap {swap} bytes counts memory too: below limit {limit}"
            )
        total = "memory.memsw.limit_in_bytes"
        writes = [("memory.limit_in_bytes", limit)]
        if swap is not None and (self._file("memory", total).exists() or limit is None):
            writes.append((total, swap))
        # limit <= memory and swap, always: whatever grows, the larger one has to go first.
        if len(writes) == 2 and swap is not None:
            present = read_number(self._file("memory", total))
            if swap == -1 or swap > present:
                writes.reverse()
        for name, value in writes:
            if value:
                self._set_memory(name, value)
        for key, name in (
            ("reservation", "memory.soft_limit_in_bytes"),
            ("kernelTCP", "memory.kmem.tcp.limit_in_bytes"),
            ("swappiness", "memory.swappiness"),
        ):
            if memory.get(key):
                set_value(self._file("memory", name), memory[key])
        if memory.get("disableOOMKiller"):
            set_value(self._file("memory", "memory.oom_control"), 1)

    def _set_memory(self, name: str, value: int) -> None:
        try:
            set_value(self._file("memory", name), value)
        except SandboxError as exc:
            cause = exc.__cause__
            if isinstance(cause, OSError) and cause.errno == errno.EBUSY:
                usage = read_number(self._file("memory", "memory.usage_in_bytes"))
                text = f"{usage} bytes are in use, more than the new limit of {value} bytes"
                raise SandboxError(exc.step, text) from exc
            raise

    def _apply_cpu(self, cpu: Resources) -> None:
        if cpu.get("shares"):
            set_value(self._file("cpu", "cpu.shares"), cpu["shares"])
        quota, period = cpu.get("quota"), cpu.get("period")
        writes = [("cpu.cfs_period_us", period), ("cpu.cfs_quota_us", quota)]
        pending = [(self._file("cpu", name), value) for name, value in writes if value]
        try:
            for path, value in pending:
                set_value(path, value)
        except SandboxError:
            # The kernel checks quota/period against the parent's after each write, so that one
            # order may pass through a ratio that is too high and the other does not.
            if len(pending) < 2:
                raise
            for path, value in reversed(pending):
                set_value(path, value)
        for key, controller, name in (
            ("burst", "cpu", "cpu.cfs_burst_us"),
            ("realtimePeriod", "cpu", "cpu.rt_period_us"),
            ("realtimeRuntime", "cpu", "cpu.rt_runtime_us"),
            ("cpus", "cpuset", "cpuset.cpus"),
            ("mems", "cpuset", "cpuset.mems"),
        ):
            if cpu.get(key):
                set_value(self._file(controller, name), cpu[key])
        if cpu.get("idle") is not None:
            set_value(self._file("cpu", "cpu.idle"), cpu["idle"])

    def _apply_blkio(self, block_io: Resources, warnings: list[str]) -> None:
        if weight := block_io.get("weight"):
            name = "blkio.weight"
            if not self._file("blkio", name).exists():
                name = "blkio.bfq.weight"
            self._set_optional("blkio", name, weight, warnings)
        for key, name in THROTTLE_FILES.items():
            for entry in block_io.get(key) or ():
                line = f"{entry['major']}:{entry['minor']} {entry['rate']}"
                set_value(self._file("blkio", name), line)

    def _file(self, controller: str, name: str) -> Path:
        directory = self._by_controller.get(controller)
        if directory is None:
            cause = f"the host has no cgroup controller {controller}"
            raise SandboxError(f"set {name}", cause)
        return directory / name

    def _set_optional(self, controller: str, name: str, value: object, warn: list[str]) -> None:
        """Write what a kernel may be built without, and nobody's safety depends on."""
        directory = self._by_controller.get(controller)
        if directory is None or not (directory / name).exists():
            warn.append(f"{name} is not set to {value}: the kernel does not have it")
        else:
            set_value(directory / name, value)

    # Processes

    def freeze(self, timeout: float = 2.0) -> None:
        self._set_state("FROZEN", timeout)

    def thaw(self, timeout: float = 2.0) -> None:
        self._set_state("THAWED", timeout)

    def _set_state(self, state: str, timeout: float) -> None:
        path = self._file("freezer", "freezer.state")
        attempts = 0

        def reached() -> bool:
            # Written again each time: a process that forks while it is being frozen can leave the
            # state at FREEZING until somebody asks anew. Source: cgroup-v1/freezer-subsystem.rst.
            # A program that executes another waits, where it cannot be frozen, for the end of its
            # threads, which the freezer holds: they end in a pause without it. runc thaws too.
            nonlocal attempts
            attempts += 1
            if attempts % FREEZE_ATTEMPTS == 0:
                write_file(path, "THAWED")
                return state == "THAWED"
            write_file(path, state)
            return read_text(path).strip() == state

        with step(f'set cgroup "{self.path}" to {state}'):
            if wait_for(reached, timeout):
                return
            if state == "FROZEN":
                write_file(path, "THAWED")
        raise SandboxError(f'set cgroup "{self.path}" to {state}', f"not done in {timeout} s")

    def oom_kills(self) -> int:
        return read_table(self._file("memory", "memory.oom_control")).get("oom_kill", 0)

    def open_oom_events(self) -> int:
        # Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control". Told before the kill.
        control = self._file("memory", "memory.oom_control")
        with step(f'watch "{control}"'):
            events = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                watched = os.open(control, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    write_file(control.with_name("cgroup.event_control"), f"{events} {watched}")
                finally:
                    os.close(watched)
            except BaseException:
                os.close(events)
                raise
        return events

    # Statistics

    def stats(self) -> CgroupStats:
        get = self._by_controller.get
        absent = Path("/nonexistent")
        memory, pids = get("memory", absent), get("pids", absent)
        return CgroupStats(
            version=1,
            cpu=_cpu_stats(get("cpuacct", absent), get("cpu", absent)),
            memory=_counter(memory, "memory"),
            swap=_counter(memory, "memory.memsw"),
            kernel=_counter(memory, "memory.kmem"),
            kernel_tcp=_counter(memory, "memory.kmem.tcp"),
            memory_stat=read_table(memory / "memory.stat"),
            memory_events=read_table(memory / "memory.oom_control"),
            pids_current=read_number(pids / "pids.current"),
            pids_limit=read_number(pids / "pids.max"),
            io=_io_stats(get("blkio", absent)),
        )


def pids_max(limit: int) -> str:
    """Return ``pids.max``. Negative is no limit; 0 is 1, as systemd takes no 0 and runc follows."""
    return "max" if limit < 0 else str(max(limit, 1))


def device_rule(rule: Resources) -> str:
    """Return a line for devices.allow or devices.deny: ``c 1:3 rwm``; ``a`` alone is everything."""
    kind = rule.get("type") or "a"
    if kind not in ("a", "b", "c"):
        raise BundleError(f'linux.resources.devices: unknown type "{kind}" (a, b, c)')
    access = rule.get("access") or "rwm"
    if set(access) - set("rwm"):
        raise BundleError(f'linux.resources.devices: unknown access "{access}" (r, w, m)')
    if kind == "a":
        return "a"
    numbers = (rule.get("major"), rule.get("minor"))
    major, minor = ("*" if number is None or number < 0 else str(number) for number in numbers)
    return f"{kind} {major}:{minor} {access}"


def _cpu_stats(cpuacct: Path, cpu: Path) -> CpuStats:
    ticks, throttling = read_table(cpuacct / "cpuacct.stat"), read_table(cpu / "cpu.stat")
    return CpuStats(
        usage_ns=read_number(cpuacct / "cpuacct.usage"),
        user_ns=ticks.get("user", 0) * TICK_NS,
        system_ns=ticks.get("system", 0) * TICK_NS,
        per_cpu_ns=tuple(read_numbers(cpuacct / "cpuacct.usage_percpu")),
        periods=throttling.get("nr_periods", 0),
        throttled_periods=throttling.get("nr_throttled", 0),
        throttled_ns=throttling.get("throttled_time", 0),
    )


def _counter(directory: Path, prefix: str) -> MemoryCounter:
    return MemoryCounter(
        usage=read_number(directory / f"{prefix}.usage_in_bytes"),
        limit=read_number(directory / f"{prefix}.limit_in_bytes"),
        max_usage=read_number(directory / f"{prefix}.max_usage_in_bytes"),
        failcnt=read_number(directory / f"{prefix}.failcnt"),
    )


def _io_stats(blkio: Path) -> tuple[IoStats, ...]:
    found: dict[tuple[int, int], dict[str, int]] = {}
    for name, read, write in (
        ("blkio.throttle.io_service_bytes_recursive", "read_bytes", "write_bytes"),
        ("blkio.throttle.io_serviced_recursive", "reads", "writes"),
    ):
        for line in read_text(blkio / name).splitlines():
            fields = line.split()  # "254:0 Read 4096"; the last line is "Total 4096"
            field = {"Read": read, "Write": write}.get(fields[1]) if len(fields) == 3 else None
            if field:
                major, _, minor = fields[0].partition(":")
                found.setdefault((int(major), int(minor)), {})[field] = int(fields[2])
    return tuple(IoStats(*device, **values) for device, values in found.items())
