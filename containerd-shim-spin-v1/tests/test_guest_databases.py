"""Real guests run statements of PostgreSQL and MySQL, by the interface of each generation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import fetch
from containerd_shimkit.testing.servers.mariadb import mysql_url, running_mariadb
from containerd_shimkit.testing.servers.postgres import postgres_url, running_postgres
from containerd_shimkit.testing.servers.process import Server

VERSIONS = ["v1", "v1.5", "v2"]
MANIFEST = """
spin_manifest_version = 2
[application]
name = "test"
[[trigger.http]]
route = "/..."
component = "databases"
[component.databases]
source = "databases.wasm"
allowed_outbound_hosts = ["postgres://127.0.0.0/8:*", "mysql://127.0.0.0/8:*"]
"""
TEN_MEGABYTES = 10 << 20


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with running_postgres() as running:
        yield running


@pytest.fixture(scope="module")
def mariadb() -> Iterator[Server]:
    with running_mariadb() as running:
        yield running


@pytest.fixture
def app(image: Any) -> Any:
    image.component("databases", "/...")
    image.manifest(MANIFEST)
    return image


async def ask(port: int, path: str, address: str, *lines: str) -> list[str]:
    """Have one guest make calls, whose fields ``|`` separates here; return what it says of each."""
    response = await fetch(
        port,
        f"/{path}",
        method="POST",
        headers=[("address", address.encode())],
        body="\n".join(line.replace("|", "\t") for line in lines).encode(),
    )
    assert response.status == 200, response
    return response.text.splitlines()


def check(app: Any, path: str, address: str, calls: list[tuple[str, str]]) -> None:
    """Have one guest make calls, and compare what it is answered."""

    async def main(port: int) -> None:
        answers = await ask(port, path, address, *(line for line, _ in calls))
        assert list(zip((line for line, _ in calls), answers, strict=True)) == calls

    app.run(main)


def code(version: str, number: int) -> str:
    """Return how an error is shown. number: of its case in 1.x, which has ``success`` besides."""
    return f"error {number - 1 if version == 'v2' else number}"


def told(size: int) -> str:
    """Return what the guest says of its own value of ``size`` bytes."""
    value = (b"abcdefghijklmnopqrstuvwxyz" * (size // 26 + 1))[:size]
    return f"{size} bytes, sum {sum(byte * place for place, byte in enumerate(value, 1))}"


@pytest.mark.parametrize("version", VERSIONS)
def test_postgres(app: Any, postgres: Server, version: str) -> None:
    check(
        app,
        f"pg/{version}",
        postgres_url(postgres),
        [
            ("execute|CREATE TEMP TABLE t (a int, b text)", "0"),
            ("query|SELECT * FROM t", ""),
            ("execute|INSERT INTO t VALUES ($1, $2), (2, NULL)|int32:1|str:schön", "2"),
            ("query|SELECT * FROM t ORDER BY a", "a 3, b 11; 3:1, 11:'schön'; 3:2, 13"),
            ("query|SELECT $1::bool AS x|boolean:true", "x 0; 0:true"),
            ("query|SELECT $1::int2 AS x|int8:-128", "x 2; 2:-128"),
            ("query|SELECT $1::int2 AS x|int16:-32768", "x 2; 2:-32768"),
            ("query|SELECT $1::int4 AS x|int32:-2147483648", "x 3; 3:-2147483648"),
            (
                "query|SELECT $1::int8 AS x|int64:-9223372036854775808",
                "x 4; 4:-9223372036854775808",
            ),
            ("query|SELECT $1::float4 AS x|floating32:0.1", "x 9; 9:0.100000001"),
            ("query|SELECT $1::float8 AS x|floating64:0.1", "x 10; 10:0.10000000000000001"),
            ("query|SELECT $1::text AS x|str:it's", "x 11; 11:'it's'"),
            ("query|SELECT $1::bytea AS x|binary:\x01é", "x 12; 12:x01c3a9"),
            ("query|SELECT $1::int4 AS x|db-null:", "x 3; 13"),
            ("query|SELECT now() AS x, 1 AS y", "x 13, y 3; 14, 3:1"),
        ],
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_mysql(app: Any, mariadb: Server, version: str) -> None:
    columns = "a TINYINT UNSIGNED, b FLOAT, c TEXT, d BLOB"
    check(
        app,
        f"mysql/{version}",
        mysql_url(mariadb),
        [
            (f"execute|CREATE TEMPORARY TABLE t (id INT AUTO_INCREMENT KEY, {columns})", "ok"),
            ("query|SELECT a FROM t", "a 5"),
            (
                "execute|INSERT INTO t (a, b, c, d) VALUES (?, ?, ?, ?)"
                "|uint8:255|floating32:0.1|str:it's schön|binary:\x01é",
                "ok",
            ),
            (
                "query|SELECT a, b, c, d FROM t",
                "a 5, b 9, c 11, d 12; 5:255, 9:0.100000001, 11:'it's schön', 12:x01c3a9",
            ),
            ("query|SELECT LAST_INSERT_ID() AS x", "x 8; 8:1"),
            ("query|SELECT ? AS x|int64:-9223372036854775808", "x 4; 4:-9223372036854775808"),
            ("query|SELECT ? AS x|uint64:18446744073709551615", "x 8; 8:18446744073709551615"),
            ("query|SELECT ? AS x|floating64:0.1", "x 10; 10:0.10000000000000001"),
            ("query|SELECT ? AS x|int8:-1", "x 4; 4:-1"),
            ("query|SELECT ? AS x|int16:-2", "x 4; 4:-2"),
            ("query|SELECT ? AS x|int32:-3", "x 4; 4:-3"),
            ("query|SELECT ? AS x|uint16:4", "x 8; 8:4"),
            ("query|SELECT ? AS x|uint32:5", "x 8; 8:5"),
            ("query|SELECT ? AS x|boolean:true", "x 4; 4:1"),
            ("execute|UPDATE t SET a = ?|db-null:", "ok"),
            ("query|SELECT a FROM t", "a 5; 13"),
        ],
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_large_values(app: Any, postgres: Server, mariadb: Server, version: str) -> None:
    value = told(TEN_MEGABYTES)
    check(
        app,
        f"pg/{version}",
        postgres_url(postgres),
        [
            (f"query|SELECT $1::text AS x|str:@{TEN_MEGABYTES}", f"x 11; 11:{value}"),
            (f"query|SELECT $1::bytea AS x|binary:@{TEN_MEGABYTES}", f"x 12; 12:{value}"),
        ],
    )
    check(
        app,
        f"mysql/{version}",
        mysql_url(mariadb),
        [
            ("execute|CREATE TEMPORARY TABLE t (a LONGTEXT, b LONGBLOB)", "ok"),
            (
                f"execute|INSERT INTO t VALUES (?, ?)|str:@{TEN_MEGABYTES}|binary:@{TEN_MEGABYTES}",
                "ok",
            ),
            ("query|SELECT * FROM t", f"a 11, b 12; 11:{value}, 12:{value}"),
        ],
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_statements_that_fail(app: Any, postgres: Server, mariadb: Server, version: str) -> None:
    check(
        app,
        f"pg/{version}",
        postgres_url(postgres),
        [
            (
                "query|selec",
                code(version, 3) + ' syntax error at or near "selec" (SQLSTATE 42601)',
            ),
            ("execute|SELECT 1/0", code(version, 3) + " division by zero (SQLSTATE 22012)"),
            (
                "query|SELECT $1::int4|str:1",
                code(version, 3) + " parameter $1 is str, which is no value for type int4",
            ),
            (
                "query|SELECT $1::int8|uint8:1",
                code(version, 2) + " PostgreSQL has no unsigned integers",
            ),
            (
                "execute|SELECT $1::int8|uint64:1",
                code(version, 4) + " PostgreSQL has no unsigned integers",
            ),
            ("query|SELECT 1 AS x", "x 3; 3:1"),
        ],
    )
    syntax = (
        " You have an error in your SQL syntax; check the manual that corresponds to your MariaDB "
        "server version for the right syntax to use near 'selec' at line 1 (error 1064)"
    )
    check(
        app,
        f"mysql/{version}",
        mysql_url(mariadb),
        [
            ("query|selec", code(version, 3) + syntax),
            ("execute|selec", code(version, 3) + syntax),
            (
                "query|SELECT ?",
                code(version, 3) + " the statement has 1 parameters, and 0 were given",
            ),
            (
                "query|SELECT NOW() AS x",
                code(version, 4) + " a value of column 'x' is of a type that guests have not",
            ),
            ("query|SELECT 1 AS x", "x 3; 3:1"),
        ],
    )


KINDS: list[tuple[str, str, Callable[..., str]]] = [
    ("pg", "postgres", postgres_url),
    ("mysql", "mysql", mysql_url),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("kind", "scheme", "url"), KINDS, ids=["pg", "mysql"])
def test_servers_that_do_not_let_in(
    app: Any,
    postgres: Server,
    mariadb: Server,
    kind: str,
    scheme: str,
    url: Callable[..., str],
    version: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = postgres if kind == "pg" else mariadb
    dead = "{}:{}".format(*free_address())
    cases = {
        url(server, password="wr0ng"): f"cannot connect to {scheme}://{server.address}: ",
        f"{scheme}://u:wr0ng@{dead}/d": f"cannot connect to {scheme}://{dead}: ",
        f"{scheme}://u:wr0ng@db.example:99/d": (
            f"component 'databases' may not connect to {scheme}://db.example:99: it needs "
            f'allowed_outbound_hosts = ["{scheme}://db.example:99"] in the manifest'
        ),
        "redis://u:wr0ng@h": "the address must be a URL with ",
    }

    async def main(port: int) -> None:
        for address, message in cases.items():
            answers = await ask(port, f"{kind}/{version}", address, "query|SELECT 1")
            assert answers[0].startswith(f"{code(version, 1)} {message}"), answers
            assert "wr0ng" not in answers[0]

    app.run(main)
    assert f"{scheme}://db.example:99" in caplog.text
    assert "wr0ng" not in caplog.text


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("kind", "scheme", "url"), KINDS, ids=["pg", "mysql"])
def test_a_transaction_ends_with_its_guest(
    app: Any,
    postgres: Server,
    mariadb: Server,
    kind: str,
    scheme: str,
    url: Callable[..., str],
    version: str,
) -> None:
    server = postgres if kind == "pg" else mariadb
    path, address, table = f"{kind}/{version}", url(server), f"tx_{version.replace('.', '')}"

    async def main(port: int) -> None:
        await ask(port, path, address, f"execute|CREATE TABLE {table} (a INT)")
        insert = f"execute|INSERT INTO {table} VALUES (1)"
        await ask(port, path, address, "execute|BEGIN", insert, insert)
        await ask(port, path, address, "execute|BEGIN", insert, "execute|COMMIT")
        answers = await ask(port, path, address, f"query|SELECT a FROM {table}")
        assert answers == ["a 3; 3:1"]
        await ask(port, path, address, f"execute|DROP TABLE {table}")

    app.run(main)


@pytest.mark.parametrize(("kind", "scheme", "url"), KINDS, ids=["pg", "mysql"])
def test_connections_of_one_guest(
    app: Any,
    postgres: Server,
    mariadb: Server,
    kind: str,
    scheme: str,
    url: Callable[..., str],
) -> None:
    address = url(postgres if kind == "pg" else mariadb)
    temporary = "TEMP" if kind == "pg" else "TEMPORARY"
    done = "0" if kind == "pg" else "ok"

    async def main(port: int) -> None:
        answers = await ask(
            *(port, f"{kind}/v2", address),
            *(f"execute|CREATE {temporary} TABLE one (a INT)", f"open|{address}"),
            *("query|SELECT a FROM one", "use|0", "query|SELECT a FROM one", "drop"),
            *("query|SELECT 1", "use|1", "query|SELECT 1 AS x", *[f"open|{address}"] * 16),
        )
        assert answers[:2] == [done, "1"]
        assert answers[2].startswith("error 2 ")
        assert answers[3:] == [
            *("ok", "" if kind == "pg" else "a 3", "ok", "error 0 there is no connection 0"),
            *("ok", "x 3; 3:1", *(str(number) for number in range(2, 17))),
            "error 0 a guest may have 16 connections to databases",
        ]

    app.run(main)


def test_many_guests_wait_at_once(app: Any, postgres: Server) -> None:
    """They share connections: what they wait for is done 32 at a time."""

    async def main(port: int) -> None:
        address = postgres_url(postgres, options="?sslmode=disable")

        async def wait() -> None:
            answers = await ask(port, "pg/v1", address, "query|SELECT 1 AS x FROM pg_sleep(0.02)")
            assert answers == ["x 3; 3:1"]

        start = time.monotonic()
        await asyncio.gather(*(wait() for _ in range(300)))
        assert time.monotonic() - start < 20

    app.run(main, SPIN_MAX_INSTANCE_COUNT="300")


@pytest.mark.parametrize(
    ("kind", "statement"), [("pg", "SELECT pg_sleep(600)"), ("mysql", "SELECT SLEEP(2)")]
)
def test_request_that_takes_too_long(
    app: Any, postgres: Server, mariadb: Server, kind: str, statement: str
) -> None:
    address = postgres_url(postgres) if kind == "pg" else mysql_url(mariadb)

    async def main(port: int) -> None:
        headers = [("address", address.encode())]
        body = f"query\t{statement}".encode()
        for _ in range(3):
            response = await fetch(port, f"/{kind}/v1", method="POST", headers=headers, body=body)
            assert response.status == 504
            answers = await ask(port, f"{kind}/v1", address, "query|SELECT 1 AS x")
            assert answers == ["x 3; 3:1"]

    app.run(main, SPIN_HTTP_REQUEST_TIMEOUT_SECONDS="0.5")


@pytest.mark.parametrize("kind", ["pg", "mysql"])
def test_large_result(app: Any, postgres: Server, mariadb: Server, kind: str) -> None:
    """Many rows are handed over, and one guest's do not keep others waiting for long."""
    address = postgres_url(postgres) if kind == "pg" else mysql_url(mariadb)
    statement = (
        "SELECT n::int8 FROM generate_series(1, 50000) AS n"
        if kind == "pg"
        else "SELECT CAST(seq AS SIGNED) AS n FROM seq_1_to_50000"
    )

    async def main(port: int) -> None:
        (answer,) = await ask(port, f"{kind}/v1", address, f"query|{statement}")
        assert answer.startswith("n 4; 4:1; 4:2; ")
        assert answer.endswith("; 4:50000")

    app.run(main)
