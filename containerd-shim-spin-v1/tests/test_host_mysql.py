"""MySQL for guests, against a real MariaDB server."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from containerd_shim_spin_v1.host.database import (
    NULL,
    Column,
    ConnectionFailedError,
    DatabaseError,
    DataType,
    Kind,
    OtherDatabaseError,
    QueryFailedError,
    Value,
    ValueConversionFailedError,
)
from containerd_shim_spin_v1.host.mysql import MysqlHost, MysqlSession
from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.outbound.access import DestinationNotAllowedError, OutboundAccess
from containerd_shim_spin_v1.variables.values import Variables
from containerd_shimkit import pool as pool_module
from containerd_shimkit.http_client.networks import Networks
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.servers.mariadb import mysql_url, running_mariadb
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.tls import Authority, certificate_authority

MANIFEST = """
spin_manifest_version = 2
[application]
name = "a"
[[trigger.http]]
route = "/"
component = "c"
[component.c]
source = "c.wasm"
allowed_outbound_hosts = %s
"""


def access_to(*entries: str) -> OutboundAccess:
    app = parse_manifest(MANIFEST % json.dumps(entries), "/spin.toml")
    return OutboundAccess(app.component("c"), Variables(app, ()))


def no_tls() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # it trusts nobody


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with certificate_authority() as found:
        yield found


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[Server]:
    made = authority.issue("mariadb", "DNS:db.localhost")
    with running_mariadb(certificate=(made.cert, made.key)) as found:
        yield found


def run(
    main: Callable[[MysqlHost], Coroutine[Any, Any, None]],
    *,
    networks: Networks | None = None,
    tls: Callable[[], ssl.SSLContext] = no_tls,
    **options: Any,
) -> None:
    """Call ``main`` with a host, on the loop that containers have."""

    async def limited() -> None:
        host = MysqlHost(networks or Networks(), tls, **options)
        try:
            async with asyncio.timeout(60):
                await main(host)
        finally:
            await host.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())


def session(host: MysqlHost) -> MysqlSession:
    return host.session(access_to("mysql://*:*"))


def run_session(
    server: Server, main: Callable[[MysqlSession, str], Coroutine[Any, Any, None]], **options: Any
) -> None:
    """Call ``main`` with one guest's session and the server's address."""

    async def with_host(host: MysqlHost) -> None:
        guest = session(host)
        try:
            await main(guest, mysql_url(server))
        finally:
            await guest.close()

    run(with_host, **options)


async def only(guest: MysqlSession, url: str, statement: str, *params: Value) -> Value:
    """Return the only value of a query."""
    ((value,),) = (await guest.query(url, statement, params)).rows
    return value


# Values


@pytest.mark.parametrize(
    ("type_", "param", "data_type", "value"),
    [
        ("TINYINT", (Kind.INT8, -128), DataType.INT8, (Kind.INT8, -128)),
        ("BOOL", (Kind.BOOLEAN, True), DataType.INT8, (Kind.INT8, 1)),
        ("TINYINT UNSIGNED", (Kind.UINT8, 255), DataType.UINT8, (Kind.UINT8, 255)),
        ("SMALLINT", (Kind.INT16, -5), DataType.INT16, (Kind.INT16, -5)),
        ("SMALLINT UNSIGNED", (Kind.UINT16, 65535), DataType.UINT16, (Kind.UINT16, 65535)),
        ("MEDIUMINT", (Kind.INT32, -8388608), DataType.INT32, (Kind.INT32, -8388608)),
        ("MEDIUMINT UNSIGNED", (Kind.UINT32, 16777215), DataType.UINT32, (Kind.UINT32, 16777215)),
        ("INT", (Kind.INT32, -(1 << 31)), DataType.INT32, (Kind.INT32, -(1 << 31))),
        (
            "INT UNSIGNED",
            (Kind.UINT32, (1 << 32) - 1),
            DataType.UINT32,
            (Kind.UINT32, (1 << 32) - 1),
        ),
        ("BIGINT", (Kind.INT64, -(1 << 63)), DataType.INT64, (Kind.INT64, -(1 << 63))),
        (
            *("BIGINT UNSIGNED", (Kind.UINT64, (1 << 64) - 1)),
            *(DataType.UINT64, (Kind.UINT64, (1 << 64) - 1)),
        ),
        (
            *("FLOAT", (Kind.FLOATING32, 16777215.0)),
            *(DataType.FLOATING32, (Kind.FLOATING32, 16777215.0)),
        ),
        ("DOUBLE", (Kind.FLOATING64, 0.1), DataType.FLOATING64, (Kind.FLOATING64, 0.1)),
        ("VARCHAR(20)", (Kind.STR, "it's \\ é😀"), DataType.STR, (Kind.STR, "it's \\ é😀")),
        ("CHAR(5)", (Kind.STR, "x"), DataType.STR, (Kind.STR, "x")),
        ("TINYTEXT", (Kind.STR, ""), DataType.STR, (Kind.STR, "")),
        ("LONGTEXT", (Kind.STR, "é"), DataType.STR, (Kind.STR, "é")),
        ("TEXT CHARACTER SET latin1", (Kind.STR, "é"), DataType.STR, (Kind.STR, "é")),
        ("ENUM('a', 'b')", (Kind.STR, "b"), DataType.STR, (Kind.STR, "b")),
        ("TINYBLOB", (Kind.BINARY, b"\xff\0"), DataType.BINARY, (Kind.BINARY, b"\xff\0")),
        (
            *("BLOB", (Kind.BINARY, bytes(range(256)))),
            *(DataType.BINARY, (Kind.BINARY, bytes(range(256)))),
        ),
        ("VARBINARY(9)", (Kind.BINARY, b"'\xff"), DataType.BINARY, (Kind.BINARY, b"'\xff")),
        ("BINARY(3)", (Kind.BINARY, b"abc"), DataType.BINARY, (Kind.BINARY, b"abc")),
        # As in Spin: a binary collation makes bytes of it.
        ("VARCHAR(9) COLLATE utf8mb4_bin", (Kind.STR, "x"), DataType.BINARY, (Kind.BINARY, b"x")),
        ("INT", NULL, DataType.INT32, NULL),
        ("TEXT", NULL, DataType.STR, NULL),
        ("DATETIME", NULL, DataType.OTHER, NULL),
        ("DECIMAL(9, 2)", NULL, DataType.OTHER, NULL),
    ],
)
def test_values_both_ways(
    server: Server, type_: str, param: Value, data_type: DataType, value: Value
) -> None:
    async def main(guest: MysqlSession, url: str) -> None:
        await guest.execute(
            url, f"CREATE TEMPORARY TABLE t (before1 INT, x {type_}, after1 INT)", ()
        )
        await guest.execute(url, "INSERT INTO t VALUES (1, ?, 2)", (param,))
        found = await guest.query(url, "SELECT before1, x, after1 FROM t", ())
        assert found.columns[1] == Column("x", data_type)
        assert found.rows == [[(Kind.INT32, 1), value, (Kind.INT32, 2)]]

    run_session(server, main)


@pytest.mark.parametrize(
    "expression", ["NOW()", "CURDATE()", "CURTIME(6)", "1.5", "b'101' + 0.0", "YEAR(NOW()) * 1.0"]
)
def test_values_that_guests_have_not(server: Server, expression: str) -> None:
    async def main(guest: MysqlSession, url: str) -> None:
        with pytest.raises(ValueConversionFailedError, match="column 'x' is of a type"):
            await guest.query(url, f"SELECT 1, {expression} AS x, 'after'", ())
        assert await only(guest, url, "SELECT 1") == (Kind.INT32, 1)

    run_session(server, main)


def test_dates_are_read_over(server: Server) -> None:
    """What stands behind a date in a row is found."""

    async def main(guest: MysqlSession, url: str) -> None:
        found: list[list[Any]] = []
        await guest._run(
            url,
            "SELECT TIMESTAMP'2020-01-02 03:04:05.678', TIME'-800:00:01.5', DATE'0000-00-00', 7",
            (),
            lambda _, row: found.append(list(row)),
        )
        assert found[0][-1] == 7

    run_session(server, main)


def test_ten_megabytes_both_ways(server: Server) -> None:
    async def main(guest: MysqlSession, url: str) -> None:
        data, text = bytes(range(250)) * 40_000, "é" * 5_000_000
        await guest.execute(url, "CREATE TEMPORARY TABLE t (a LONGBLOB, b LONGTEXT)", ())
        params = ((Kind.BINARY, data), (Kind.STR, text))
        await guest.execute(url, "INSERT INTO t VALUES (?, ?)", params)
        assert (await guest.query(url, "SELECT * FROM t", ())).rows == [list(params)]

    run_session(server, main)


def test_packets_of_exactly_the_largest_size(server: Server) -> None:
    async def main(guest: MysqlSession, url: str) -> None:
        largest = (1 << 24) - 1
        # Command, statement, flags, times, nulls, bound, type and length come before.
        overhead = 1 + 4 + 1 + 4 + 1 + 1 + 2 + 4
        for size in range(largest - overhead - 1, largest - overhead + 2):
            data = b"x" * size
            assert await only(guest, url, "SELECT LENGTH(?)", (Kind.BINARY, data)) == (
                (Kind.INT32, size)
            )

    run_session(server, main)


def test_columns_of_different_character_sets_compare(server: Server) -> None:
    async def main(guest: MysqlSession, url: str) -> None:
        await guest.execute(
            url,
            "CREATE TEMPORARY TABLE t (a VARCHAR(9) COLLATE utf8mb4_unicode_ci,"
            " b VARCHAR(9) CHARACTER SET latin1)",
            (),
        )
        await guest.execute(url, "INSERT INTO t VALUES (?, ?)", ((Kind.STR, "é"),) * 2)
        for column in "ab":
            found = await guest.query(
                url, f"SELECT 1 FROM t WHERE {column} = ?", ((Kind.STR, "É"),)
            )
            assert len(found.rows) == 1

    run_session(server, main)


def test_no_rows_have_columns(server: Server) -> None:
    async def main(guest: MysqlSession, url: str) -> None:
        found = await guest.query(url, "SELECT 1 AS x FROM DUAL WHERE FALSE", ())
        assert (found.columns, found.rows) == ([Column("x", DataType.INT32)], [])
        found = await guest.query(url, "DO 1", ())
        assert (found.columns, found.rows) == ([], [])

    run_session(server, main)


def test_a_procedure_has_its_first_result(server: Server) -> None:
    async def main(guest: MysqlSession, url: str) -> None:
        await guest.execute(
            url, "CREATE OR REPLACE PROCEDURE p() BEGIN SELECT 1; SELECT 2; END", ()
        )
        assert await only(guest, url, "CALL p()") == (Kind.INT32, 1)
        await guest.execute(url, "CALL p()", ())
        assert await only(guest, url, "SELECT 3") == (Kind.INT32, 3)

    run_session(server, main)


# Errors


@pytest.mark.parametrize(
    ("statement", "params", "message"),
    [
        ("selec", (), r"error in your SQL syntax.*\(error 1064\)"),
        ("SELECT * FROM nothing", (), r"doesn't exist \(error 1146\)"),
        ("SELECT 1; SELECT 2", (), "near 'SELECT 2'"),
        ("SELECT ?", (), "has 1 parameters, and 0 were given"),
        ("SELECT 1", (NULL,), "has 0 parameters, and 1 were given"),
        ("SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'mine'", (), "mine"),
        ("SELECT (SELECT 1 UNION SELECT 2)", (), "more than 1 row"),
    ],
)
def test_statements_that_fail(
    server: Server, statement: str, params: tuple[Value, ...], message: str
) -> None:
    async def main(guest: MysqlSession, url: str) -> None:
        with pytest.raises(QueryFailedError, match=message):
            await guest.query(url, statement, params)
        assert await only(guest, url, "SELECT 1") == (Kind.INT32, 1)

    run_session(server, main)


def test_files_are_not_sent(server: Server) -> None:
    async def main(guest: MysqlSession, url: str) -> None:
        await guest.execute(url, "CREATE TEMPORARY TABLE t (a TEXT)", ())
        with pytest.raises(QueryFailedError, match="local infile"):
            await guest.execute(url, "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE t", ())
        assert await only(guest, url, "SELECT COUNT(*) FROM t") == (Kind.INT64, 0)

    run_session(server, main)


def test_statements_are_forgotten(server: Server) -> None:
    async def main(guest: MysqlSession, url: str) -> None:
        for _ in range(3):
            await only(guest, url, "SELECT ?", (Kind.INT32, 1))
            with pytest.raises(QueryFailedError):
                await guest.query(url, "SELECT ?", ())
        found = await guest.query(url, "SHOW STATUS LIKE 'Prepared_stmt_count'", ())
        assert found.rows[0][1] == (Kind.STR, "1")  # this one

    run_session(server, main)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("mysql://tester:secret@{server}/app", r"Access denied.*\(error 1045\)"),
        ("mysql://tester:correct%20horse@{server}/nothing", "Unknown database"),
        ("mysql://tester:secret@{nobody}/app", "refused"),
        ("mysql://u:secret@no.invalid/app", "cannot connect to mysql://no.invalid:3306"),
        ("mysql://u:secret@", "names no host"),
        ("postgres://u:secret@h", "mysql://"),
    ],
)
def test_connections_that_fail(server: Server, address: str, message: str) -> None:
    host, port = free_address()
    address = address.format(server=server.address, nobody=f"{host}:{port}")

    async def main(guest: MysqlSession, url: str) -> None:
        with pytest.raises(ConnectionFailedError, match=message) as caught:
            await guest.query(address, "SELECT 1", ())
        assert "secret" not in str(caught.value)

    run_session(server, main)


def test_the_host_must_be_allowed(server: Server) -> None:
    async def main(host: MysqlHost) -> None:
        guest = host.session(access_to(f"mysql://{server.address}"))
        assert await only(guest, mysql_url(server), "SELECT 1") == (Kind.INT32, 1)
        with pytest.raises(DestinationNotAllowedError) as caught:
            await guest.query("mysql://u:secret@other/d", "SELECT 1", ())
        assert 'allowed_outbound_hosts = ["mysql://other"]' in str(caught.value)
        await guest.close()

    run(main)


def test_blocked_networks(server: Server) -> None:
    blocked = Networks([ipaddress.ip_network(server.host)])

    async def main(guest: MysqlSession, url: str) -> None:
        with pytest.raises(ConnectionFailedError, match="block_networks"):
            await guest.query(url, "SELECT 1", ())

    run_session(server, main, networks=blocked)


def test_results_have_a_limit(server: Server) -> None:
    async def main(guest: MysqlSession, url: str) -> None:
        with pytest.raises(QueryFailedError, match="larger than 1000000 bytes"):
            await guest.query(url, "SELECT REPEAT('x', 1000) FROM seq_1_to_10000", ())
        assert await only(guest, url, "SELECT 1") == (Kind.INT32, 1)
        for _ in range(3):  # each call has the limit for itself
            await guest.query(url, "SELECT REPEAT('x', 600000)", ())

    run_session(server, main, max_result_bytes=1_000_000)


# TLS, and servers that are not to be trusted


class Named(Networks):
    """A name that leads to the server, as the resolver of a cluster has it."""

    def __init__(self, host: str) -> None:
        super().__init__([ipaddress.ip_network("10.0.0.0/8")])
        self._address = host

    async def resolve(self, host: str, port: int) -> list[str]:
        return [self._address]


@pytest.mark.parametrize("mode", ["?ssl-mode=REQUIRED", "?sslmode=verify_identity"])
def test_tls(server: Server, authority: Authority, mode: str) -> None:
    def trusting() -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(authority.cert))

    async def main(guest: MysqlSession, url: str) -> None:
        address = url.replace(server.host, "db.localhost") + mode
        found = await guest.query(address, "SHOW STATUS LIKE 'Ssl_version'", ())
        assert found.rows[0][1] == (Kind.STR, "TLSv1.3")
        size = await only(guest, address, "SELECT LENGTH(?)", (Kind.BINARY, bytes(10_000_000)))
        assert size == (Kind.INT32, 10_000_000)
        (value,) = (await guest.query(address, "SELECT REPEAT('x', 10000000)", ())).rows[0]
        assert value == (Kind.BINARY, b"x" * 10_000_000)
        with pytest.raises(ConnectionFailedError, match=r"not valid for 'other\.localhost'"):
            await guest.query(address.replace("db.", "other."), "SELECT 1", ())

    run_session(server, main, tls=trusting, networks=Named(server.host))


def test_a_certificate_of_somebody_else(server: Server) -> None:
    async def main(guest: MysqlSession, url: str) -> None:
        with pytest.raises(ConnectionFailedError, match="certificate verify failed"):
            await guest.query(f"{url}?ssl-mode=REQUIRED", "SELECT 1", ())
        found = await guest.query(url, "SHOW STATUS LIKE 'Ssl_version'", ())
        assert found.rows[0][1] == (Kind.STR, "")

    run_session(server, main)


GREETING = (
    b"\x0a5.7.0\0\1\0\0\0saltsalt\0"
    + b"\xff\xf7"  # capabilities; without TLS, if the second bit of the second byte is not set
    + b"\x2d\x02\x00\xff\x81\x15"
    + bytes(10)
    + b"saltsaltsalt\0mysql_native_password\0"
)


def packet(number: int, content: bytes) -> bytes:
    return len(content).to_bytes(3, "little") + bytes([number]) + content


async def answer(guest: MysqlSession, tls: str, *answers: bytes) -> list[bytes]:
    """Ask a server that sends these packets, one for each of ours; return what it was sent."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for content in answers:
            writer.write(content)
            if content is answers[-1]:
                writer.write_eof()
            try:
                head = await reader.readexactly(4)
                received.append(await reader.readexactly(int.from_bytes(head[:3], "little")))
            except asyncio.IncompleteReadError:
                break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        try:
            await guest.query(f"mysql://u:secret@127.0.0.1:{port}/{tls}", "SELECT 1", ())
        except DatabaseError as exc:
            received.append(f"{type(exc).__name__}: {exc}".encode())
    return received


