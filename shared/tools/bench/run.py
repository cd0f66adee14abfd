"""Measure our shim beside runc on one containerd, in one run: what ``make bench`` runs.

start   seconds from executing ``ctr run`` until the first 200. Warm: the zygote runs and the
        module is compiled; cold: neither. The kinds take turns, so that load meets all alike.
memory  PSS of the processes that one more container brings, with five of its kind running. PSS
        shares a page among all who map it; the growth of the sum over everything is beside it.
http    requests per second and latency of one container as ``wrk`` sees them.

The other side is a static busybox httpd, about the smallest server a Linux container can hold. It
serves one file, forks for each connection and keeps none open: a reference, not a contest.

Nothing is asserted about the numbers. They are printed and kept, with the machine's load, as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

from containerd_shimkit.oci.archive import ImageFile, write_image_archive
from containerd_shimkit.testing.containerd import SYSTEM_PATH, Containerd, ContainerdError
from containerd_shimkit.testing.leftovers import Process, find_processes

REPOSITORY = Path(__file__).resolve().parents[3]
BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static
PARTS = ("start", "memory", "http", "fibers")

START_TIMEOUT = 30.0  # seconds
POLL_INTERVAL = 0.001  # seconds between attempts to connect to a server that is not there yet
SETTLE_TIME = 1.0  # seconds from the first 200 until memory is read
RUNNING_BEFORE = 5  # containers, when the memory of one more is measured
ADDED = 3  # containers measured, one after the other
CONNECTIONS = 50
WRK_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}

Json = dict[str, Any]  # what goes into the file


class BenchError(Exception):
    """The measurement cannot be made; the message says what is missing or what failed."""


@dataclass(frozen=True)
class Workload:
    """A server in a container that answers 200 to ``GET /hello``."""

    name: str
    runtime: str
    image: str
    env: tuple[str, ...] = ()
    """``{port}`` stands for the port, here and in ``args``."""
    args: tuple[str, ...] = ()

    def run_command(self, task_id: str, port: int) -> list[str]:
        env = [word for value in self.env for word in ("--env", value.format(port=port))]
        args = [arg.format(port=port) for arg in self.args]
        # Without null-io the guest's output would go to pipes that nobody reads.
        options = ["--detach", "--null-io", "--net-host", "--runtime", self.runtime, *env]
        return ["run", *options, self.image, task_id, *args]


SPIN = Workload(
    name="spin",
    runtime="io.containerd.spin.v1",
    image="docker.io/library/wasmtest_spin:latest",
    env=("SPIN_HTTP_LISTEN_ADDR=127.0.0.1:{port}",),
)
RUNC = Workload(
    name="runc",
    runtime="io.containerd.runc.v2",
    image="docker.io/library/bench_busybox:latest",
    args=("/bin/busybox", "httpd", "-f", "-p", "127.0.0.1:{port}", "-h", "/www"),
)


@dataclass
class Node:
    """A running containerd, and the containers on it."""

    containerd: Containerd
    cache: Path
    _count: int = field(default=0, init=False)

    @contextlib.contextmanager
    def running(self, workload: Workload) -> Iterator[tuple[int, float]]:
        """Run a container; yield its port and the seconds from ``ctr run`` to the first 200."""
        self._count += 1
        task_id = f"{workload.name}-{self._count}"
        port = free_port()
        command = workload.run_command(task_id, port)
        try:
            began = time.perf_counter()
            with self.containerd.popen_ctr(*command) as client:
                try:
                    answered = wait_for_200(port, client)
                finally:
                    client.kill()  # of no effect when it has ended, as it has after a 200
            yield port, answered - began
        finally:
            self.containerd.ctr("tasks", "delete", "--force", task_id, check=False)
            self.containerd.ctr("containers", "delete", task_id, check=False)

    def processes(self) -> dict[tuple[int, int], Process]:
        """Return the daemon's processes, its shims' and their containers', by pid and start."""
        return {(p.pid, p.start_time): p for p in find_processes(self.containerd.scope)}

    def zygotes(self) -> list[Process]:
        """Return what a shim keeps running; call this while there is no container."""
        return [p for p in self.processes().values() if p.pid != self.containerd.pid]

    def make_cold(self) -> None:
        """Forget everything that makes a later start faster; there must be no container."""
        for process in self.zygotes():
            end_process(process.pid)
        for entry in self.cache.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for_200(port: int, client: subprocess.Popen[str]) -> float:
    """Return the time of the first 200, by ``time.perf_counter``, and wait for ``ctr`` to end.

    Raises BenchError if ``ctr`` fails or there is no 200 in 30 s.
    """
    deadline = time.perf_counter() + START_TIMEOUT
    while not answers_200(port):
        if client.poll():
            output = client.stderr.read().strip() if client.stderr else ""
            raise BenchError(f"ctr run failed with {client.returncode}: {output}")
        if time.perf_counter() > deadline:
            raise BenchError(f"no 200 from port {port} in {START_TIMEOUT:.0f} s")
        time.sleep(POLL_INTERVAL)
    answered = time.perf_counter()
    client.wait(START_TIMEOUT)
    return answered


