"""Standard streams of a container, by each form of their names."""

from __future__ import annotations

import os
import re
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from containerd_shimkit import stdio as stdio_module
from containerd_shimkit.errors import InvalidArgumentError, NotFoundError
from containerd_shimkit.stdio import Stdio, StdioNames
from containerd_shimkit.testing import in_clean_process

SECONDS = 20.0


@contextmanager
def opened(stdin: str = "", stdout: str = "", stderr: str = "") -> Iterator[Stdio]:
    names = StdioNames(stdin=stdin, stdout=stdout, stderr=stderr)
    stdio = Stdio(names, namespace="ns", task_id="task")
    try:
        yield stdio
    finally:
        stdio.close()


def descriptors() -> dict[str, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = str(entry.readlink())
        except OSError:
            continue  # the directory's own
    return found


def read_soon(descriptor: int) -> bytes:
    assert select.select([descriptor], [], [], SECONDS)[0], "nothing to read"
    return os.read(descriptor, 4096)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_empty_names_are_dev_null() -> None:
    with opened() as stdio:
        assert os.read(stdio.stdin, 1) == b""
        assert os.write(stdio.stdout, b"x") == 1
        assert os.write(stdio.stderr, b"x") == 1
        links = descriptors()
        assert {links[str(fd)] for fd in (stdio.stdin, stdio.stdout)} == {"/dev/null"}


def test_fifo_without_a_reader_does_not_block(fifo: Path) -> None:
    with opened(stdout=str(fifo)) as stdio:
        assert os.write(stdio.stdout, b"early") == 5
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        assert read_soon(reader) == b"early"
        os.close(reader)
        assert os.write(stdio.stdout, b"nobody reads") == 12


def test_reader_of_a_fifo_sees_the_end(fifo: Path) -> None:
    with opened(stdout=str(fifo), stderr=str(fifo)) as stdio:
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        os.write(stdio.stderr, b"both")
    assert read_soon(reader) == b"both"
    assert read_soon(reader) == b""
    os.close(reader)


def test_stdin_from_a_fifo_has_an_end(fifo: Path) -> None:
    with opened(stdin=str(fifo)) as stdio:
        writer = os.open(fifo, os.O_WRONLY)
        os.write(writer, b"input")
        os.close(writer)
        assert read_soon(stdio.stdin) == b"input"
        assert read_soon(stdio.stdin) == b""


def test_plain_file_as_stream_blocks(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_text("text")
    with opened(stdin=str(file)) as stdio:
        assert os.get_blocking(stdio.stdin)
        assert os.read(stdio.stdin, 10) == b"text"


def test_file_is_made_and_appended_to(tmp_path: Path) -> None:
    file = tmp_path / "a b" / "log"
    for text in (b"one", b"two"):
        with opened(stdout=f"file://{tmp_path}/a%20b/log") as stdio:
            os.write(stdio.stdout, text)
    assert file.read_bytes() == b"onetwo"
    assert stat.S_IMODE(file.stat().st_mode) & 0o007 == 0


def test_descriptors_are_not_inherited(tmp_path: Path, fifo: Path) -> None:
    with opened(str(fifo), f"file://{tmp_path}/log", str(fifo)) as stdio:
        found = (stdio.stdin, stdio.stdout, stdio.stderr)
        assert not any(os.get_inheritable(fd) for fd in found)


def test_missing_fifo_is_named(tmp_path: Path) -> None:
    before = descriptors()
    with (
        pytest.raises(NotFoundError, match=rf"standard stream '{tmp_path}/none' does not exist"),
        opened(stderr=f"{tmp_path}/none"),
    ):
        pass
    assert descriptors() == before


@pytest.mark.parametrize("name", ["npipe://./pipe/x", "http://host/x", "unix:///x"])
def test_bad_scheme(name: str) -> None:
    scheme = name.partition(":")[0]
    with (
        pytest.raises(InvalidArgumentError, match=f"scheme '{scheme}' is none of fifo, file, bin"),
        opened(stdout=name),
    ):
        pass


def test_binary_is_for_stdout() -> None:
    with pytest.raises(InvalidArgumentError, match="scheme 'binary'"), opened(stderr="binary:///x"):
        pass


def logger(tmp_path: Path, body: str) -> Path:
    program = tmp_path / "logger"
    program.write_text(f"#!/bin/sh\ncd {tmp_path}\n{body}\n")
    program.chmod(0o755)
    return program


@in_clean_process
def test_logging_program(tmp_path: Path) -> None:
    body = 'echo "$@" >args; env >env; exec 5>&-; cat <&3 >out; cat <&4 >err; echo end >done'
    program = logger(tmp_path, body)
    before = descriptors()
    with opened(stdout=f"binary://{program}?key=value&flag") as stdio:
        os.write(stdio.stdout, b"to stdout")
        os.write(stdio.stderr, b"to stderr")
    assert os.waitpid(-1, 0)[1] == 0
    assert (tmp_path / "args").read_text() == "key value flag\n"
    environment = (tmp_path / "env").read_text()
    assert "CONTAINER_ID=task\n" in environment
    assert "CONTAINER_NAMESPACE=ns\n" in environment
    assert (tmp_path / "out").read_text() == "to stdout"
    assert (tmp_path / "err").read_text() == "to stderr"
    assert descriptors() == before


@in_clean_process
def test_logging_program_has_no_other_descriptors(tmp_path: Path) -> None:
    program = logger(tmp_path, "ls /proc/$$/fd >fds; exec 5>&-; cat <&3")
    secret = os.open(tmp_path, os.O_RDONLY)
    with opened(stdout=f"binary://{program}"):
        pass
    os.close(secret)
    os.waitpid(-1, 0)
    found = set(map(int, (tmp_path / "fds").read_text().split()))
    # The shell keeps its script and its standard output above 9.
    assert found <= {0, 1, 2, 3, 4, 5, 10, 11}


@in_clean_process
def test_logging_program_that_is_never_ready(tmp_path: Path) -> None:
    stdio_module._BINARY_SECONDS = 0.1  # type: ignore[misc]
    program = logger(tmp_path, "echo $$ >pid; exec sleep 60")
    before = descriptors()
    with (
        pytest.raises(InvalidArgumentError, match=rf"'{program}' was not ready after"),
        opened(stdout=f"binary://{program}"),
    ):
        pass
    assert descriptors() == before
    # Nobody needs it any more: it has to end now, not when it likes.
    pid, status = os.waitpid(-1, 0)
    assert os.waitstatus_to_exitcode(status) == -9
    assert not Path(f"/proc/{pid}").exists()


@in_clean_process
def test_logging_program_that_ends_at_once(tmp_path: Path) -> None:
    with opened(stdout=f"binary://{logger(tmp_path, 'exit 0')}") as stdio:
        os.waitpid(-1, 0)
        with pytest.raises(BrokenPipeError):
            os.write(stdio.stdout, b"x")


@pytest.mark.parametrize("mode", [None, 0o644], ids=["missing", "not-executable"])
def test_logging_program_that_cannot_be_run(tmp_path: Path, mode: int | None) -> None:
    program = tmp_path / "program"
    if mode is not None:
        program.write_text("#!/bin/sh\n")
        program.chmod(mode)
    before = descriptors()
    message = re.escape(f"logging program '{program}' cannot be run: ")
    with (
        pytest.raises(NotFoundError, match=message),
        opened(stdout=f"binary://{program}"),
    ):
        pass
    assert descriptors() == before