def test_a_server_without_tls_is_told_no_password() -> None:
    plain = GREETING.replace(b"\xff\xf7", b"\xff\xf7")

    async def main(host: MysqlHost) -> None:
        guest = session(host)
        (error,) = (await answer(guest, "?ssl-mode=REQUIRED", packet(0, plain)))[-1:]
        assert b"the server does not support TLS" in error

    run(main)


def test_a_password_in_clear_text_is_for_tls_only() -> None:
    async def main(host: MysqlHost) -> None:
        guest = session(host)
        switch = packet(2, b"\xfemysql_clear_password\0")
        received = await answer(guest, "", packet(0, GREETING), switch)
        assert b"mysql_clear_password, which needs TLS" in received[-1]
        assert not any(b"secret" in content for content in received)

    run(main)


def test_a_server_that_asks_for_a_file() -> None:
    async def main(host: MysqlHost) -> None:
        guest = session(host)
        done = packet(2, b"\0\0\0\2\0\0\0")
        prepared = packet(1, b"\0\1\0\0\0\0\0\0\0\0\0\0")
        received = await answer(
            guest, "", packet(0, GREETING), done, prepared, packet(1, b"\xfb/etc/passwd")
        )
        assert not any(b"root:" in content for content in received)
        assert received[-1].startswith(OtherDatabaseError.__name__.encode())

    run(main)


