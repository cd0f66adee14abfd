from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from containerd_shimkit.task.record import InitRecord


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a name that is hard to parse."""
    code = "open('/proc/self/comm', 'w').write('a) R 1 (b'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_record_survives_the_file(tmp_path: Path) -> None:
    record = InitRecord.of(os.getpid())
    record.save(tmp_path)
    assert InitRecord.load(tmp_path) == record
    assert [file.name for file in tmp_path.iterdir()] == ["init.json"]


def test_saving_again_replaces(tmp_path: Path) -> None:
    InitRecord(7, 8).save(tmp_path)
    InitRecord(9, 10).save(tmp_path)
    assert InitRecord.load(tmp_path) == InitRecord(9, 10)


def test_alive_until_it_ends(process: subprocess.Popen[bytes]) -> None:
    record = InitRecord.of(process.pid)
    assert record.is_alive()
    process.kill()
    process.wait()
    assert not record.is_alive()


def test_other_process_with_the_same_pid_is_not_it(process: subprocess.Popen[bytes]) -> None:
    record = InitRecord.of(process.pid)
    assert not InitRecord(record.pid, record.start_time + 1).is_alive()


def test_start_time_is_the_kernels(process: subprocess.Popen[bytes]) -> None:
    seconds = InitRecord.of(process.pid).start_time / os.sysconf("SC_CLK_TCK")
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert uptime - 60 < seconds <= uptime


def test_record_of_no_process() -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    pidfd = os.pidfd_open(child)
    select.select([pidfd], [], [], 10)
    os.close(pidfd)
    os.waitpid(child, 0)
    with pytest.raises(OSError, match="No such"):
        InitRecord.of(child)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '{"pid": 1}', '{"pid": "x", "start_time": 1}', '{"pid": null}'],
)
def test_unusable_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "init.json").write_text(text)
    assert InitRecord.load(tmp_path) is None


def test_missing_record_is_none(tmp_path: Path) -> None:
    assert InitRecord.load(tmp_path) is None
    assert InitRecord.load(tmp_path / "missing") is None


def test_record_without_text_is_none(tmp_path: Path) -> None:
    (tmp_path / "init.json").write_bytes(b"\xff\xfe\0")
    assert InitRecord.load(tmp_path) is None


def test_record_is_plain_json(tmp_path: Path) -> None:
    InitRecord(7, 8, "/a/b").save(tmp_path)
    assert json.loads((tmp_path / "init.json").read_text()) == {
        "pid": 7,
        "start_time": 8,
        "cgroups_path": "/a/b",
        "runtime": [],
    }
