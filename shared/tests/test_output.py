"""The container's output: never waited for, in order, and its loss told."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from containerd_shimkit.output import MAX_BUFFERED_BYTES, OutputHandler, OutputWriter

DEADLINE = 20.0  # seconds


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            continue


def fill(writer: OutputWriter) -> int:
    """Fill the pipe, and nothing beyond; return how many bytes it took."""
    total = 0
    try:
        while True:
            total += os.write(writer.descriptor, b"." * 4096)
    except BlockingIOError:
        return total


async def drain(reader: int, expected: int) -> bytes:
    """Read until there are ``expected`` bytes, as the loop finds them."""
    data = bytearray()
    done = asyncio.Event()

    def read() -> None:
        try:
            data.extend(os.read(reader, 1 << 16))
        except BlockingIOError:
            return
        if len(data) >= expected:
            done.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(reader, read)
    try:
        async with asyncio.timeout(DEADLINE):
            await done.wait()
    finally:
        loop.remove_reader(reader)
    return bytes(data)


def test_output_goes_out_at_once(pipe: tuple[int, int]) -> None:
    OutputWriter(pipe[1]).write(b"line\n")
    assert os.read(pipe[0], 100) == b"line\n"


def test_writing_nothing_is_nothing(pipe: tuple[int, int]) -> None:
    OutputWriter(pipe[1]).write(b"")
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 1)


def test_full_pipe_does_not_block_and_order_is_kept(pipe: tuple[int, int]) -> None:
    async def main() -> None:
        writer = OutputWriter(pipe[1])
        filled = fill(writer)
        lines = b"".join(b"line %d\n" % number for number in range(1000))
        for line in lines.splitlines(keepends=True):
            writer.write(line)
        got = await drain(pipe[0], filled + len(lines))
        assert got[filled:] == lines
        writer.write(b"afterwards\n")
        assert await drain(pipe[0], 11) == b"afterwards\n"

    asyncio.run(main())


def test_one_write_larger_than_the_pipe_arrives_whole(pipe: tuple[int, int]) -> None:
    async def main() -> None:
        data = bytes(n % 251 for n in range(MAX_BUFFERED_BYTES))
        OutputWriter(pipe[1]).write(data)
        assert await drain(pipe[0], len(data)) == data

    asyncio.run(main())


NOTICE = rb"\[(\d+) bytes of output dropped: nobody read it\]\n"


@pytest.mark.parametrize("piece", [100, 1000, 70_000, 3 << 20])
def test_output_beyond_the_bound_is_dropped_and_told(pipe: tuple[int, int], piece: int) -> None:
    """What arrives is the beginning, then how much is missing, then what came later."""

    async def main() -> None:
        writer = OutputWriter(pipe[1])
        filled = fill(writer)
        written = bytearray()
        while len(written) < 2 * MAX_BUFFERED_BYTES:
            data = b"%07d\n" % len(written) * (piece // 8 + 1)
            written += data
            writer.write(data)
        got = (await drain(pipe[0], filled + MAX_BUFFERED_BYTES + 30))[filled:]
        found = re.search(NOTICE, got)
        assert found is not None
        assert bytes(written[: found.start()]) == got[: found.start()]
        assert int(found[1]) == len(written) - found.start()
        assert found.start() == MAX_BUFFERED_BYTES
        writer.write(b"later\n")
        rest = got[found.end() :] + await drain(pipe[0], 6)
        assert rest == b"later\n"

    asyncio.run(main())


def test_after_a_loss_nothing_comes_before_the_notice(pipe: tuple[int, int]) -> None:
    """Though there is room again: or it would seem that what was lost came later."""

    async def main() -> None:
        writer = OutputWriter(pipe[1])
        filled = fill(writer)
        writer.write(b"a" * (MAX_BUFFERED_BYTES + 10))
        assert len(os.read(pipe[0], filled)) == filled
        await asyncio.sleep(0)  # the loop may now fill the pipe from the buffer
        await asyncio.sleep(0)
        writer.write(b"b" * 10)
        got = await drain(pipe[0], MAX_BUFFERED_BYTES + 30)
        assert re.fullmatch(b"a+" + NOTICE + b"b*", got)

    asyncio.run(main())


def test_closed_reader_is_no_error(pipe: tuple[int, int]) -> None:
    async def main() -> None:
        writer = OutputWriter(pipe[1])
        writer.write(b"seen\n")
        os.close(pipe[0])
        for _ in range(100):
            writer.write(b"x" * 100_000)
        await asyncio.sleep(0)

    asyncio.run(main())


def test_reader_that_goes_away_while_output_waits(pipe: tuple[int, int]) -> None:
    """What waits is given up, and the loop is not kept busy."""

    async def main() -> None:
        writer = OutputWriter(pipe[1])
        fill(writer)
        writer.write(b"x" * (MAX_BUFFERED_BYTES + 1))
        os.close(pipe[0])
        async with asyncio.timeout(DEADLINE):
            while writer._buffer or writer._dropped:  # noqa: ASYNC110
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not asyncio.get_running_loop().remove_writer(pipe[1])

    asyncio.run(main())


def test_without_a_loop_what_fits_is_written(pipe: tuple[int, int]) -> None:
    """Nobody would say when there is room: the rest is lost, and nothing blocks."""
    writer = OutputWriter(pipe[1])
    writer.write(b"first\n")
    fill(writer)
    writer.write(b"lost\n")
    while True:
        try:
            data = os.read(pipe[0], 1 << 16)
        except BlockingIOError:
            break
        assert b"lost" not in data
    writer.write(b"again\n")
    assert os.read(pipe[0], 100) == b"again\n"


@pytest.mark.parametrize("inside_loop", [False, True])
def test_regular_file_takes_everything(tmp_path: Path, inside_loop: bool) -> None:
    path = tmp_path / "log"
    data = b"x" * (MAX_BUFFERED_BYTES * 3)

    async def main() -> None:
        write()

    def write() -> None:
        with open(path, "wb", buffering=0) as file:
            writer = OutputWriter(file.fileno())
            writer.write(data)
            writer.write(b"end\n")

    asyncio.run(main()) if inside_loop else write()
    assert path.read_bytes() == data + b"end\n"


def test_handler_writes_lines_with_time_in_utc(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    handler = OutputHandler(OutputWriter(pipe[1]))
    record = logging.LogRecord("n", logging.WARNING, "p", 1, "what %s", ("happened",), None)
    record.created = 0
    handler.handle(record)
    broken = logging.LogRecord("n", logging.INFO, "p", 1, "\udcff", (), None)
    broken.created = 0
    handler.handle(broken)
    assert os.read(pipe[0], 1000) == (
        b"1970-01-01T00:00:00Z WARNING what happened\n1970-01-01T00:00:00Z INFO ?\n"
    )
