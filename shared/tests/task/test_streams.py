"""Standard streams of ordinary containers: who sees the end of what, and when."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ShimError,
    UnimplementedError,
)
from containerd_shimkit.stdio import StdioNames
from containerd_shimkit.task.runc import StandardStreams
from containerd_shimkit.task.streams import InputCopy, PipedStreams, ProcessStreams, held_open

SECONDS = 10.0
LARGE = bytes(range(256)) * 2048  # 512 KiB: more than two pipes hold


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run an async test to its end, or fail."""

    async def limited() -> None:
        async with asyncio.timeout(SECONDS):
            await test()

    asyncio.run(limited())


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(path := tmp_path / "fifo")
    return path


@pytest.fixture
def names(tmp_path: Path) -> StdioNames:
    for name in ("stdin", "stdout", "stderr"):
        os.mkfifo(tmp_path / name)
    return StdioNames(*(str(tmp_path / name) for name in ("stdin", "stdout", "stderr")))


def reader_of(path: Path | str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def writer_of(path: Path | str) -> int:
    """Like a client that does not wait; needs a reader."""
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK)


def is_at_end(descriptor: int) -> bool:
    """Whether a read says that nobody writes any more."""
    try:
        return os.read(descriptor, 1) == b""
    except BlockingIOError:
        return False


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def open_descriptors() -> set[str]:
    return {str(link) for link in Path("/proc/self/fd").iterdir()}


async def until_closed(before: set[str], but: int = 0) -> None:
    """Let the loop turn until no more descriptors are open than before."""
    for _ in range(1000):
        if len(open_descriptors() - before) <= but:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"still open: {open_descriptors() - before}")


