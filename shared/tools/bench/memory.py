"""Memory of one container among few and among many.

PSS shares a page among all who map it. Of a shim it is smaller the more of its kind there are, so
each number of containers is measured by itself. What one more costs the node is the growth of the
sum over all: shims, engines, zygote; the daemon's own heap grows by its own rules and is left out.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.machine import Json, progress
from bench.node import Node, Workload
from containerd_shimkit.testing.leftovers import Process

SETTLE_TIME = 1.0  # seconds from the first 200 until memory is read
ADDED = 3  # containers added one by one at each number


def measure_memory(node: Node, workloads: Sequence[Workload], counts: Sequence[int]) -> Json:
    """Return, by workload, the memory at each of ``counts`` and what stays without containers."""
    results: Json = {}
    for workload in workloads:
        meter = _Meter(node, workload)
        with contextlib.ExitStack() as containers:
            points = []
            running = 0
            for count in counts:
                while running < count:
                    progress(f"memory of {workload.name}: {running + 1} containers")
                    containers.enter_context(node.running(workload))
                    running += 1
                points.append(meter.measure(running, containers))
                running += ADDED
        results[workload.name] = {"points": points}
        if workload.is_ours:
            # Read alone: while it has children they carry half of what they share with it.
            time.sleep(SETTLE_TIME)
            results[workload.name]["zygote"] = describe_memory(node.zygotes(workload))
    return results


class _Meter:
    """Reads the memory of one workload's processes."""

    def __init__(self, node: Node, workload: Workload) -> None:
        self._node = node
        self._workload = workload
        zygotes = {(p.pid, p.start_time) for p in node.zygotes(workload)}
        self._others = node.processes().keys() - zygotes
        """The zygotes of other workloads."""

    def measure(self, count: int, containers: contextlib.ExitStack) -> Json:
        """Return the memory of ``count`` containers, and what ``ADDED`` more bring; those stay."""
        time.sleep(SETTLE_TIME)
        processes = self._processes()
        sizes = {key: pss_bytes(p.pid) for key, p in processes.items()}
        zygotes = {(p.pid, p.start_time) for p in self._node.zygotes(self._workload)}
        total = before = sum(sizes.values())
        growths, added = [], []
        for _ in range(ADDED):
            containers.enter_context(self._node.running(self._workload))
            time.sleep(SETTLE_TIME)
            now = self._processes()
            after = sum(pss_bytes(p.pid) for p in now.values())
            added.append(describe_memory(now[key] for key in now.keys() - processes.keys()))
            growths.append(after - before)
            before, processes = after, now
        return {
            "count": count,
            "total_bytes": total,
            "containers_bytes": total - sum(sizes.get(key, 0) for key in zygotes),
            "growth_bytes": growths,
            "added": added,
        }

    def _processes(self) -> dict[tuple[int, int], Process]:
        found = self._node.processes()
        return {key: found[key] for key in found.keys() - self._others}


def describe_memory(processes: Iterable[Process]) -> list[Json]:
    return [
        {"pid": p.pid, "command": p.command, "pss_bytes": pss_bytes(p.pid)}
        for p in sorted(processes, key=lambda p: p.pid)
    ]


def pss_bytes(pid: int) -> int:
    """Return the proportional set size, 0 for a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^Pss: +(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
