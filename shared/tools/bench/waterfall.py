"""Where the time of a warm start goes, from ``ctr run`` to the first 200.

Two sources that cost nothing in production: the kernel tells of forks, executions and ends
(``kernel_events``), and the shim logs calls and reports where containerd asks for debug lines.
Each start gives a list of moments; the phases between them are what is reported. What watching
itself costs is measured too: starts on the same daemon without listening, in turns.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from bench.kernel_events import ProcessEvent, ProcessEvents
from bench.machine import BenchError, Json, progress
from bench.node import RUNC, Node, Running, Workload

_LINE = re.compile(r'^time="(?P<time>[^"]+)" level=debug msg="(?P<text>[^"]*)".* runtime=io\.')
LOG_SECONDS = 5.0  # containerd copies the shims' lines on its own time


@dataclass(frozen=True)
class Phase:
    """A part of a start: what it is called, and who works meanwhile."""

    who: str
    what: str


OUR_PHASES = (
    Phase("ctr, containerd", "image, snapshot, bundle; `start` is executed"),
    Phase("start", "reaches the zygote"),
    Phase("shim", "forked: config.json, socket, address; `start` ends"),
    Phase("shim, containerd", "event loop; connects, calls Create"),
    Phase("shim", "config.json; forks the stage"),
    Phase("stage", "cgroup, namespaces; forks the init"),
    Phase("init", "mounts, pivot_root, user, capabilities: isolated"),
    Phase("init", "manifest, engine, modules: prepared"),
    Phase("shim", "answers Create"),
    Phase("ctr, containerd", "task event, Start is called"),
    Phase("init", "binds the port: ready"),
    Phase("client", "its first request is answered"),
)
RUNC_PHASES = (
    Phase("ctr, containerd", "image, snapshot, bundle; `start` is executed"),
    Phase("start", "forks the shim; ends"),
    Phase("shim, containerd", "connects, calls Create; `runc create` is executed"),
    Phase("runc create", "namespaces, cgroup, mounts: isolated"),
    Phase("ctr, containerd", "task event, Start; `runc start` is executed"),
    Phase("runc start", "lets the program be executed; ends"),
    Phase("client", "its first request is answered"),
)


def measure_waterfall(node: Node, workloads: Sequence[Workload], runs: int) -> Json:
    """Return, by workload, the phases with their seconds in each run, and the whole starts.

    node: of a containerd that logs debug lines.
    """
    results: Json = {}
    unwatched: dict[str, list[float]] = {workload.name: [] for workload in workloads}
    moments: dict[str, list[list[float]]] = {workload.name: [] for workload in workloads}
    for workload in workloads:
        node.make_warm(workload)
    for turn in range(runs):
        progress(f"waterfall {turn + 1}/{runs}")
        for workload in workloads:
            with node.running(workload) as container:
                unwatched[workload.name].append(container.seconds)
            moments[workload.name].append(_watch(node, workload))
    for workload in workloads:
        phases = RUNC_PHASES if workload == RUNC else OUR_PHASES
        results[workload.name] = {
            "phases": [
                {
                    "who": phase.who,
                    "what": phase.what,
                    "seconds": [run[number + 1] - run[number] for run in moments[workload.name]],
                }
                for number, phase in enumerate(phases)
            ],
            "seconds": [run[-1] - run[0] for run in moments[workload.name]],
            "unwatched_seconds": unwatched[workload.name],
        }
    return results


def _watch(node: Node, workload: Workload) -> list[float]:
    """Run a container; return the moments between which its phases lie."""
    zygotes = [p.pid for p in node.zygotes(workload)]
    log_bytes = node.containerd.log_file.stat().st_size
    to_monotonic = time.perf_counter() - time.time()
    with ProcessEvents() as events, node.running(workload) as container:
        happened = events.take()
        if workload == RUNC:
            return runc_moments(container, happened, node.containerd.pid)
        lines = _shim_lines(node, log_bytes, to_monotonic)
    return our_moments(container, happened, lines, node.containerd.pid, zygotes)


def our_moments(
    container: Running,
    events: Sequence[ProcessEvent],
    lines: Sequence[tuple[float, str]],
    daemon: int,
    zygotes: Sequence[int],
) -> list[float]:
    """Return the limits of ``OUR_PHASES``. lines: time and text of the shim's debug lines."""
    start = _first_executed(events, daemon)
    shim = _first(events, lambda e: e.kind == "fork" and e.parent in zygotes)
    left = _first(events, lambda e: e.kind == "exit" and e.pid == start.pid)
    stage = _first(events, lambda e: e.kind == "fork" and e.parent == shim.pid)
    init = _first(events, lambda e: e.kind == "fork" and e.parent == stage.pid)
    return [
        container.began,
        start.seconds,
        shim.seconds,
        left.seconds,
        _line(lines, "/Create called"),
        stage.seconds,
        init.seconds,
        _line(lines, "reports created"),
        _line(lines, "reports prepared"),
        _line(lines, "/Create answered"),
        _line(lines, "/Start called"),
        _line(lines, "reports ready"),
        container.answered,
    ]