async def read(descriptor: int) -> bytes:
    """Read without blocking the loop; empty at the end."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, 1 << 16)


async def read_to_end(descriptor: int) -> bytes:
    chunks = []
    while chunk := await read(descriptor):
        chunks.append(chunk)
    return b"".join(chunks)


# Input


def copy_of(fifo: Path) -> tuple[InputCopy, int]:
    """A copy, and the end of the pipe that the process reads."""
    reader, writer = os.pipe()
    return InputCopy(reader_of(fifo), writer), reader


def copying(fifo: Path, test: Callable[[InputCopy, int], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        copy, reader = copy_of(fifo)
        try:
            await test(copy, reader)
        finally:
            os.close(reader)
            copy.cancel()
            await asyncio.sleep(0)  # so that it lets go of its descriptors
            await asyncio.sleep(0)

    run(body)


def test_input_arrives(fifo: Path) -> None:
    async def test(copy: InputCopy, reader: int) -> None:
        client = writer_of(fifo)
        for text in (b"first", b"second"):
            os.write(client, text)
            assert await read(reader) == text
        os.close(client)
        assert await read(reader) == b""

    copying(fifo, test)


def test_input_that_nobody_has_written_yet_is_not_at_its_end(fifo: Path) -> None:
    async def test(copy: InputCopy, reader: int) -> None:
        os.set_blocking(reader, False)
        for _ in range(20):  # turns of the loop: whatever is ready is done
            await asyncio.sleep(0)
            assert not is_at_end(reader)
        client = writer_of(fifo)
        os.write(client, b"late")
        assert await read(reader) == b"late"
        os.close(client)

    copying(fifo, test)


def test_input_ends_with_its_last_writer(fifo: Path) -> None:
    async def test(copy: InputCopy, reader: int) -> None:
        clients = [writer_of(fifo), writer_of(fifo)]
        os.close(clients[0])
        os.write(clients[1], b"still here")
        assert await read(reader) == b"still here"
        os.close(clients[1])
        assert await read(reader) == b""

    copying(fifo, test)


def test_input_larger_than_a_pipe_arrives_whole(fifo: Path) -> None:
    async def test(copy: InputCopy, reader: int) -> None:
        client = os.open(fifo, os.O_WRONLY)

        def write() -> None:
            rest = LARGE
            while rest:
                rest = rest[os.write(client, rest) :]
            os.close(client)

        thread = threading.Thread(target=write)
        thread.start()
        assert await read_to_end(reader) == LARGE
        thread.join(SECONDS)

    copying(fifo, test)


def test_close_io_ends_the_input_though_the_writer_stays(fifo: Path) -> None:
    async def test(copy: InputCopy, reader: int) -> None:
        client = writer_of(fifo)
        copy.finish()
        assert await read(reader) == b""
        os.close(client)

    copying(fifo, test)


def test_close_io_loses_nothing_that_was_written(fifo: Path) -> None:
    async def test(copy: InputCopy, reader: int) -> None:
        client = writer_of(fifo)
        sent = LARGE[: os.write(client, LARGE)]
        copy.finish()
        assert await read_to_end(reader) == sent
        os.close(client)

    copying(fifo, test)


def test_close_io_without_a_writer_ends_the_input(fifo: Path) -> None:
    async def test(copy: InputCopy, reader: int) -> None:
        copy.finish()
        copy.finish()
        assert await read(reader) == b""
        copy.finish()

    copying(fifo, test)


def test_process_that_reads_no_more_ends_the_copy(fifo: Path) -> None:
    """The client is told by EPIPE, not held up forever."""

    async def body() -> None:
        before = open_descriptors()
        copy, reader = copy_of(fifo)
        client = writer_of(fifo)
        os.close(reader)
        os.write(client, b"for nobody")
        await until_closed(before, but=1)  # the client's
        with pytest.raises(BrokenPipeError):
            os.write(client, b"x")
        os.close(client)
        copy.cancel()

    run(body)


# The streams of a process


def piping(names: StdioNames, test: Callable[[PipedStreams], Coroutine[Any, Any, None]]) -> None:
    """Run a test; no descriptor is open afterwards that was not before."""

    async def body() -> None:
        before = open_descriptors()
        piped = PipedStreams(names)
        try:
            await test(piped)
        finally:
            piped.release()
            piped.close()
        await until_closed(before)

    run(body)


def test_output_goes_to_its_fifos(names: StdioNames) -> None:
    async def test(piped: PipedStreams) -> None:
        readers = [reader_of(names.stdout), reader_of(names.stderr)]
        os.write(piped.streams.stdout, b"out")
        os.write(piped.streams.stderr, b"err")
        assert [await read(reader) for reader in readers] == [b"out", b"err"]
        for reader in readers:
            os.close(reader)

    piping(names, test)


def test_process_gets_blocking_descriptors(names: StdioNames) -> None:
    async def test(piped: PipedStreams) -> None:
        streams = piped.streams
        for descriptor in (streams.stdin, streams.stdout, streams.stderr):
            assert os.get_blocking(descriptor)

    piping(names, test)


def test_output_outlives_a_client_that_goes(names: StdioNames) -> None:
    """As when containerd restarts: no SIGPIPE, and what was written is there for the next one."""

    async def test(piped: PipedStreams) -> None:
        os.close(reader_of(names.stdout))
        os.write(piped.streams.stdout, b"meanwhile")
        reader = reader_of(names.stdout)
        assert await read(reader) == b"meanwhile"
        os.close(reader)

    piping(names, test)


def test_output_ends_with_the_process(names: StdioNames) -> None:
    async def test(piped: PipedStreams) -> None:
        reader = reader_of(names.stdout)
        process = os.dup(piped.streams.stdout)
        piped.release()
        assert not is_at_end(reader)
        os.close(process)
        assert is_at_end(reader)
        os.close(reader)

    piping(names, test)


def test_close_may_be_called_twice(names: StdioNames) -> None:
    async def test(piped: PipedStreams) -> None:
        piped.close()
        piped.close_stdin()
        piped.release()

    piping(names, test)


def test_without_names_the_null_device() -> None:
    async def test(piped: PipedStreams) -> None:
        assert os.read(piped.streams.stdin, 1) == b""
        assert os.write(piped.streams.stdout, b"x") == 1
        assert os.write(piped.streams.stderr, b"x") == 1
        piped.close_stdin()

    piping(StdioNames(), test)


def test_log_file_gets_both_outputs(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "container.log"

    async def test(piped: PipedStreams) -> None:
        os.write(piped.streams.stdout, b"out\n")
        os.write(piped.streams.stderr, b"err\n")
        assert log.read_text() == "out\nerr\n"

    piping(StdioNames(stdout=f"file://{log}", stderr=f"file://{log}"), test)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("binary:///usr/bin/logger", UnimplementedError),
        ("http://example.com/", InvalidArgumentError),
        ("/does/not/exist", FileNotFoundError),
    ],
)
def test_output_that_cannot_be_opened(names: StdioNames, name: str, error: type[Exception]) -> None:
    """What was opened before is closed again."""

    async def body() -> None:
        before = open_descriptors()
        with pytest.raises(error):
            PipedStreams(StdioNames(names.stdin, names.stdout, name))
        await until_closed(before)

    run(body)


def test_streams_are_closed_if_the_process_does_not_start(names: StdioNames) -> None:
    async def start(streams: StandardStreams | None, console: Path | None) -> int:
        assert streams is not None
        assert console is None
        raise ShimError("it does not start")

    async def body() -> None:
        before = open_descriptors()
        streams = ProcessStreams(names, terminal=False)
        with pytest.raises(ShimError, match="it does not start"):
            await streams.run(start)
        await until_closed(before)
        await streams.close()

    run(body)


def test_process_without_a_terminal_has_no_size(names: StdioNames) -> None:
    async def body() -> None:
        with pytest.raises(FailedPreconditionError, match="no terminal"):
            ProcessStreams(names, terminal=False).resize(80, 25)

    run(body)


# A terminal


def with_terminal(names: StdioNames, test: Callable[..., Coroutine[Any, Any, None]]) -> None:
    """Run a test with streams and the slave of their terminal, as runc hands it over."""

    async def body() -> None:
        before = open_descriptors()
        master, slave = os.openpty()

        async def start(streams: StandardStreams | None, console: Path | None) -> int:
            assert streams is None
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(str(console))
                socket.send_fds(connection, [b"pty"], [master])
            os.close(master)
            return 42

        streams = ProcessStreams(names, terminal=True)
        assert await streams.run(start) == 42
        reader = reader_of(names.stdout)
        try:
            await test(streams, slave, reader)
        finally:
            if is_open(slave):
                os.close(slave)
            await streams.close()
            os.close(reader)
        assert not open_descriptors() - before

    run(body)


def test_terminal_is_copied_in_both_directions(names: StdioNames) -> None:
    async def test(streams: ProcessStreams, slave: int, reader: int) -> None:
        os.write(slave, b"prompt")
        assert await read(reader) == b"prompt"
        client = writer_of(names.stdin)
        os.write(client, b"typed\n")
        assert await read(slave) == b"typed\n"
        os.close(client)

    with_terminal(names, test)


def test_terminal_has_the_size_that_is_set(names: StdioNames) -> None:
    async def test(streams: ProcessStreams, slave: int, reader: int) -> None:
        streams.resize(120, 50)
        assert tuple(os.get_terminal_size(slave)) == (120, 50)

    with_terminal(names, test)


def test_last_output_of_a_terminal_is_delivered(names: StdioNames) -> None:
    async def test(streams: ProcessStreams, slave: int, reader: int) -> None:
        os.write(slave, b"last words")
        os.close(slave)
        await streams.close()
        assert await read_to_end(reader) == b"last words"

    with_terminal(names, test)


def test_terminal_of_a_process_that_does_not_start(names: StdioNames) -> None:
    """Neither the socket nor its directory is left, and nobody waits for a connection."""
    sockets = []

    async def start(streams: StandardStreams | None, console: Path | None) -> int:
        assert console is not None
        sockets.append(console)
        raise ShimError("it does not start")

    async def body() -> None:
        before = open_descriptors()
        streams = ProcessStreams(names, terminal=True)
        with pytest.raises(ShimError, match="it does not start"):
            await streams.run(start)
        assert not sockets[0].parent.exists()
        await streams.close()
        await until_closed(before)

    run(body)


# FIFOs that somebody else opens and closes


def test_held_output_does_not_end_for_its_reader(names: StdioNames) -> None:
    reader = reader_of(names.stdout)
    with held_open(names):
        os.close(os.open(names.stdout, os.O_RDWR))
        assert not is_at_end(reader)
    assert is_at_end(reader)
    os.close(reader)


def test_held_input_keeps_what_was_written(names: StdioNames) -> None:
    with held_open(names):
        client = writer_of(names.stdin)
        os.write(client, b"early")
        reader = reader_of(names.stdin)
        os.close(client)
        assert os.read(reader, 16) == b"early"
        assert is_at_end(reader)  # no writer of ours
        os.close(reader)


@pytest.mark.parametrize("name", ["", "file:///log", "binary:///logger", "/does/not/exist"])
def test_what_cannot_be_held_is_passed_over(name: str) -> None:
    before = open_descriptors()
    with held_open(StdioNames(name, name, name)):
        pass
    assert open_descriptors() == before


def test_held_fifos_are_let_go_after_an_error(names: StdioNames) -> None:
    before = open_descriptors()
    with pytest.raises(ShimError), held_open(names):
        raise ShimError("in between")
    assert open_descriptors() == before