def answers_200(port: int) -> bool:
    request = b"GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=START_TIMEOUT) as server:
            server.sendall(request)
            return server.makefile("rb").readline().split()[1:2] == [b"200"]
    except OSError:
        return False


def end_process(pid: int) -> None:
    """Terminate a process that need not be our child; kill it if it is there 5 s later."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            # A pidfd is readable from the end of the process on, reaped or not.
            if select.select([descriptor], [], [], 5)[0]:
                return
    finally:
        os.close(descriptor)


# The three measurements


def measure_start(node: Node, workloads: Sequence[Workload], runs: int) -> Json:
    """Return the seconds of every start, in lists named ``spin cold``, ``spin warm``, ``runc``."""
    kinds = [("runc", RUNC)] if RUNC in workloads else []
    if SPIN in workloads:
        kinds += [("spin warm", SPIN), ("spin cold", SPIN)]
    seconds: dict[str, list[float]] = {name: [] for name, _ in reversed(kinds)}
    for _, workload in kinds:  # leaves files in the page cache, and the zygote
        with node.running(workload):
            pass
    for turn in range(runs):
        progress(f"start {turn + 1}/{runs}")
        for name, workload in kinds if turn % 2 else reversed(kinds):
            if name == "spin cold":
                node.make_cold()
            with node.running(workload) as (_, elapsed):
                seconds[name].append(elapsed)
    return {"seconds": seconds}


def measure_memory(node: Node, workloads: Sequence[Workload]) -> Json:
    """Return, by workload, what each added container brought and what stays without any."""
    results: Json = {}
    for workload in workloads:
        progress(f"memory of {workload.name}")
        with contextlib.ExitStack() as containers:
            for _ in range(RUNNING_BEFORE):
                containers.enter_context(node.running(workload))
            added = []
            for _ in range(ADDED):
                time.sleep(SETTLE_TIME)
                before = node.processes()
                total = sum(pss_bytes(p.pid) for p in before.values())
                containers.enter_context(node.running(workload))
                time.sleep(SETTLE_TIME)
                after = node.processes()
                new = [after[key] for key in after.keys() - before.keys()]
                added.append(
                    {
                        "processes": describe_memory(new),
                        "total_growth": sum(pss_bytes(p.pid) for p in after.values()) - total,
                    }
                )
        results[workload.name] = {"added": added}
        if workload is SPIN:
            # Read alone: while it has children they carry half of what they share with it.
            time.sleep(SETTLE_TIME)
            results[workload.name]["zygote"] = describe_memory(node.zygotes())
    return results


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


def measure_http(node: Node, workloads: Sequence[Workload], runs: int, seconds: int) -> Json:
    """Return what each run of ``wrk`` found, by workload; the workloads take turns."""
    results: dict[str, list[Json]] = {workload.name: [] for workload in workloads}
    for turn in range(runs):
        for workload in workloads:
            progress(f"http {workload.name} {turn + 1}/{runs}")
            with node.running(workload) as (port, _):
                run_wrk(port, 1)
                results[workload.name].append(run_wrk(port, seconds))
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
        percent: float(value) * WRK_UNITS[unit]
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


# The report


def report(results: Json) -> list[str]:
    """Return the tables to print."""
    lines = []
    if start := results.get("start"):
        lines += ["", "seconds from `ctr run` to the first 200", *start_table(start["seconds"])]
    if memory := results.get("memory"):
        title = f"PSS of one more container beside {RUNNING_BEFORE} or more, MB; median of {ADDED}"
        lines += ["", title, *memory_table(memory)]
    if http := results.get("http"):
        lines += ["", f"GET /hello, {CONNECTIONS} connections, medians", *http_table(http)]
    if fibers := results.get("fibers"):
        lines += [
            "",
            "guests that wait 100 ms in an asynchronous import",
            f"{fibers['succeeded']} of {fibers['requests']} requests in {fibers['seconds']:.2f} s,"
            f" at most {fibers['most_waiting']} at a time, on {fibers['threads']} thread",
        ]
    return lines


def start_table(seconds: dict[str, list[float]]) -> list[str]:
    rows = [["", "runs", "min", "median", "max", "of runc"]]
    for name, values in seconds.items():
        ratio = f"{median(values) / median(seconds['runc']):.2f}" if "runc" in seconds else "-"
        times = [f"{v:.3f}" for v in (min(values), median(values), max(values))]
        rows.append([name, str(len(values)), *times, ratio])
    return align(rows)


def memory_table(memory: Json) -> list[str]:
    rows = [["", "processes", "their PSS", "all grows by"]]
    for name, result in memory.items():
        added = result["added"]
        own = median(sum_pss(item["processes"]) for item in added)
        growth = median(item["total_growth"] for item in added)
        count = max(len(item["processes"]) for item in added)
        rows.append([name, str(count), megabytes(own), megabytes(growth)])
        if "zygote" in result:
            zygote = result["zygote"]
            own = sum_pss(zygote)
            rows.append([f"{name} zygote, alone", str(len(zygote)), megabytes(own), "-"])
    return align(rows)


def http_table(http: dict[str, list[Json]]) -> list[str]:
    rows = [["", "runs", "requests/s", "p50 ms", "p99 ms", "errors"]]
    for name, runs in http.items():
        rate = median(run["requests_per_second"] for run in runs)
        latencies = [
            f"{1000 * median(run[key] for run in runs):.2f}"
            for key in ("p50_seconds", "p99_seconds")
        ]
        errors = sum(sum(run["errors"].values()) for run in runs)
        rows.append([name, str(len(runs)), f"{rate:.0f}", *latencies, str(errors)])
    return align(rows)


def sum_pss(processes: Iterable[Json]) -> int:
    return sum(process["pss_bytes"] for process in processes)


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f}"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines, the first column aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def describe_machine() -> Json:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu_model(),
        "kernel": platform.release(),
        "containerd": first_line("containerd", "--version"),
        "runc": first_line("runc", "--version"),
        "wrk": first_line("wrk", "--version"),
        "python": platform.python_version(),
        "wasmtime": metadata.version("wasmtime"),
        "revision": first_line("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"),
    }


def cpu_model() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return found[1] if found else platform.machine()


def first_line(*command: str) -> str:
    try:
        result = subprocess.run(
            command, env={"PATH": SYSTEM_PATH}, capture_output=True, text=True, timeout=10
        )
    except FileNotFoundError:
        return "not installed"
    return next(iter((result.stdout + result.stderr).splitlines()), "")


def progress(text: str) -> None:
    """Show what is going on where a person watches; on a log it would be noise."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# The run


