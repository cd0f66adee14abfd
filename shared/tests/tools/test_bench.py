"""The parts of the bench that can be wrong without anybody noticing: reading, aligning."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from bench.command import parse_options
from bench.kernel_events import ProcessEvent, parse_events
from bench.machine import BenchError, Json
from bench.memory import pss_bytes
from bench.node import RUNC, SPIN, Running, end_process
from bench.plots import write_plots
from bench.report import (
    align,
    as_markdown,
    as_text,
    http_rows,
    markdown_table,
    quartiles,
    routing_rows,
    start_rows,
)
from bench.routing import measure_routing
from bench.waterfall import OUR_PHASES, RUNC_PHASES, our_moments, parse_lines, runc_moments
from bench.wrk import parse_wrk

SCRIPT = Path(__file__).parents[2] / "tools" / "bench" / "run.py"

WRK_REPORT = """\
Running 10s test @ http://127.0.0.1:8080/hello
  62304 requests in 10.01s, 8.20MB read
Requests/sec:   6223.70
BENCH {"requests": 62304, "requests_per_second": 6223.7, "p99_seconds": 0.0012}
"""


def test_report_of_the_script_is_found_among_the_lines_of_wrk() -> None:
    assert parse_wrk(WRK_REPORT) == {
        "requests": 62304,
        "requests_per_second": 6223.7,
        "p99_seconds": 0.0012,
    }


def test_unknown_wrk_report_is_refused() -> None:
    with pytest.raises(BenchError, match="something else"):
        parse_wrk("unable to connect\n")


def test_end_process_kills_what_ignores_sigterm() -> None:
    script = "trap '' TERM; echo ready; while :; do read -r line; done <&0"
    with subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        end_process(process.pid, 0.2)
        assert process.wait(5) == -9


def test_pss_of_this_process_is_plausible() -> None:
    assert 1 << 20 < pss_bytes(os.getpid()) < 1 << 30


def test_pss_of_no_process_is_zero() -> None:
    assert pss_bytes(1 << 30) == 0


def test_missing_requirements_are_named(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--workloads", "spin", "--shim-dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert f"{tmp_path}/containerd-shim-spin-v1 (make build)" in result.stderr


def test_ctr_is_told_port_and_arguments() -> None:
    spin, runc = (workload.run_command("web-1", 8080) for workload in (SPIN, RUNC))
    assert "SPIN_HTTP_LISTEN_ADDR=127.0.0.1:8080" in spin
    assert spin[-1] == "web-1"
    assert runc[runc.index("web-1") + 1 :][:5] == [
        *["/bin/busybox", "httpd", "-f", "-p"],
        "127.0.0.1:8080",
    ]


# Options


def test_what_is_given_wins_over_a_quick_run() -> None:
    options = parse_options(["--quick", "--runs", "7"])
    assert (options.runs, options.pods) == (7, 10)


@pytest.mark.parametrize("counts", ["0", "1,3", "x"])
def test_numbers_of_containers_that_overlap_are_refused(counts: str) -> None:
    """Some are added at each number."""
    with pytest.raises(SystemExit):
        parse_options(["--containers", counts])


# The kernel's events


def event(what: int, nanoseconds: int, *data: int) -> bytes:
    body = struct.pack("=IIQ", what, 1, nanoseconds) + struct.pack(f"={len(data)}i", *data)
    message = struct.pack("=IIIIHH", 1, 1, 0, 0, len(body), 0) + body
    return struct.pack("=IHHII", 16 + len(message), 3, 0, 0, 0) + message


FORK, EXEC, UID, EXIT = 0x1, 0x2, 0x4, 0x80000000


def test_events_of_processes_are_read() -> None:
    packet = event(FORK, 2_500_000_000, 11, 10, 20, 20) + event(EXEC, 3_000_000_000, 20, 20)
    assert list(parse_events(packet)) == [
        ProcessEvent("fork", 2.5, 20, 10),
        ProcessEvent("exec", 3.0, 20),
    ]


def test_threads_and_other_events_are_left_out() -> None:
    packet = event(FORK, 1, 10, 10, 21, 10) + event(EXIT, 2, 21, 10, 0, 0) + event(UID, 3, 10, 10)
    assert list(parse_events(packet)) == []


def test_half_an_event_is_no_event() -> None:
    assert list(parse_events(event(EXEC, 1, 20, 20)[:40])) == []


# The waterfall

DAEMON, START, ZYGOTE, SHIM, STAGE, INIT = 10, 20, 5, 30, 40, 50
CONTAINER = Running("web-1", 8080, began=100.0, answered=100.9)


def test_moments_of_a_start_are_found_by_who_forks_whom() -> None:
    events = [
        ProcessEvent("fork", 100.05, 99, 98),  # somebody else's
        ProcessEvent("fork", 100.1, START, DAEMON),
        ProcessEvent("exec", 100.15, START),
        ProcessEvent("fork", 100.2, SHIM, ZYGOTE),
        ProcessEvent("exit", 100.25, START),
        ProcessEvent("fork", 100.4, STAGE, SHIM),
        ProcessEvent("fork", 100.45, INIT, STAGE),
    ]
    lines = [
        (100.3, "containerd.task.v2.Task/Create called"),
        (100.5, "the sandbox reports pid"),
        (100.55, "the sandbox reports created"),
        (100.6, "the sandbox reports prepared"),
        (100.65, "containerd.task.v2.Task/Create answered"),
        (100.7, "containerd.task.v2.Task/Start called"),
        (100.8, "the sandbox reports ready"),
    ]
    moments = our_moments(CONTAINER, events, lines, DAEMON, [ZYGOTE])
    assert moments == sorted(moments)
    assert len(moments) == len(OUR_PHASES) + 1
    assert moments[1:4] == [100.15, 100.2, 100.25]


def test_moments_of_a_start_with_runc() -> None:
    shim, create, start = 31, 41, 42
    events = [
        ProcessEvent("fork", 100.1, START, DAEMON),
        ProcessEvent("exec", 100.15, START),
        ProcessEvent("fork", 100.2, shim, START),
        ProcessEvent("exec", 100.22, shim),
        ProcessEvent("exit", 100.25, START),
        ProcessEvent("fork", 100.3, create, shim),
        ProcessEvent("exec", 100.35, create),
        ProcessEvent("exit", 100.5, create),
        ProcessEvent("fork", 100.6, start, shim),
        ProcessEvent("exec", 100.65, start),
        ProcessEvent("exit", 100.7, start),
    ]
    moments = runc_moments(CONTAINER, events, DAEMON)
    assert moments == [100.0, 100.15, 100.25, 100.35, 100.5, 100.65, 100.7, 100.9]
    assert len(moments) == len(RUNC_PHASES) + 1


def test_a_process_that_was_not_seen_is_missed() -> None:
    with pytest.raises(BenchError, match="did not tell"):
        our_moments(CONTAINER, [], [], DAEMON, [ZYGOTE])


def test_debug_lines_of_shims_are_read() -> None:
    log = (
        'time="2026-01-02T03:04:05.500000000Z" level=debug msg="the sandbox reports pid"'
        " runtime=io.containerd.spin.v1\n"
        'time="2026-01-02T03:04:06.000000000Z" level=debug msg="garbage collected" d=1ms\n'
        'time="2026-01-02T03:04:06.000000000Z" level=info msg=other runtime=io.containerd.spin.v1\n'
    )
    (line,) = parse_lines(log, -1767323045.0)
    assert line[0] == pytest.approx(0.5)
    assert line[1] == "the sandbox reports pid"


# The report

RESULTS: Json = {
    "start": {"seconds": {"spin warm": [0.1, 0.2, 0.3], "runc": [0.1, 0.1, 0.1]}},
    "waterfall": {
        "spin": {
            "phases": [{"who": "shim", "what": "forks", "seconds": [0.01, 0.02]}],
            "seconds": [0.1, 0.2],
            "unwatched_seconds": [0.1],
        }
    },
    "pods": {"count": 50, "runs": {"spin": [{"start_seconds": 4.5, "stop_seconds": 5.0}]}},
    "memory": {
        "spin": {
            "points": [
                {
                    "count": 10,
                    "total_bytes": 180_000_000,
                    "containers_bytes": 150_000_000,
                    "growth_bytes": [14_000_000, 15_000_000, 13_000_000],
                    "added": [],
                }
            ],
            "zygote": [{"pid": 1, "command": "zygote", "pss_bytes": 36_000_000}],
        }
    },
}
DOCUMENT: Json = {
    "began": "2026-01-02T03:04:05+00:00",
    "machine": {
        "load_before": (0.0, 0.0, 0.0),
        "load_after": (1.0, 0.5, 0.25),
        **{name: name for name in ("cores", "cpu", "kernel", "containerd", "runc", "wasmtime")},
        "revision": "abc",
    },
}


def test_starts_are_compared_by_their_medians() -> None:
    rows = start_rows(RESULTS["start"]["seconds"])
    assert rows[1] == ["spin warm", "3", "100.0", "150.0 … 250.0", "200.0", "300.0", "2.00"]


def test_errors_of_all_runs_are_added() -> None:
    run = {
        "requests_per_second": 5000.0,
        **{f"{name}_seconds": 0.01 for name in ("p50", "p99", "p999")},
        "errors": {"connect": 1, "status": 2},
    }
    assert http_rows({"spin": [run, run]})[1][-1] == "6"


def test_routes_are_matched_however_many_there_are() -> None:
    rows = routing_rows(measure_routing())
    assert rows[0] == ["", "1", "10", "100", "1000", "10000"]
    assert [row[0] for row in rows[1:]] == ["exact", "prefix"]


def test_without_runc_there_is_no_ratio() -> None:
    assert start_rows({"spin warm": [0.1]})[1][-1] == "-"


def test_quartiles_of_one_value_are_that_value() -> None:
    assert quartiles([3.0]) == (3.0, 3.0)


def test_columns_are_aligned() -> None:
    assert align([["", "n"], ["ab", "10"]]) == ["     n", "ab  10"]


def test_markdown_table_has_a_rule_below_its_head() -> None:
    assert markdown_table([["a", "b"], ["1", "2"]]) == ["| a | b |", "|---|--:|", "| 1 | 2 |"]


def test_report_shows_what_one_more_container_adds() -> None:
    text = as_text(RESULTS)
    assert "one more adds" in text
    assert ["spin", "10", "180.0", "15.0", "14.0", "36.0"] in [
        line.split() for line in text.splitlines()
    ]


def test_page_and_pictures_are_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        directory = tmp_path / name
        directory.mkdir()
        pictures = write_plots(RESULTS, directory)
        pages.append([file.read_bytes() for file in pictures])
        assert {file.name for file in pictures} == {"start.svg", "memory.svg", "waterfall-spin.svg"}
        page = as_markdown(DOCUMENT, RESULTS)
        assert all(f"]({file.name})" in page for file in pictures)
        assert all(file.stat().st_size < 40_000 for file in pictures)
    assert pages[0] == pages[1]
