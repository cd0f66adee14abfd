"""Connections to PostgreSQL, with a real server: what of a result is taken, and what is left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import asyncpg
import pytest
import uvloop

from containerd_shimkit.postgres_client import (
    PostgresConnection,
    ResultTooLargeError,
    connect,
    copies,
)
from containerd_shimkit.testing.servers.postgres import (
    DATABASE,
    PASSWORD,
    USER,
    running_postgres,
)
from containerd_shimkit.testing.servers.process import Server

MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_postgres() as running:
        yield running


def run(server: Server, main: Callable[[PostgresConnection], Awaitable[None]]) -> None:
    """Call ``main`` with a connection."""

    async def connected() -> None:
        async with asyncio.timeout(60):
            connection = await connect(
                hosts=[(server.host, server.port)],
                user=USER,
                password=PASSWORD,
                database=DATABASE,
                tls=False,
                max_result_bytes=MAX_BYTES,
            )
            try:
                await main(connection)
            finally:
                await connection.quit()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(connected())


async def count(connection: PostgresConnection, table: str) -> int:
    prepared = await connection.prepare(f"SELECT count(*) FROM {table}")
    ((found,),) = await connection.fetch(prepared, ())
    return int(found)


async def ask(connection: PostgresConnection, statement: str, few: bool) -> None:
    prepared = await connection.prepare(statement)
    if few:
        await connection.fetch_few(prepared, (), 10)
    else:
        await connection.fetch(prepared, ())


def test_few_records(server: Server) -> None:
    async def main(connection: PostgresConnection) -> None:
        prepared = await connection.prepare("SELECT generate_series(1, $1::int)")
        records = await connection.fetch_few(prepared, [3], 3)
        assert [tuple(record) for record in records] == [(1,), (2,), (3,)]
        with pytest.raises(ResultTooLargeError, match="more than 2 rows"):
            await connection.fetch_few(prepared, [1_000_000], 2)
        assert connection.usable
        assert await connection.fetch_few(prepared, [0], 2) == []

    run(server, main)


def test_statement_with_too_many_records_is_not_done(server: Server) -> None:
    async def main(connection: PostgresConnection) -> None:
        await connection.execute(await connection.prepare("CREATE TABLE few (id int)"), ())
        insert = await connection.prepare(
            "INSERT INTO few SELECT generate_series(1, $1) RETURNING id"
        )
        with pytest.raises(ResultTooLargeError):
            await connection.fetch_few(insert, [3], 2)
        assert await count(connection, "few") == 0
        assert len(await connection.fetch_few(insert, [2], 2)) == 2
        assert await count(connection, "few") == 2

    run(server, main)


@pytest.mark.parametrize("few", [False, True])
def test_records_of_too_many_bytes(server: Server, few: bool) -> None:
    async def main(connection: PostgresConnection) -> None:
        statement = "SELECT repeat('x', 60000) FROM generate_series(1, 2)"
        with pytest.raises(ResultTooLargeError, match="larger than 100000 bytes"):
            await ask(connection, statement, few)
        assert not connection.usable

    run(server, main)


def test_records_that_nobody_wants(server: Server) -> None:
    async def main(connection: PostgresConnection) -> None:
        await connection.execute(await connection.prepare("CREATE TABLE all_of_them (id int)"), ())
        insert = await connection.prepare(
            "INSERT INTO all_of_them SELECT generate_series(1, $1) RETURNING id"
        )
        await connection.execute(insert, [1000])
        assert await count(connection, "all_of_them") == 1000

    run(server, main)


@pytest.mark.parametrize("few", [False, True])
def test_call_that_is_cut_off(server: Server, few: bool) -> None:
    async def main(connection: PostgresConnection) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(connection, "SELECT pg_sleep(60)", few), 0.2)
        assert not connection.usable

    run(server, main)


@pytest.mark.parametrize("few", [False, True])
def test_cancelling_does_not_wait_for_a_server_that_waits(server: Server, few: bool) -> None:
    """What cancels a statement has no effect on one that reads from the client."""

    async def main(connection: PostgresConnection) -> None:
        await connection.execute(await connection.prepare("CREATE TEMP TABLE mine (id int)"), ())
        asking = asyncio.create_task(ask(connection, "COPY mine FROM STDIN", few))
        await asyncio.wait((asking,), timeout=0.5)
        asking.cancel()
        done, _ = await asyncio.wait((asking,), timeout=30)
        assert done
        assert asking.cancelled()
        assert not connection.usable
        connection.abort()

    run(server, main)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("COPY t FROM STDIN", True),
        ("copy (SELECT 1) TO stdout", True),
        (" -- copy\n /* a */ /* b */\tCopy t from\nstdin", True),
        ("COPY t FROM '/tmp/file'", False),
        ("SELECT 'copy t from stdin'", False),
        ("/**/" * 100_000, False),
        ("/* copy t from stdin", False),
    ],
)
def test_copies(statement: str, expected: bool) -> None:
    assert copies(statement) is expected


def test_types_that_cannot_be_exchanged(server: Server) -> None:
    async def main(connection: PostgresConnection) -> None:
        with pytest.raises(ValueError, match="unknown type"):
            await connection.exchange(["no-such-type"], str, str, "text")
        assert not connection.usable

    run(server, main)


@pytest.mark.parametrize("piece", [1, 3, 5, 1000])
@pytest.mark.parametrize(
    "answer", [bytes(5000), b"R\0\0\0\x08\0\0\0\0Z\xff\xff\xff\xff" + bytes(100)]
)
def test_messages_of_no_length_do_not_stop_the_loop(answer: bytes, piece: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        for start in range(0, min(len(answer), 40 * piece), piece):
            writer.write(answer[start : start + piece])
            await asyncio.sleep(0)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    async def main() -> None:
        async with asyncio.timeout(60), await asyncio.start_server(serve, "127.0.0.1") as server:
            with pytest.raises((OSError, asyncpg.PostgresError)):
                await connect(
                    hosts=[server.sockets[0].getsockname()],
                    user=USER,
                    password=PASSWORD,
                    database=DATABASE,
                    tls=False,
                    max_result_bytes=MAX_BYTES,
                )

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
