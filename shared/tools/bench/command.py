"""The command line of the bench, and the run."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from bench.bodies import measure_bodies
from bench.machine import (
    BUSYBOX,
    REPOSITORY,
    BenchError,
    Json,
    describe_machine,
    installed,
    progress,
)
from bench.memory import ADDED, measure_memory
from bench.node import RUNC, WORKLOADS, Node
from bench.pods import measure_pods
from bench.report import as_markdown, as_text, describe
from bench.routing import measure_routing
from bench.start import measure_command, measure_start
from bench.waiting import measure_waiting
from bench.waterfall import measure_waterfall
from bench.wrk import measure_http
from containerd_shimkit.testing.containerd import Containerd, ContainerdError

PARTS = (
    *("start", "command", "waterfall", "pods", "memory"),
    *("http", "bodies", "waiting", "routing", "fibers"),
)

# Options and what they are by default: of a whole run, and of a quick one.
DEFAULTS: dict[str, tuple[Any, Any]] = {
    "runs": (15, 3),
    "pods": (50, 10),
    "pod_runs": (3, 1),
    "containers": ((1, 10, 50, 100), (1, 5)),
    "bodies": (5, 1),
    "http_runs": (3, 1),
    "http_seconds": (10, 3),
}


def check_requirements(options: argparse.Namespace) -> None:
    """Raise BenchError with everything that is missing."""
    missing = [name for name in ("containerd", "ctr") if not installed(name)]
    if {"http", "waiting"} & set(options.only) and not installed("wrk"):
        missing.append("wrk")
    if "waiting" in options.only and not installed("redis-server"):
        missing.append("redis-server")
    if RUNC in options.workloads and not installed("runc"):
        missing.append("runc")
    # busybox is the pods' pause container, too.
    if (RUNC in options.workloads or "pods" in options.only) and not BUSYBOX.exists():
        missing.append(f"{BUSYBOX} (Debian's busybox-static)")
    for workload in options.workloads:
        if not workload.is_ours:
            continue
        shim, archive = options.shim_dir / workload.shim, options.images / workload.archive
        missing += [] if shim.exists() else [f"{shim} (make build)"]
        if workload.archive and not archive.exists():
            missing.append(f"{archive} (make images)")
    if os.geteuid() != 0:
        missing.append("root")
    if missing:
        raise BenchError(f"needs {', '.join(missing)}")


class Nodes:
    """Starts containerds below one directory; they share compiled modules and unpacked shims."""

    def __init__(self, options: argparse.Namespace, directory: Path, stack: ExitStack) -> None:
        self._options = options
        self._directory = directory
        self._stack = stack
        self.archives = [
            workload.archive_in(options.images, directory) for workload in options.workloads
        ]

    def start(self, name: str, **options: Any) -> Containerd:
        daemon = Containerd(
            self._directory / name,
            shim_dir=self._options.shim_dir,
            shims_cache=self._directory / "cache",
            shims_root=self._directory / "shims",
            **options,
        )
        return self._stack.enter_context(daemon)

    def start_node(self, name: str, **options: Any) -> Node:
        daemon = self.start(name, **options)
        for archive in self.archives:
            daemon.import_image(archive)
        return Node(daemon, self._directory / "cache")


def run(options: argparse.Namespace, directory: Path) -> Json:
    """Start containerds in ``directory``, measure, stop them; return the raw numbers."""
    results: Json = {}
    only, workloads = options.only, options.workloads
    if "fibers" in only:
        results["fibers"] = measure_fibers()
    if "routing" in only:
        results["routing"] = measure_routing()
    # One at a time: what runs beside would be in each other's way.
    if {"start", "command", "memory", "http", "bodies", "waiting"} & set(only):
        with ExitStack() as stack:
            node = Nodes(options, directory, stack).start_node("containerd")
            if "start" in only:
                results["start"] = measure_start(node, workloads, options.runs)
            if "command" in only:
                bundles = directory / "bundles"
                results["command"] = measure_command(node, workloads, options.runs, bundles)
            if "memory" in only:
                results["memory"] = measure_memory(node, workloads, options.containers)
            if "http" in only:
                results["http"] = measure_http(
                    node, workloads, options.http_runs, options.http_seconds, directory
                )
            if "bodies" in only:
                results["bodies"] = measure_bodies(node, workloads, options.bodies, directory)
            if "waiting" in only:
                results["waiting"] = measure_waiting(
                    node, workloads, options.http_runs, options.http_seconds, directory
                )
    if "waterfall" in only:
        with ExitStack() as stack:
            node = Nodes(options, directory, stack).start_node("debug", debug=True)
            results["waterfall"] = measure_waterfall(node, workloads, options.runs)
    if "pods" in only:
        with ExitStack() as stack:
            nodes = Nodes(options, directory, stack)
            logs = directory / "pods"
            logs.mkdir()
            results["pods"] = measure_pods(
                nodes.start("cri", cri=True),
                workloads,
                nodes.archives,
                options.pods,
                options.pod_runs,
                logs,
            )
    progress("")
    return results


def measure_fibers() -> Json:
    """Run the guests that wait, in a process of their own, beside nothing else."""
    command = [sys.executable, str(REPOSITORY / "shared/tools/bench/fibers.py")]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    figures: Json = json.loads(result.stdout)
    return figures


def write_report(document: Json, results: Json, directory: Path) -> None:
    """Write a page of tables and its pictures."""
    from bench.plots import write_plots  # matplotlib takes long to import

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "README.md").write_text(as_markdown(document, results))
    write_plots(results, directory)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    by_name = {workload.name: workload for workload in WORKLOADS}

    def several(names: Iterable[str], text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(names)}")
        return chosen

    def counts(text: str) -> list[int]:
        numbers = [int(number) for number in text.split(",")]
        if numbers[0] < 1 or any(b < a + ADDED for a, b in pairwise(numbers)):
            raise argparse.ArgumentTypeError(
                f"each number must be {ADDED} more than the one before"
            )
        return numbers

    parser = argparse.ArgumentParser(description="Measure our shims beside runc.")
    add = parser.add_argument
    add("--quick", action="store_true", help="few runs: to see that it works, not how fast")
    add("--only", type=lambda text: several(PARTS, text), default=PARTS, metavar=",".join(PARTS))
    add(
        "--workloads",
        type=lambda text: [by_name[name] for name in several(by_name, text)],
        default=WORKLOADS,
        metavar=",".join(by_name),
    )
    add("--runs", type=int, help="starts of each kind (default 15)")
    add("--pods", type=int, help="pods at once (default 50)")
    add("--pod-runs", type=int, help="times that many (default 3)")
    add("--containers", type=counts, metavar="N,…", help="for memory (default 1,10,50,100)")
    add("--bodies", type=int, help="bodies of each size, one after the other (default 5)")
    add("--http-runs", type=int, help="runs of wrk (default 3)")
    add("--http-seconds", type=int, help="seconds for each run of wrk (default 10)")
    add("--shim-dir", type=Path, default=REPOSITORY / "dist", metavar="DIRECTORY")
    add("--images", type=Path, default=REPOSITORY / "dist/images", metavar="DIRECTORY")
    add("--output", type=Path, default=REPOSITORY / "dist/bench", metavar="DIRECTORY")
    add("--write-docs", action="store_true", help="write the report to docs/bench as well")
    options = parser.parse_args(arguments)
    for name, (whole, quick) in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else whole)
    return options


def handle_term(number: int, frame: object) -> NoReturn:
    # As an exception, so that containers and the containerd are ended on the way out.
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    signal.signal(signal.SIGTERM, handle_term)
    began = datetime.now(UTC)
    load_before = os.getloadavg()
    workspace = REPOSITORY / ".run"
    try:
        check_requirements(options)
        workspace.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=workspace) as directory:
            results = run(options, Path(directory))
    except (BenchError, ContainerdError) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    machine = describe_machine() | {"load_before": load_before, "load_after": os.getloadavg()}
    document = {"began": began.isoformat(timespec="seconds"), "machine": machine, **results}

    print("\n".join(describe(machine)))
    print(as_text(results))
    output = options.output / f"{began:%Y%m%dT%H%M%SZ}"
    write_report(document, results, output)
    (output / "raw.json").write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nraw numbers, tables and pictures: {output}")
    if options.write_docs:
        write_report(document, results, REPOSITORY / "docs/bench")
    return 0
