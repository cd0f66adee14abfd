from __future__ import annotations

import logging
import os
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from containerd_shimkit import log as log_module
from containerd_shimkit.log import FifoHandler, LogrusFormatter, format_time, quote

PIPE_BUF = 4096


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    os.mkfifo(path)
    return path


@pytest.fixture
def reader(fifo: Path) -> Iterator[int]:
    """What containerd holds: the FIFO, open for reading and writing."""
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.fixture
def logger(fifo: Path) -> Iterator[logging.Logger]:
    handler = FifoHandler(fifo)
    handler.setFormatter(LogrusFormatter({"runtime": "spin"}))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    yield logger
    handler.close()


def lines(fd: int) -> list[str]:
    data = b""
    while True:
        try:
            data += os.read(fd, 1 << 16)
        except BlockingIOError:
            return data.decode().splitlines()


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("test", logging.INFO, __file__, 1, message, None, None)
    made.fields = fields
    return made


def test_line(logger: logging.Logger, reader: int) -> None:
    logger.warning("cannot %s", "see", extra={"fields": {"pid": 7, "id": "a b"}})
    [line] = lines(reader)
    assert re.fullmatch(
        r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z" level=warning msg="cannot see"'
        r' id="a b" pid=7 runtime=spin',
        line,
    )


@pytest.mark.parametrize(
    ("level", "name"),
    [(5, "trace"), (10, "debug"), (20, "info"), (25, "info"), (40, "error"), (50, "fatal")],
)
def test_level_names_are_those_of_logrus(
    level: int, name: str, logger: logging.Logger, reader: int
) -> None:
    logger.log(level, "x")
    assert f" level={name} " in lines(reader)[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000000Z"),
        (1767323045.123456, "2026-01-02T03:04:05.123456000Z"),
        (951782399.999999, "2000-02-28T23:59:59.999999000Z"),
    ],
)
def test_time_is_utc_with_nine_digits(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("io.containerd.spin.v1", "io.containerd.spin.v1"),
        ("/run/a-b_c@d^e+f", "/run/a-b_c@d^e+f"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('say "x"\\', '"say \\"x\\"\\\\"'),
        ("a\nb\tc", '"a\\nb\\tc"'),
        ("\x1b[0m\x7f", '"\\x1b[0m\\x7f"'),
        ("naïve ✓", '"naïve ✓"'),
        ("\u200b\U000e0001", '"\\u200b\\U000e0001"'),
        ("/bad\udcff", '"/bad\\xff"'),
    ],
)
def test_values_are_quoted_as_go_does(value: str, quoted: str) -> None:
    assert quote(value) == quoted


def test_exception_is_one_line(logger: logging.Logger, reader: int) -> None:
    try:
        raise ValueError("no\ngood")
    except ValueError:
        logger.exception("it failed")
    [line] = lines(reader)
    assert 'msg="it failed" error="Traceback' in line
    assert 'ValueError: no\\ngood" runtime=spin' in line


@settings(deadline=None)
@given(st.text(max_size=9000), st.dictionaries(st.text("abc", min_size=1), st.text(max_size=3000)))
def test_line_is_one_line_that_fits(message: str, fields: dict[str, str]) -> None:
    line = LogrusFormatter().format(record(message, **fields)).encode(errors="backslashreplace")
    assert len(line) < PIPE_BUF
    assert b"\n" not in line


def test_long_message_is_cut_and_fields_stay(logger: logging.Logger, reader: int) -> None:
    logger.info("x" * 9000)
    logger.info("\x00\n" * 9000)
    for line in lines(reader):
        assert len(line) < PIPE_BUF
        assert line.endswith(" runtime=spin")
        assert len(shlex.split(line)) == 4


def test_full_fifo_does_not_block_and_tells_how_much_it_lost(
    logger: logging.Logger, reader: int
) -> None:
    begin = time.monotonic()
    for number in range(1000):
        logger.info("line %d %s", number, "x" * 500)
    assert time.monotonic() - begin < 5
    kept = lines(reader)
    assert 10 < len(kept) < 1000
    logger.info("room again")
    notice, last = lines(reader)
    assert f'level=warning msg="{1000 - len(kept)} log lines dropped"' in notice
    assert 'msg="room again"' in last
    logger.info("and no more")
    assert len(lines(reader)) == 1


def test_reader_that_vanished_finds_the_lines_when_it_is_back(
    fifo: Path, logger: logging.Logger
) -> None:
    """containerd restarts: nothing fails, and a FIFO's worth of lines is kept for it."""
    first = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    logger.info("before")
    assert len(lines(first)) == 1
    os.close(first)
    logger.info("between")
    second = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    assert "msg=between" in lines(second)[0]
    os.close(second)


def test_nobody_ever_reads(logger: logging.Logger) -> None:
    begin = time.monotonic()
    for _ in range(300):
        logger.info("x" * 1000)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, BrokenPipeError])
def test_write_errors_are_tolerated(
    error: type[OSError], logger: logging.Logger, reader: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        logger.info("lost")
    logger.info("kept")
    assert ['msg="1 log lines dropped"' in line for line in lines(reader)] == [True, False]


def test_missing_fifo_is_found_later(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = FifoHandler(path)
    handler.handle(record("lost"))
    assert not path.exists()
    os.mkfifo(path)
    handler.handle(record("kept"))
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert b"kept" in os.read(fd, 4096)
    os.close(fd)
    handler.close()


def test_wrong_arguments_are_reported(logger: logging.Logger, reader: int) -> None:
    logger.info("%d", "not a number")
    assert 'msg="cannot format a log line"' in lines(reader)[0]


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield root
    root.handlers[:], logging.raiseExceptions = handlers, raising
    root.setLevel(level)


def test_configure_replaces_what_it_made(
    fifo: Path, reader: int, root_logger: logging.Logger
) -> None:
    first = log_module.configure("info", fifo, runtime="first")
    second = log_module.configure("debug", fifo, runtime="second")
    logging.getLogger("some.module").debug("hello")
    assert first not in root_logger.handlers
    [line] = lines(reader)
    assert line.endswith("level=debug msg=hello runtime=second")
    second.close()


def test_configure_without_fifo_logs_to_stderr(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log_module.configure(logging.INFO, None)
    logging.getLogger("some.module").info("hello")
    assert capsys.readouterr().err.endswith("level=info msg=hello\n")
