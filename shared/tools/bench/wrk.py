"""Requests per second and latency of one container as ``wrk`` sees them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.machine import REPOSITORY, BenchError, Json, progress
from bench.node import SPIN, Node, Workload
from containerd_shimkit.oci.archive import ImageFile, write_image_archive

CONNECTIONS = 50
ECHO_BYTES = 10 << 10
WAIT_MILLISECONDS = 10

_SCRIPT = Path(__file__).with_name("wrk.lua")
_REPORT = "BENCH "  # what the script's line begins with

_PROBE_IMAGE = "docker.io/library/bench_probe:latest"
_PROBE_MANIFEST = """\
spin_manifest_version = "1"
name = "bench"
version = "1.0.0"
trigger = { type = "http", base = "/" }

[[component]]
id = "hello"
source = "hello.wasm"
[component.trigger]
route = "/hello"

[[component]]
id = "probe"
source = "probe.wasm"
[component.trigger]
route = "/..."
"""


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
        probe = replace(workload, image=_PROBE_IMAGE)
        cases += [
            Case("spin, two workers", two),
            Case("spin, echo of 10 KiB", probe, "/echo", ECHO_BYTES),
            Case("spin, guest waits 10 ms", probe, f"/sleep?ms={WAIT_MILLISECONDS}"),
        ]
    return cases


def write_probe_image(path: Path) -> None:
    """Write an image of the guest that does what its path says, beside hello."""
    hello = REPOSITORY / "images/spin/hello/hello.wasm"
    probe = REPOSITORY / "containerd-shim-spin-v1/tests/guests/probe.wasm"
    files = [
        ImageFile("spin.toml", _PROBE_MANIFEST.encode()),
        ImageFile("hello.wasm", hello.read_bytes()),
        ImageFile("probe.wasm", probe.read_bytes()),
    ]
    write_image_archive(path, _PROBE_IMAGE, files, entrypoint=["/"])


def measure_http(
    node: Node, workloads: Sequence[Workload], runs: int, seconds: int, directory: Path
) -> Json:
    """Return what each run of ``wrk`` found, by case; the cases take turns."""
    if SPIN in workloads:
        write_probe_image(directory / "probe.tar")
        node.containerd.import_image(directory / "probe.tar")
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