@pytest.mark.parametrize("content", [b"", b"\0", b"\xff", b"\x01", b"\xfc", bytes(100)])
def test_a_server_that_answers_nonsense(content: bytes) -> None:
    async def main(host: MysqlHost) -> None:
        guest = session(host)
        done = packet(2, b"\0\0\0\2\0\0\0")
        prepared = packet(1, b"\0\1\0\0\0\0\0\0\0\0\0\0")
        await answer(guest, "", packet(0, content))
        await answer(guest, "", packet(0, GREETING), packet(2, content))
        await answer(guest, "", packet(0, GREETING), done, packet(1, content))
        await answer(guest, "", packet(0, GREETING), done, prepared, packet(1, content))
        await guest.close()

    run(main)


# Connections


def test_a_guest_keeps_its_connection(server: Server) -> None:
    async def main(guest: MysqlSession, url: str) -> None:
        await guest.execute(url, "CREATE TEMPORARY TABLE t (a INT AUTO_INCREMENT PRIMARY KEY)", ())
        await guest.execute(url, "INSERT INTO t VALUES ()", ())
        assert await only(guest, url, "SELECT LAST_INSERT_ID()") == (Kind.UINT64, 1)
        await guest.execute(url, "BEGIN", ())
        await guest.execute(url, "INSERT INTO t VALUES ()", ())
        await guest.execute(url, "ROLLBACK", ())
        found = await guest.query(url, "SELECT * FROM t", ())
        assert len(found.rows) == 1

    run_session(server, main)


