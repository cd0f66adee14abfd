"""Requests per second and latency of one container as ``wrk`` sees them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

from bench.machine import BenchError, Json, progress
from bench.node import Node, Workload

CONNECTIONS = 50
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def measure_http(node: Node, workloads: Sequence[Workload], runs: int, seconds: int) -> Json:
    """Return what each run of ``wrk`` found, by workload; the workloads take turns."""
    results: dict[str, list[Json]] = {workload.name: [] for workload in workloads}
    for turn in range(runs):
        for workload in workloads:
            progress(f"http {workload.name} {turn + 1}/{runs}")
            with node.running(workload) as container:
                run_wrk(container.port, 1)
                results[workload.name].append(run_wrk(container.port, seconds))
    return results


def run_wrk(port: int, seconds: int) -> Json:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
    result = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/hello"],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
    )
    if result.returncode != 0:
        raise BenchError(f"wrk failed: {result.stderr.strip() or result.stdout.strip()}")
    return parse_wrk(result.stdout)


def parse_wrk(output: str) -> Json:
    """Return the rate, the latencies in seconds and the errors by kind from wrk's report."""
    latencies = {
        percent: float(value) * _UNITS[unit]
        for percent, value, unit in re.findall(r"^ +(\d+)% +([\d.]+)(us|ms|s|m) *$", output, re.M)
    }
    rate = re.search(r"^Requests/sec: +([\d.]+)$", output, re.M)
    count = re.search(r"^ +(\d+) requests in ", output, re.M)
    if not rate or not count or not {"50", "99"} <= latencies.keys():
        raise BenchError(f"wrk reported something else than expected:\n{output}")
    # Both lines are printed only if there is something to say.
    sockets = re.search(r"Socket errors: (.*)", output)
    errors = {kind: int(n) for kind, n in re.findall(r"(\w+) (\d+)", sockets[1] if sockets else "")}
    status = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    return {
        "requests": int(count[1]),
        "requests_per_second": float(rate[1]),
        "p50_seconds": latencies["50"],
        "p99_seconds": latencies["99"],
        "errors": errors | {"status": int(status[1]) if status else 0},
    }