def runc_moments(container: Running, events: Sequence[ProcessEvent], daemon: int) -> list[float]:
    """Return the limits of ``RUNC_PHASES``."""
    start = _first_executed(events, daemon)
    left = _first(events, lambda e: e.kind == "exit" and e.pid == start.pid)
    children = _children(events, start.pid)
    shim = _first(events, lambda e: e.kind == "exec" and e.pid in children)
    commands = _children(events, shim.pid)
    create = _first(events, lambda e: e.kind == "exec" and e.pid in commands)
    created = _first(events, lambda e: e.kind == "exit" and e.pid == create.pid)
    others = commands - {create.pid}
    begun = _first(events, lambda e: e.kind == "exec" and e.pid in others)
    ended = _first(events, lambda e: e.kind == "exit" and e.pid == begun.pid)
    limits = [start, left, create, created, begun, ended]
    return [container.began, *(event.seconds for event in limits), container.answered]


def _first_executed(events: Sequence[ProcessEvent], parent: int) -> ProcessEvent:
    children = _children(events, parent)
    return _first(events, lambda e: e.kind == "exec" and e.pid in children)


def _children(events: Iterable[ProcessEvent], parent: int) -> set[int]:
    return {e.pid for e in events if e.kind == "fork" and e.parent == parent}


def _first(events: Iterable[ProcessEvent], wanted: Callable[[ProcessEvent], bool]) -> ProcessEvent:
    found = min(filter(wanted, events), key=lambda event: event.seconds, default=None)
    if found is None:
        raise BenchError("the kernel did not tell of a process that must have been there")
    return found


# The log


def _shim_lines(node: Node, offset: int, to_monotonic: float) -> list[tuple[float, str]]:
    """Return time and text of the debug lines behind ``offset``, when the start's are all there."""
    deadline = time.monotonic() + LOG_SECONDS
    while True:
        with node.containerd.log_file.open("rb") as file:
            file.seek(offset)
            lines = parse_lines(file.read().decode(errors="replace"), to_monotonic)
        if any(text.endswith("/Start answered") for _, text in lines):
            return lines
        if time.monotonic() > deadline:
            raise BenchError("the shim's debug lines are not in containerd's log")
        time.sleep(0.01)


def parse_lines(log: str, to_monotonic: float) -> list[tuple[float, str]]:
    """Return time and text of the shims' debug lines.

    to_monotonic: what has to be added to seconds since 1970 for another clock.
    """
    return [
        (datetime.fromisoformat(found["time"]).timestamp() + to_monotonic, found["text"])
        for found in map(_LINE.match, log.splitlines())
        if found is not None
    ]


def _line(lines: Iterable[tuple[float, str]], end: str) -> float:
    """Return the time of the first line with this end."""
    for seconds, text in lines:
        if text.endswith(end):
            return seconds
    raise BenchError(f"the shim logged no line that ends with {end!r}")