async def drain(host: MysqlHost) -> None:
    """Wait until connections that came back are ready for others."""
    while host._pool._tasks:
        await asyncio.wait(host._pool._tasks)


async def wait_for_idle(host: MysqlHost, guest: MysqlSession, url: str) -> Value:
    """Return the server's number of a guest's new session, once the pool has nothing to do."""
    await drain(host)
    return await only(guest, url, "SELECT CONNECTION_ID()")


def test_nothing_of_a_guest_is_left_for_the_next(server: Server) -> None:
    async def main(host: MysqlHost) -> None:
        url = mysql_url(server)
        guest = session(host)
        number = await only(guest, url, "SELECT CONNECTION_ID()")
        await guest.execute(url, "CREATE TABLE IF NOT EXISTS kept (a INT)", ())
        for statement in (
            "CREATE TEMPORARY TABLE left_over (a INT)",
            "SET @a = 5",
            "SET NAMES latin1",
            "SET sql_mode = 'ANSI_QUOTES'",
            "SET autocommit = 0",
            "PREPARE left_over FROM 'SELECT 1'",
            "DO GET_LOCK('left_over', 0)",
            "USE mysql",
            "INSERT INTO app.kept VALUES (1)",
        ):
            await guest.execute(url, statement, ())
        await guest.close()
        other = session(host)
        assert await wait_for_idle(host, other, url) == number
        found = await other.query(
            url,
            "SELECT @a IS NULL, @@character_set_client, @@autocommit = 1, DATABASE(),"
            " IS_FREE_LOCK('left_over'), @@sql_mode = @@GLOBAL.sql_mode, 'é'",
            (),
        )
        assert [value for _, value in found.rows[0]] == [1, "utf8mb4", 1, "app", 1, 1, "é"]
        assert (await other.query(url, "SELECT * FROM kept", ())).rows == []
        for statement in ("SELECT * FROM left_over", "EXECUTE left_over"):
            with pytest.raises(QueryFailedError):
                await other.query(url, statement, ())
        await guest.execute(url, "LOCK TABLES kept WRITE", ())
        await guest.close()
        await other.execute(url, "DROP TABLE kept", ())
        await other.close()

    run(main)


