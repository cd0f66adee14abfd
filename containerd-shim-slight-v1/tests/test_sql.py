"""``sql`` and PostgreSQL, called by guests."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from containerd_shim_slight_v1.capabilities.sql import postgres
from containerd_shim_slight_v1.capabilities.sql.placeholders import numbered
from containerd_shimkit import pool
from containerd_shimkit.postgres_client import PostgresConnection, connect
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import fetch
from containerd_shimkit.testing.servers.postgres import (
    DATABASE,
    PASSWORD,
    USER,
    postgres_url,
    running_postgres,
)
from containerd_shimkit.testing.servers.process import Server

Image = Any  # of conftest.py


def slightfile(url: str) -> str:
    return (
        'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "api"\n'
        '[[capability]]\nresource = "sql.postgres"\nname = "db"\n'
        f'[capability.configs]\nPOSTGRES_CONNECTION_URL = "{url}"\n'
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_postgres() as running:
        yield running


@pytest.fixture
def app(image: Image, server: Server) -> Image:
    image.guest("sql")
    image.slightfile(slightfile(postgres_url(server)))
    return image


async def ask(port: int, call: str, statement: str, *parameters: str) -> tuple[int, str]:
    headers = [("x-p", parameter) for parameter in parameters]
    answer = await fetch(port, f"/{call}", method="PUT", body=statement.encode(), headers=headers)
    return answer.status, answer.text


async def query(port: int, statement: str, *parameters: str) -> list[str]:
    status, text = await ask(port, "query", statement, *parameters)
    assert status == 200, text
    return text.splitlines()


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7::smallint", "int32 7"),
        ("(-2147483648)::int", "int32 -2147483648"),
        ("9223372036854775807::bigint", "int64 9223372036854775807"),
        ("1.5::real", "float 1.5"),
        ("1e300::float8", "double 1e+300"),
        ("'nan'::float8", "double nan"),
        ("true", "boolean 1"),
        ("false", "boolean 0"),
        ("'größe'::text", "str größe"),
        ("'a'::varchar(3)", "str a"),
        ("date '2024-02-29'", "date 2024-02-29"),
        ("time '23:59:01.5'", "time 23:59:01.5"),
        ("timestamp '20000-01-01 00:00:00'", "timestamp 20000-01-01 00:00:00"),
        ("'\\x414243'::bytea", "binary ABC"),
        ("12345678901234567890.5::numeric", "str 12345678901234567890.5"),
        ("'{\"a\": 1}'::jsonb", 'str {"a": 1}'),
        ("NULL::int", "null "),
        ("array[1, 2]", "null "),
    ],
)
def test_values(app: Image, expression: str, value: str) -> None:
    async def main(port: int) -> None:
        assert await query(port, f"SELECT {expression} AS v") == [f"v {value}"]

    app.run(main)


def test_statements_with_parameters(app: Image) -> None:
    async def main(port: int) -> None:
        table = "people"
        create = f"CREATE TABLE {table} (name text PRIMARY KEY, age int, born date, data bytea)"
        assert await ask(port, "exec", create) == (204, "")
        insert = f"INSERT INTO {table} VALUES ($1, $2, $3, $4)"
        values = ("O'Neil \\?", "32", "1990-01-02", "\\x4142")
        assert await ask(port, "exec", insert, *values) == (204, "")
        insert = f"INSERT INTO {table} VALUES (?, ?) /* ? */ RETURNING name || '?' AS name"
        assert await query(port, insert, "Ann", "44") == ["name str Ann?"]
        select = f"SELECT name, age FROM {table} WHERE age > ? ORDER BY age"
        assert await query(port, select, "31") == [
            *("name str O'Neil \\?", "age int32 32", "name str Ann", "age int32 44")
        ]
        for given in ([], ["1", "2"]):
            text = f"3 the statement has 1 parameters, and {len(given)} were given"
            assert await ask(port, "query", select, *given) == (418, text)

    app.run(main)


@pytest.mark.parametrize(
    ("statement", "answer"),
    [
        ("SELEC 1", "0 syntax error"),
        ("SELECT * FROM nothing", '0 relation "nothing" does not exist (SQLSTATE 42P01)'),
        ("INSERT INTO strict VALUES (1), (1)", "1 duplicate key"),
        ("SET ROLE nobody; SELECT 1", "0 cannot insert multiple commands"),
        ("COPY strict FROM STDIN", "3 COPY from and to the client is not supported"),
        ("SELECT '\0'", "3 the statement holds a NUL"),
        ("SELECT 1/0", "3 division by zero (SQLSTATE 22012)"),
        ("SELECT 'a'::int", "3 invalid input syntax"),
    ],
)
def test_errors(app: Image, statement: str, answer: str) -> None:
    async def main(port: int) -> None:
        await ask(port, "exec", "CREATE TABLE IF NOT EXISTS strict (id int PRIMARY KEY)")
        for call in ("query", "exec"):
            status, text = await ask(port, call, statement)
            assert status == 418
            assert text.startswith(answer), text
        assert await query(port, "SELECT 1 AS one") == ["one int32 1"]

    app.run(main)


def test_what_a_guest_sets_is_not_there_for_the_next(
    app: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "ADDRESS_LIMIT", 1)

    async def main(port: int) -> None:
        for statement in ("BEGIN", "SET search_path = nowhere", "CREATE TEMP TABLE mine (id int)"):
            assert await ask(port, "exec", statement) == (204, "")
        assert (await ask(port, "query", "SELECT * FROM mine"))[0] == 418
        assert await query(port, "SHOW search_path") == ['search_path str "$user", public']

    app.run(main)


class Gate:
    """A lock that the test has, for guests to wait at, each on a connection."""

    WAIT = "SELECT pg_advisory_lock_shared(1)::text AS l"

    def __init__(self, connection: PostgresConnection) -> None:
        self._connection = connection

    async def waiting(self) -> int:
        return int(await self._ask("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    async def wait_for(self, count: int) -> None:
        """Return when so many wait."""
        async with asyncio.timeout(60):
            while await self.waiting() < count:
                pass

    async def open(self) -> None:
        await self._ask("SELECT pg_advisory_unlock(1)")

    async def close(self) -> None:
        await self._ask("SELECT pg_advisory_lock(1)")

    async def _ask(self, statement: str) -> str:
        prepared = await self._connection.prepare(statement)
        ((value,),) = await self._connection.fetch(prepared, ())
        return str(value)


@asynccontextmanager
async def closed_gate(server: Server) -> AsyncIterator[Gate]:
    connection = await connect(
        hosts=[(server.host, server.port)],
        user=USER,
        password=PASSWORD,
        database=DATABASE,
        tls=False,
        max_result_bytes=1 << 20,
    )
    try:
        gate = Gate(connection)
        await gate.close()
        yield gate
    finally:
        await connection.quit()


def test_many_wait_at_once(app: Image, server: Server) -> None:
    """200 guests, and 32 connections: who finds none free waits for one."""

    async def main(port: int) -> None:
        async with closed_gate(server) as gate, asyncio.timeout(60), asyncio.TaskGroup() as group:
            waiting = [group.create_task(query(port, Gate.WAIT)) for _ in range(200)]
            await gate.wait_for(pool.ADDRESS_LIMIT)
            assert await gate.waiting() == pool.ADDRESS_LIMIT
            await gate.open()
        assert [task.result() for task in waiting] == [["l str "]] * 200

    app.run(main, SLIGHT_MAX_INSTANCE_COUNT="200")


def test_no_connection_that_becomes_free(
    app: Image, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "ADDRESS_LIMIT", 1)
    monkeypatch.setattr(postgres, "_WAIT_SECONDS", 0.1)

    async def main(port: int) -> None:
        async with closed_gate(server) as gate, asyncio.timeout(60):
            waiting = asyncio.create_task(query(port, Gate.WAIT))
            await gate.wait_for(1)
            reason = f"3 {server.address}: no connection became free within 0.1 s"
            assert await ask(port, "query", "SELECT 1") == (418, reason)
            await gate.open()
            assert await waiting == ["l str "]

    app.run(main)


def test_guest_that_is_cut_off_leaves_no_connection(
    app: Image, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "ADDRESS_LIMIT", 1)

    async def main(port: int) -> None:
        async with closed_gate(server) as gate, asyncio.timeout(60):
            # The second finds the only connection taken.
            answers = await asyncio.gather(*(ask(port, "query", Gate.WAIT) for _ in range(2)))
            assert [status for status, _ in answers] == [504, 504]
            assert await query(port, "SELECT 1 AS one") == ["one int32 1"]
            assert await gate.waiting() == 0

    app.run(main, SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS="1")


def test_connection_that_was_closed_while_idle(app: Image) -> None:
    async def main(port: int) -> None:
        await query(port, "SELECT 1 AS one")
        end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        await ask(port, "exec", end)
        assert await query(port, "SELECT 1 AS one") == ["one int32 1"]

    app.run(main)


TOO_LARGE = "3 the result has more than 100000 values or 67108864 bytes"


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT generate_series(1, 100001)",
        "SELECT n, n FROM generate_series(1, 50001) AS n",
        f"SELECT 1 AS {'n' * 63} FROM generate_series(1, 100000)",
        "SELECT repeat('x', 10000000) FROM generate_series(1, 80)",
        "SELECT repeat('x', 300000000)",
        "SELECT repeat('x', 10000) FROM generate_series(1, 100000)",
    ],
)
def test_too_large_a_result(app: Image, statement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "nnn" in statement:
        monkeypatch.setattr(postgres, "MAX_RESULT_BYTES", 67108864 // 20)

    async def main(port: int) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        status, text = await ask(port, "query", statement)
        assert (status, text.split()[:5]) == (418, TOO_LARGE.split()[:5])
        # Neither the whole result nor a whole value of it is in memory at any time.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250 << 10
        assert await query(port, "SELECT 1 AS one") == ["one int32 1"]

    app.run(main)


def test_results_that_nobody_asked_for(app: Image) -> None:
    async def main(port: int) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert await ask(port, "exec", "SELECT generate_series(1, 2000000)") == (204, "")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
        status, text = await ask(port, "exec", "SELECT repeat('x', 300000000)")
        assert (status, text) == (418, TOO_LARGE)

    app.run(main)


@pytest.mark.parametrize("output", ["escape", "hex"])
def test_binary_values(app: Image, output: str) -> None:
    async def set_form(port: int) -> None:
        statement = f"ALTER DATABASE {DATABASE} SET bytea_output = {output}"
        assert await ask(port, "exec", statement) == (204, "")

    app.run(set_form)
    app.sockets.clear()

    async def main(port: int) -> None:
        assert await query(port, "SHOW bytea_output") == [f"bytea_output str {output}"]
        [found] = await query(port, "SELECT decode('615c62c3bf01', 'hex') AS v")
        assert found == "v binary a\\bÿ\x01"

    app.run(main)


def test_wrong_password_is_in_no_message(image: Image, server: Server) -> None:
    image.guest("sql")
    image.slightfile(slightfile(postgres_url(server, password="s3cret")))

    async def main(port: int) -> None:
        status, text = await ask(port, "query", "SELECT 1")
        assert (status, text[:2], "s3cret" in text) == (418, "2 ", False)

    image.run(main)


def test_long_statements(app: Image) -> None:
    async def main(port: int) -> None:
        text = "x" * (300 << 10)
        assert await query(port, f"SELECT length('{text}') AS n") == [f"n int32 {len(text)}"]
        reason = "3 a statement with ? has more than 262144 characters"
        assert await ask(port, "query", f"SELECT length('{text}?')") == (418, reason)

    app.run(main)


def test_server_that_is_down(image: Image) -> None:
    image.guest("sql")
    where = "{}:{}".format(*free_address())
    image.slightfile(slightfile(f"postgres://a:s3cret@{where}/b"))

    async def main(port: int) -> None:
        assert await ask(port, "query", "SELECT 1") == (
            418,
            f"3 {where}: the server does not answer",
        )

    image.run(main)


@pytest.mark.parametrize(
    "url", ["", "http://s3cret@h/", "postgres://h/", "postgres://a@h/?x=s3cret"]
)
def test_url_that_is_none(image: Image, url: str) -> None:
    image.guest("sql")
    image.slightfile(slightfile(url))

    async def main(port: int) -> None:
        status, text = await ask(port, "query", "SELECT 1")
        assert text.startswith("3 POSTGRES_CONNECTION_URL ")
        assert (status, "s3cret" in text) == (418, False)

    image.run(main)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = ? AND b = ?", "a = $1 AND b = $2"),
        ("a = $1 AND b ? 'c'", "a = $1 AND b ? 'c'"),
        ("'?' \"?\" $$?$$ $a$?$a$ -- ?\n/* ? */ ?", "'?' \"?\" $$?$$ $a$?$a$ -- ?\n/* ? */ $1"),
        (r"'it''s ?' e'\'?' ?", r"'it''s ?' e'\'?' $1"),
        (r"E'it''s \'?\\' ? note'\' ?", r"E'it''s \'?\\' $1 note'\' $2"),
        ("a$b$c = ? AND d$b$ = ?", "a$b$c = $1 AND d$b$ = $2"),
        ('"a"" ?" ?', '"a"" ?" $1'),
        ("? $a$ ?", "$1 $a$ ?"),
        ("? '?", "$1 '?"),
        ("? e'\\", "$1 e'\\"),
    ],
)
def test_placeholders(text: str, expected: str) -> None:
    assert numbered(text) == expected


@pytest.mark.parametrize(
    "part", ["/*", "'", "e'\\", '"', "$a$b", "$", "--", "?", "$1", "/*'", "$a_", "e'", "''\"\""]
)
def test_placeholders_of_long_statements(part: str) -> None:
    """Their time is in proportion to the length, or this would not end."""
    numbered(part * 300_000)
    numbered("x" + part * 300_001)


def test_a_long_string_takes_no_time() -> None:
    text = f"? e'{'a' * (16 << 20)}' '{'a' * (16 << 20)}'"
    start = time.monotonic()
    assert numbered(text) == f"$1{text[1:]}"
    assert time.monotonic() - start < 5
