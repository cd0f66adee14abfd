"""The parts of the bench that can be wrong without anybody noticing: reading, ending, aligning."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "bench" / "run.py"

# As wrk pads it: a unit of one letter has a space behind it.
WRK_REPORT = """\
Running 10s test @ http://127.0.0.1:8080/hello
  1 threads and 50 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     9.67ms   45.88ms 858.90ms   97.28%
    Req/Sec     6.26k   563.13     7.20k    70.00%
  Latency Distribution
     50%  751.00us
     75%    2.84ms
     90%    9.03ms
     99%    1.20s\x20
  62304 requests in 10.01s, 8.20MB read
"""
WRK_END = "Requests/sec:   6223.70\nTransfer/sec:    838.86KB\n"
WRK_ERRORS = """\
  Socket errors: connect 1, read 22, write 0, timeout 3
  Non-2xx or 3xx responses: 7
"""


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_wrk_report_is_read_in_seconds(bench: ModuleType) -> None:
    assert bench.parse_wrk(WRK_REPORT + WRK_END) == {
        "requests": 62304,
        "requests_per_second": 6223.7,
        "p50_seconds": pytest.approx(0.000751),
        "p99_seconds": 1.2,
        "errors": {"status": 0},
    }


def test_wrk_errors_are_counted_by_kind(bench: ModuleType) -> None:
    result = bench.parse_wrk(WRK_REPORT + WRK_ERRORS + WRK_END)
    assert result["errors"] == {"connect": 1, "read": 22, "write": 0, "timeout": 3, "status": 7}


def test_unknown_wrk_report_is_refused(bench: ModuleType) -> None:
    with pytest.raises(bench.BenchError, match="something else"):
        bench.parse_wrk("unable to connect\n")


def test_end_process_kills_what_ignores_sigterm(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = bench.select.select
    monkeypatch.setattr(bench.select, "select", lambda r, w, x, _: wait(r, w, x, 0.2))
    script = "trap '' TERM; echo ready; while :; do read -r line; done <&0"
    with subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        bench.end_process(process.pid)
        assert process.wait(5) == -9


def test_pss_of_this_process_is_plausible(bench: ModuleType) -> None:
    assert 1 << 20 < bench.pss_bytes(bench.os.getpid()) < 1 << 30


def test_pss_of_no_process_is_zero(bench: ModuleType) -> None:
    assert bench.pss_bytes(1 << 30) == 0


def test_missing_requirements_are_named(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--workloads", "spin", "--shim-dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert f"{tmp_path}/containerd-shim-spin-v1 (make build)" in result.stderr