def test_a_chosen_database_is_left_with_the_guest(server: Server) -> None:
    """An address without a database; there is no way back to none."""

    async def main(host: MysqlHost) -> None:
        url = mysql_url(server).removesuffix("/app")
        for statement, same in (("DO 1", True), ("USE app", False)):
            guest = session(host)
            number = await only(guest, url, "SELECT CONNECTION_ID()")
            await guest.execute(url, statement, ())
            await guest.close()
            other = session(host)
            assert (await wait_for_idle(host, other, url) == number) is same
            assert await only(other, url, "SELECT DATABASE()") == NULL
            await other.close()

    run(main)


def test_a_connection_that_the_server_closed_is_not_noticed(server: Server) -> None:
    async def main(host: MysqlHost) -> None:
        url = mysql_url(server)
        first, second = session(host), session(host)
        numbers = [await only(guest, url, "SELECT CONNECTION_ID()") for guest in (first, second)]
        await first.close()
        await wait_for_idle(host, second, url)
        await second.execute(url, f"KILL {numbers[0][1]!r}", ())
        third = session(host)
        assert await only(third, url, "SELECT CONNECTION_ID()") not in numbers
        await second.close()
        await third.close()

    run(main)


def end_socket(connection: Any) -> None:
    """End a connection; the loop will know when it looks."""
    descriptor = connection._connection._writer.get_extra_info("socket").fileno()
    with socket.socket(fileno=os.dup(descriptor)) as same:
        same.shutdown(socket.SHUT_RDWR)