def check_requirements(options: argparse.Namespace) -> None:
    """Raise BenchError with everything that is missing."""
    missing = [name for name in ("containerd", "ctr") if not installed(name)]
    if "http" in options.only and not installed("wrk"):
        missing.append("wrk")
    if RUNC in options.workloads:
        missing += [] if installed("runc") else ["runc"]
        missing += [] if BUSYBOX.exists() else [f"{BUSYBOX} (Debian's busybox-static)"]
    if SPIN in options.workloads:
        shim = options.shim_dir / "containerd-shim-spin-v1"
        missing += [] if shim.exists() else [f"{shim} (make build)"]
        missing += [] if options.spin_image.exists() else [f"{options.spin_image} (make images)"]
    if os.geteuid() != 0:
        missing.append("root")
    if missing:
        raise BenchError(f"needs {', '.join(missing)}")


def installed(program: str) -> bool:
    return shutil.which(program, path=SYSTEM_PATH) is not None


def write_busybox_image(path: Path) -> None:
    files = [
        ImageFile("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
        ImageFile("www/hello", b"Hello world from busybox!"),
    ]
    write_image_archive(path, RUNC.image, files, entrypoint=["/bin/busybox"])


def run(options: argparse.Namespace, directory: Path) -> Json:
    """Start a containerd in ``directory``, measure, stop it; return the raw numbers."""
    cache = directory / "cache"
    daemon = Containerd(
        directory / "containerd",
        shim_dir=options.shim_dir,
        shims_cache=cache,
        shims_root=directory / "shims",
    )
    results: Json = {}
    if "fibers" in options.only:
        results["fibers"] = measure_fibers()
    with daemon:
        if RUNC in options.workloads:
            write_busybox_image(directory / "busybox.tar")
            daemon.import_image(directory / "busybox.tar")
        if SPIN in options.workloads:
            daemon.import_image(options.spin_image)
        node = Node(daemon, cache)
        if "start" in options.only:
            results["start"] = measure_start(node, options.workloads, options.runs)
        if "memory" in options.only:
            results["memory"] = measure_memory(node, options.workloads)
        if "http" in options.only:
            results["http"] = measure_http(
                node, options.workloads, options.http_runs, options.http_seconds
            )
    progress("")
    return results


def measure_fibers() -> Json:
    """Run the guests that wait, in a process of their own, beside nothing else."""
    command = [sys.executable, str(REPOSITORY / "shared/tools/bench/fibers.py")]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    figures: Json = json.loads(result.stdout)
    return figures


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    by_name = {workload.name: workload for workload in (SPIN, RUNC)}

    def several(names: Iterable[str], text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(names)}")
        return chosen

    parser = argparse.ArgumentParser(description="Measure our shim beside runc.")
    add = parser.add_argument
    add("--runs", type=int, default=15, help="starts of each kind (default 15)")
    add("--http-runs", type=int, default=3, help="runs of wrk (default 3)")
    add("--http-seconds", type=int, default=10, help="seconds for each run of wrk (default 10)")
    add("--only", type=lambda text: several(PARTS, text), default=PARTS, metavar=",".join(PARTS))
    add(
        "--workloads",
        type=lambda text: [by_name[name] for name in several(by_name, text)],
        default=(SPIN, RUNC),
        metavar=",".join(by_name),
    )
    add("--shim-dir", type=Path, default=REPOSITORY / "dist", metavar="DIRECTORY")
    add("--spin-image", type=Path, default=REPOSITORY / "dist/images/spin.tar", metavar="FILE")
    add("--output", type=Path, default=REPOSITORY / "dist/bench", metavar="DIRECTORY")
    return parser.parse_args(arguments)


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

    print(f"{machine['cores']} cores, {machine['cpu']}, Linux {machine['kernel']}")
    print(f"{machine['containerd']}; {machine['runc']}; wasmtime {machine['wasmtime']}")
    for moment in ("before", "after"):
        loads = " ".join(f"{load:.2f}" for load in machine[f"load_{moment}"])
        print(f"load {moment}: {loads}")
    print("\n".join(report(results)))
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{began:%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nraw numbers: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
