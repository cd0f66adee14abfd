"""A cgroup's counters as the message that answers Stats."""

from __future__ import annotations

from google.protobuf import any_pb2

from containerd_shimkit.proto import cgroups_v1_pb2 as v1
from containerd_shimkit.proto import cgroups_v2_pb2 as v2

from .linux.cgroups import CgroupStats, IoStats, MemoryCounter

# Names of memory.stat that the message spells otherwise
V1_NAMES = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}
V1_NAMES |= {f"total_{name}": f"total_{field}" for name, field in V1_NAMES.items() if "pg" in name}
# Its other fields come from other files, some under a name that memory.stat has too ("swap").
V1_FIELDS = frozenset(f.name for f in v1.MemoryStat.DESCRIPTOR.fields if f.number <= 32)
V2_NAMES = {"anon_transparent_hugepages": "anon_thp"}
V2_FIELDS = frozenset(f.name for f in v2.MemoryStat.DESCRIPTOR.fields if not 32 <= f.number <= 38)
V2_EVENTS = frozenset(field.name for field in v2.MemoryEvents.DESCRIPTOR.fields)


def metrics_any(stats: CgroupStats) -> any_pb2.Any:
    """Return the Any for ``StatsResponse.stats``, whose type_url is the bare name."""
    message = metrics_v1(stats) if stats.version == 1 else metrics_v2(stats)
    return any_pb2.Any(
        type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString(deterministic=True)
    )


def metrics_v1(stats: CgroupStats) -> v1.Metrics:
    cpu, events = stats.cpu, stats.memory_events
    memory = v1.MemoryStat(
        usage=_entry(stats.memory),
        swap=_entry(stats.swap),
        kernel=_entry(stats.kernel),
        kernel_tcp=_entry(stats.kernel_tcp),
    )
    for name, value in stats.memory_stat.items():
        field = V1_NAMES.get(name, name)
        if field in V1_FIELDS:
            setattr(memory, field, value)
    return v1.Metrics(
        pids=v1.PidsStat(current=stats.pids_current, limit=stats.pids_limit),
        cpu=v1.CPUStat(
            usage=v1.CPUUsage(
                total=cpu.usage_ns,
                kernel=cpu.system_ns,
                user=cpu.user_ns,
                per_cpu=cpu.per_cpu_ns,
            ),
            throttling=v1.Throttle(
                periods=cpu.periods,
                throttled_periods=cpu.throttled_periods,
                throttled_time=cpu.throttled_ns,
            ),
        ),
        memory=memory,
        blkio=v1.BlkIOStat(
            io_service_bytes_recursive=_blkio(stats, "read_bytes", "write_bytes"),
            io_serviced_recursive=_blkio(stats, "reads", "writes"),
        ),
        memory_oom_control=v1.MemoryOomControl(
            oom_kill_disable=events.get("oom_kill_disable", 0),
            under_oom=events.get("under_oom", 0),
            oom_kill=events.get("oom_kill", 0),
        ),
    )


def metrics_v2(stats: CgroupStats) -> v2.Metrics:
    cpu = stats.cpu
    memory = v2.MemoryStat(
        usage=stats.memory.usage,
        usage_limit=stats.memory.limit,
        max_usage=stats.memory.max_usage,
        swap_usage=stats.swap.usage,
        swap_limit=stats.swap.limit,
        swap_max_usage=stats.swap.max_usage,
    )
    for name, value in stats.memory_stat.items():
        field = V2_NAMES.get(name, name)
        if field in V2_FIELDS:
            setattr(memory, field, value)
    events = {name: value for name, value in stats.memory_events.items() if name in V2_EVENTS}
    return v2.Metrics(
        pids=v2.PidsStat(current=stats.pids_current, limit=stats.pids_limit),
        cpu=v2.CPUStat(
            usage_usec=cpu.usage_ns // 1000,
            user_usec=cpu.user_ns // 1000,
            system_usec=cpu.system_ns // 1000,
            nr_periods=cpu.periods,
            nr_throttled=cpu.throttled_periods,
            throttled_usec=cpu.throttled_ns // 1000,
        ),
        memory=memory,
        io=v2.IOStat(usage=[_io(entry) for entry in stats.io]),
        memory_events=v2.MemoryEvents(**events),
    )


def _entry(counter: MemoryCounter) -> v1.MemoryEntry:
    return v1.MemoryEntry(
        limit=counter.limit,
        usage=counter.usage,
        max=counter.max_usage,
        failcnt=counter.failcnt,
    )


def _blkio(stats: CgroupStats, read: str, write: str) -> list[v1.BlkIOEntry]:
    return [
        v1.BlkIOEntry(op=op, major=entry.major, minor=entry.minor, value=getattr(entry, field))
        for entry in stats.io
        for op, field in (("Read", read), ("Write", write))
    ]


def _io(entry: IoStats) -> v2.IOEntry:
    return v2.IOEntry(
        major=entry.major,
        minor=entry.minor,
        rbytes=entry.read_bytes,
        wbytes=entry.write_bytes,
        rios=entry.reads,
        wios=entry.writes,
    )