def test_a_connection_lost_while_idle_but_not_told(server: Server) -> None:
    """The statement goes to the server again, on another connection."""

    async def main(host: MysqlHost) -> None:
        url = mysql_url(server)
        first, second = session(host), session(host)
        number = await only(first, url, "SELECT CONNECTION_ID()")
        ((_, connection),) = first._connections._lent.values()
        await first.close()
        await drain(host)
        end_socket(connection)
        assert connection.usable
        assert await only(second, url, "SELECT CONNECTION_ID()") != number
        await second.close()

    run(main)


def test_a_guest_is_told_that_its_connection_was_lost(server: Server) -> None:
    """Its transaction is gone with it."""

    async def main(guest: MysqlSession, url: str) -> None:
        await guest.execute(url, "BEGIN", ())
        ((_, connection),) = guest._connections._lent.values()
        end_socket(connection)
        with pytest.raises(QueryFailedError, match="was lost"):
            await guest.execute(url, "DO 1", ())
        await guest.execute(url, "DO 1", ())

    run_session(server, main)


def test_a_connection_lost_in_a_statement(server: Server) -> None:
    async def main(guest: MysqlSession, url: str) -> None:
        with pytest.raises(QueryFailedError):
            await guest.execute(url, "KILL CONNECTION_ID()", ())
        assert await only(guest, url, "SELECT 1") == (Kind.INT32, 1)

    run_session(server, main)


