"""Requests per second and latency of one container as ``wrk`` sees them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.machine import BenchError, Json, progress
from bench.node import SPIN, Node, Workload
from bench.probe import PROBE, import_probe_image

CONNECTIONS = 50
ECHO_BYTES = 10 << 10
WAIT_MILLISECONDS = 10

_SCRIPT = Path(__file__).with_name("wrk.lua")
_REPORT = "BENCH "  # what the script's line begins with


@dataclass(frozen=True)
class Case:
    """What is asked of whom."""

    name: str
    workload: Workload
    path: str = "/hello"
    body_bytes: int = 0
    """0 is GET, more is POST."""


def cases_of(workload: Workload) -> list[Case]:
    """Return what is measured of a workload; further shims have their hello."""
    cases = [Case(workload.name, workload)]
    if workload == SPIN:
        two = replace(workload, env=(*workload.env, "SPIN_HTTP_WORKERS=2"))
        cases += [
            Case("spin, two workers", two),
            Case("spin, echo of 10 KiB", PROBE, "/echo", ECHO_BYTES),
            Case("spin, guest waits 10 ms", PROBE, f"/sleep?ms={WAIT_MILLISECONDS}"),
        ]
    return cases


def measure_http(
    node: Node, workloads: Sequence[Workload], runs: int, seconds: int, directory: Path
) -> Json:
    """Return what each run of ``wrk`` found, by case; the cases take turns."""
    if SPIN in workloads:
        import_probe_image(node, directory)
    cases = [case for workload in workloads for case in cases_of(workload)]
    results: dict[str, list[Json]] = {case.name: [] for case in cases}
    for turn in range(runs):
        for case in cases:
            progress(f"http {case.name} {turn + 1}/{runs}")
            with node.running(case.workload) as container:
                run_wrk(container.port, case, 1)
                results[case.name].append(run_wrk(container.port, case, seconds))
    return results


def run_wrk(port: int, case: Case, seconds: int) -> Json:
    """Run it once; return rate, latencies in seconds, and errors by kind."""
    url = f"http://127.0.0.1:{port}{case.path}"
    options = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(_SCRIPT)]
    result = subprocess.run(
        ["wrk", *options, url, "--", str(case.body_bytes)],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
    )
    if result.returncode != 0:
        raise BenchError(f"wrk failed: {result.stderr.strip() or result.stdout.strip()}")
    return parse_wrk(result.stdout)


def parse_wrk(output: str) -> Json:
    """Return what the script reported among wrk's own lines."""
    for line in output.splitlines():
        if line.startswith(_REPORT):
            found: Json = json.loads(line.removeprefix(_REPORT))
            return found
    raise BenchError(f"wrk reported something else than expected:\n{output}")