def test_a_server_that_starts_again() -> None:
    with running_mariadb() as server:

        async def main(host: MysqlHost) -> None:
            url = mysql_url(server)
            guests = [session(host) for _ in range(3)]
            for guest in guests:
                await only(guest, url, "SELECT 1")
                await guest.close()
            await asyncio.to_thread(server.stop)
            guest = session(host)
            with pytest.raises(ConnectionFailedError, match="refused"):
                await guest.query(url, "SELECT 1", ())
            await asyncio.to_thread(server.start)
            assert await only(guest, url, "SELECT 1") == (Kind.INT32, 1)
            await guest.close()

        run(main)


def test_many_guests_share_connections(server: Server) -> None:
    async def main(host: MysqlHost) -> None:
        url = mysql_url(server)
        access = access_to("mysql://*:*")

        async def one(number: int) -> None:
            guest = host.session(access)
            try:
                if number % 10 == 0:
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.01):
                            await guest.query(url, "SELECT SLEEP(2)", ())
                else:
                    expected = (Kind.INT32, number)
                    assert await only(guest, url, "SELECT CAST(? AS INT)", expected)
            finally:
                await guest.close()

        await asyncio.gather(*map(one, range(500)))
        assert host._pool._open <= pool_module.ADDRESS_LIMIT

    run(main)


def test_close_ends_what_runs(server: Server) -> None:
    async def main(host: MysqlHost) -> None:
        url = mysql_url(server)
        guests = [session(host) for _ in range(3)]
        for guest in guests:
            await only(guest, url, "SELECT 1")
        await guests[0].close()
        running = asyncio.create_task(guests[1].query(url, "SELECT SLEEP(5)", ()))
        await asyncio.sleep(0)
        connections = [*host._pool._lent]
        await host.close()
        with pytest.raises(DatabaseError):
            await running
        assert not any(connection.usable for connection in connections)
        with pytest.raises(ConnectionFailedError, match="the app ends"):
            await session(host).query(url, "SELECT 1", ())

    run(main)
