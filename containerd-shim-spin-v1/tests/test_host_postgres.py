"""PostgreSQL for guests, against a real server."""

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
    UNSUPPORTED,
    BadParameterError,
    Column,
    ConnectionFailedError,
    DatabaseError,
    DataType,
    Kind,
    QueryFailedError,
    Value,
    ValueConversionFailedError,
)
from containerd_shim_spin_v1.host.postgres import PostgresHost, PostgresSession
from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.outbound.access import DestinationNotAllowedError, OutboundAccess
from containerd_shim_spin_v1.variables.values import Variables
from containerd_shimkit import pool as pool_module
from containerd_shimkit.http_client.networks import Networks
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.servers.postgres import (
    DATABASE,
    PASSWORD,
    USER,
    postgres_url,
    running_postgres,
)
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.tls import Authority, certificate_authority
from containerd_shimkit.testing.turns import longest_turn
from containerd_shimkit.tls import TlsConfigError

PLAIN = "?sslmode=disable"
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
def server() -> Iterator[Server]:
    with running_postgres() as found:
        yield found


def run(
    main: Callable[[PostgresHost], Coroutine[Any, Any, None]],
    *,
    networks: Networks | None = None,
    tls: Callable[[], ssl.SSLContext] = no_tls,
    **options: Any,
) -> None:
    """Call ``main`` with a host, on the loop that containers have."""

    async def limited() -> None:
        host = PostgresHost(networks or Networks(), tls, **options)
        try:
            async with asyncio.timeout(60):
                await main(host)
        finally:
            await host.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())


def session(host: PostgresHost) -> PostgresSession:
    return host.session(access_to("postgres://*:*"))


def run_session(
    server: Server,
    main: Callable[[PostgresSession, str], Coroutine[Any, Any, None]],
    **options: Any,
) -> None:
    """Call ``main`` with one guest's session and the server's address."""

    async def with_host(host: PostgresHost) -> None:
        guest = session(host)
        try:
            await main(guest, postgres_url(server))
        finally:
            await guest.close()

    run(with_host, **options)


async def only(guest: PostgresSession, url: str, statement: str, *params: Value) -> Value:
    """Return the only value of a query."""
    ((value,),) = (await guest.query(url, statement, params)).rows
    return value


# Values


@pytest.mark.parametrize(
    ("expression", "data_type", "value"),
    [
        ("true", DataType.BOOLEAN, (Kind.BOOLEAN, True)),
        ("(-32768)::int2", DataType.INT16, (Kind.INT16, -32768)),
        ("(-2147483648)::int4", DataType.INT32, (Kind.INT32, -(1 << 31))),
        ("9223372036854775807::int8", DataType.INT64, (Kind.INT64, (1 << 63) - 1)),
        ("0.1::float4", DataType.FLOATING32, (Kind.FLOATING32, 0.10000000149011612)),
        ("'-infinity'::float8", DataType.FLOATING64, (Kind.FLOATING64, float("-inf"))),
        ("'é😀'::text", DataType.STR, (Kind.STR, "é😀")),
        ("'x'::varchar(5)", DataType.STR, (Kind.STR, "x")),
        ("'x'::char(3)", DataType.STR, (Kind.STR, "x  ")),
        ("'\\x00ff'::bytea", DataType.BINARY, (Kind.BINARY, b"\0\xff")),
        ("null::int4", DataType.INT32, NULL),
        ("null::text", DataType.STR, NULL),
        ("now()", DataType.OTHER, UNSUPPORTED),
        ("null::date", DataType.OTHER, UNSUPPORTED),
        ("'294276-12-31 00:00'::timestamp", DataType.OTHER, UNSUPPORTED),
        ("'178000000 years'::interval", DataType.OTHER, UNSUPPORTED),
        ("1.5::numeric", DataType.OTHER, UNSUPPORTED),
        ("'{}'::jsonb", DataType.OTHER, UNSUPPORTED),
        ("gen_random_uuid()", DataType.OTHER, UNSUPPORTED),
        ("array[1]", DataType.OTHER, UNSUPPORTED),
        ("row(1, 2)", DataType.OTHER, UNSUPPORTED),
    ],
)
def test_values_of_results(
    server: Server, expression: str, data_type: DataType, value: Value
) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        found = await guest.query(url, f"SELECT {expression} AS x", ())
        assert found.columns == [Column("x", data_type)]
        assert found.rows == [[value]]

    run_session(server, main)


@pytest.mark.parametrize(
    ("type_", "param", "value"),
    [
        ("bool", (Kind.BOOLEAN, False), (Kind.BOOLEAN, False)),
        ("int2", (Kind.INT8, -128), (Kind.INT16, -128)),
        ("int2", (Kind.INT16, -5), (Kind.INT16, -5)),
        ("int4", (Kind.INT32, 1 << 30), (Kind.INT32, 1 << 30)),
        ("int8", (Kind.INT32, 1 << 30), (Kind.INT64, 1 << 30)),
        ("int8", (Kind.INT64, -(1 << 63)), (Kind.INT64, -(1 << 63))),
        ("float4", (Kind.FLOATING32, 1.5), (Kind.FLOATING32, 1.5)),
        ("float8", (Kind.FLOATING64, 0.1), (Kind.FLOATING64, 0.1)),
        ("text", (Kind.STR, "it's é 😀"), (Kind.STR, "it's é 😀")),
        ("varchar", (Kind.STR, ""), (Kind.STR, "")),
        ("bytea", (Kind.BINARY, bytes(range(256))), (Kind.BINARY, bytes(range(256)))),
        ("int4", NULL, NULL),
        ("text", NULL, NULL),
        ("bytea", NULL, NULL),
    ],
)
def test_values_of_parameters(server: Server, type_: str, param: Value, value: Value) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        assert await only(guest, url, f"SELECT $1::{type_}", param) == value

    run_session(server, main)


def test_ten_megabytes_both_ways(server: Server) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        data, text = bytes(range(250)) * 40_000, "é" * 5_000_000
        assert await only(guest, url, "SELECT $1::bytea", (Kind.BINARY, data)) == (
            Kind.BINARY,
            data,
        )
        assert await only(guest, url, "SELECT $1::text", (Kind.STR, text)) == (Kind.STR, text)

    run_session(server, main)


def test_no_rows_have_no_columns_as_in_spin(server: Server) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        found = await guest.query(url, "SELECT 1 WHERE false", ())
        assert (found.columns, found.rows) == ([], [])

    run_session(server, main)


def test_rows_that_statements_are_about(server: Server) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        async def execute(statement: str) -> int:
            return await guest.execute(url, statement, ())

        assert await execute("CREATE TEMP TABLE t (a int)") == 0
        assert await execute("INSERT INTO t VALUES (1), (2), (3)") == 3
        assert await execute("UPDATE t SET a = 5 WHERE a > 1") == 2
        assert await execute("SELECT * FROM t") == 3
        assert await execute("DELETE FROM t") == 3
        assert await execute("") == 0

    run_session(server, main)


# Errors


@pytest.mark.parametrize(
    ("statement", "params", "message"),
    [
        ("selec", (), r"syntax error at or near \"selec\" \(SQLSTATE 42601\)"),
        ("SELECT * FROM nothing", (), r"\"nothing\" does not exist"),
        ("SELECT 1; SELECT 2", (), "multiple commands"),
        ("SELECT 1/0", (), "division by zero"),
        ("SELECT 1\0", (), "NUL"),
        ("SELECT $1::text", ((Kind.STR, "a\0b"),), "0x00"),
        ("SELECT $1::text", ((Kind.INT32, 1),), r"\$1 is int32, which is no value for type text"),
        ("SELECT $1::int4", ((Kind.STR, "1"),), r"\$1 is str, which is no value for type int4"),
        ("SELECT $1::int4", ((Kind.FLOATING64, 1.0),), "no value for type int4"),
        ("SELECT $1::date", ((Kind.STR, "2020-01-01"),), "no value for type date"),
        ("SELECT $1::int2", ((Kind.INT32, 1 << 20),), "out of int16 range"),
        ("SELECT $1::int4", (), "has 1 parameters, and 0 were given"),
        ("SELECT 1", (NULL,), "has 0 parameters, and 1 were given"),
        ("COPY pg_class TO STDOUT", (), "COPY"),
        (" copy pg_class from stdin", (), "COPY"),
    ],
)
def test_statements_that_fail(
    server: Server, statement: str, params: tuple[Value, ...], message: str
) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        with pytest.raises(QueryFailedError, match=message):
            await guest.query(url, statement, params)
        assert await only(guest, url, "SELECT 1") == (Kind.INT32, 1)

    run_session(server, main)


@pytest.mark.parametrize("kind", [Kind.UINT8, Kind.UINT16, Kind.UINT32, Kind.UINT64])
def test_there_are_no_unsigned_integers(server: Server, kind: Kind) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        with pytest.raises(BadParameterError):
            await guest.query(url, "SELECT $1::int8", ((kind, 1),))
        with pytest.raises(ValueConversionFailedError):
            await guest.execute(url, "SELECT $1::int8", ((kind, 1),))

    run_session(server, main)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("postgres://tester:secret@{server}/postgres", "password authentication failed"),
        ("postgres://tester:{password}@{server}/nothing", 'database "nothing" does not exist'),
        ("postgres://tester@{server}/postgres", "password"),
        ("postgres://tester:secret@{nobody}/postgres", "refused"),
        ("postgres://u:secret@no.invalid/postgres", "cannot connect to postgres://no.invalid:5432"),
        ("postgres://u:secret@", "names no host"),
        ("mysql://u:secret@h", "postgres://"),
    ],
)
def test_connections_that_fail(server: Server, address: str, message: str) -> None:
    host, port = free_address()
    address = address.format(
        server=server.address, password="correct%20horse", nobody=f"{host}:{port}"
    )

    async def main(guest: PostgresSession, url: str) -> None:
        with pytest.raises(ConnectionFailedError, match=message) as caught:
            await guest.query(address, "SELECT 1", ())
        assert "secret" not in str(caught.value)

    run_session(server, main)


def test_every_host_must_be_allowed(server: Server) -> None:
    async def main(host: PostgresHost) -> None:
        guest = host.session(access_to(f"postgres://{server.address}"))
        assert await only(guest, postgres_url(server), "SELECT 1") == (Kind.INT32, 1)
        address = f"host={server.host},other port={server.port} user={USER}"
        with pytest.raises(DestinationNotAllowedError) as caught:
            await guest.query(address, "SELECT 1", ())
        assert f'allowed_outbound_hosts = ["postgres://other:{server.port}"]' in str(caught.value)
        await guest.close()

    run(main)


def test_the_next_host_is_tried(server: Server) -> None:
    async def main(guest: PostgresSession, _: str) -> None:
        host, port = free_address()
        address = (
            f"host={host},{server.host} port={port},{server.port} user={USER} "
            f"password='{PASSWORD}' dbname={DATABASE} target_session_attrs=read-write"
        )
        assert await only(guest, address, "SELECT 1") == (Kind.INT32, 1)

    run_session(server, main)


def test_blocked_networks(server: Server) -> None:
    blocked = Networks([ipaddress.ip_network(server.host)])

    async def main(guest: PostgresSession, url: str) -> None:
        with pytest.raises(ConnectionFailedError, match="block_networks"):
            await guest.query(url, "SELECT 1", ())

    run_session(server, main, networks=blocked)


def test_names_lead_to_addresses_that_are_not_blocked() -> None:
    with running_postgres(localhost=True) as server:
        blocked = Networks([ipaddress.ip_network("10.0.0.0/8")])

        async def main(guest: PostgresSession, _: str) -> None:
            address = postgres_url(server).replace(server.host, "localhost")
            assert await only(guest, address, "SELECT 1") == (Kind.INT32, 1)

        run_session(server, main, networks=blocked)


def test_results_have_a_limit(server: Server) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        with pytest.raises(QueryFailedError, match="larger than 1000000 bytes"):
            await guest.query(url, "SELECT repeat('x', 1000) FROM generate_series(1, 10000)", ())
        assert await only(guest, url, "SELECT 1") == (Kind.INT32, 1)
        for _ in range(3):  # each call has the limit for itself
            await guest.query(url, "SELECT repeat('x', 600000)", ())

    run_session(server, main, max_result_bytes=1_000_000)


def test_environment_and_files_are_not_read(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Passwords that lie about on the host are not a guest's."""
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"*:*:*:*:{PASSWORD}\n")
    passfile.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.setenv("PGSSLMODE", "require")
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")

    async def main(guest: PostgresSession, url: str) -> None:
        with pytest.raises(ConnectionFailedError, match="password authentication failed"):
            await guest.query(f"postgres://{USER}@{server.address}/{DATABASE}", "SELECT 1", ())
        assert await only(guest, url, "SELECT 1") == (Kind.INT32, 1)

    run_session(server, main)


# TLS


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with certificate_authority() as found:
        yield found


@pytest.fixture(scope="module")
def tls_server(authority: Authority) -> Iterator[Server]:
    made = authority.issue("postgres", "DNS:localhost")
    with running_postgres(certificate=(made.cert, made.key), localhost=True) as found:
        yield found


@pytest.mark.parametrize(
    "mode", ["", "?sslmode=prefer", "?sslmode=require", "?sslmode=verify-full"]
)
@pytest.mark.parametrize("blocking", [False, True])
def test_tls(tls_server: Server, authority: Authority, mode: str, blocking: bool) -> None:
    networks = Networks([ipaddress.ip_network("10.0.0.0/8")] if blocking else [])

    def trusting() -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(authority.cert))

    async def main(guest: PostgresSession, url: str) -> None:
        address = url.replace(tls_server.host, "localhost") + mode
        value = await only(
            guest, address, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        )
        assert value == (Kind.BOOLEAN, True)

    run_session(tls_server, main, tls=trusting, networks=networks)


@pytest.mark.parametrize("mode", ["", "?sslmode=require"])
def test_a_certificate_of_somebody_else(tls_server: Server, mode: str) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        address = url.replace(tls_server.host, "localhost") + mode
        with pytest.raises(
            ConnectionFailedError, match=r"certificate verify failed.*sslmode=disable"
        ):
            await guest.query(address, "SELECT 1", ())
        plain = url.replace(tls_server.host, "localhost") + PLAIN
        assert await only(guest, plain, "SELECT 1") == (Kind.INT32, 1)

    run_session(tls_server, main)


def test_a_server_without_tls(server: Server) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        assert await only(guest, f"{url}?sslmode=prefer", "SELECT 1") == (Kind.INT32, 1)
        with pytest.raises(ConnectionFailedError, match="rejected SSL upgrade"):
            await guest.query(f"{url}?sslmode=require", "SELECT 1", ())

    run_session(server, main)


def nobody_to_trust() -> ssl.SSLContext:
    raise TlsConfigError("there are no certificates")


def test_no_certificates_at_all(server: Server, tls_server: Server) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        assert await only(guest, url, "SELECT 1") == (Kind.INT32, 1)
        for address in (
            f"{url}?sslmode=require",
            postgres_url(tls_server).replace(tls_server.host, "localhost"),
        ):
            with pytest.raises(ConnectionFailedError, match="there are no certificates"):
                await guest.query(address, "SELECT 1", ())

    run_session(server, main, tls=nobody_to_trust)


# Connections


def test_a_guest_keeps_its_connection(server: Server) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        await guest.execute(url, "CREATE TEMP TABLE t (a serial, b int)", ())
        await guest.execute(url, "BEGIN", ())
        await guest.execute(url, "INSERT INTO t (b) VALUES (1)", ())
        assert await only(guest, url, "SELECT currval('t_a_seq')") == (Kind.INT64, 1)
        await guest.execute(url, "ROLLBACK", ())
        assert await only(guest, url, "SELECT count(*) FROM t") == (Kind.INT64, 0)

    run_session(server, main)


def test_nothing_of_a_guest_is_left_for_the_next(server: Server) -> None:
    async def main(host: PostgresHost) -> None:
        url = postgres_url(server)
        guest = session(host)
        pid = await only(guest, url, "SELECT pg_backend_pid()")
        for statement in (
            "CREATE TEMP TABLE left_over (a int)",
            "SET application_name = 'left over'",
            "PREPARE left_over AS SELECT 1",
            "SELECT pg_advisory_lock(1)",
            "LISTEN left_over",
            "BEGIN",
            "CREATE TABLE never (a int)",
        ):
            await guest.execute(url, statement, ())
        await guest.close()
        other = session(host)
        assert await wait_for_idle(host, other, url) == pid
        assert await only(other, url, "SHOW application_name") == (Kind.STR, "")
        assert await only(
            other, url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        ) == ((Kind.INT64, 0))
        assert await only(other, url, "SELECT count(*) FROM pg_listening_channels()") == (
            (Kind.INT64, 0)
        )
        for statement in ("SELECT * FROM left_over", "EXECUTE left_over", "SELECT * FROM never"):
            with pytest.raises(QueryFailedError, match="does not exist"):
                await other.query(url, statement, ())
        await other.close()

    run(main)


async def drain(host: PostgresHost) -> None:
    """Wait until connections that came back are ready for others."""
    while host._pool._tasks:
        await asyncio.wait(host._pool._tasks)


async def wait_for_idle(host: PostgresHost, guest: PostgresSession, url: str) -> Value:
    """Return the server's process of a guest's new session, once the pool has nothing to do."""
    await drain(host)
    return await only(guest, url, "SELECT pg_backend_pid()")


def test_a_connection_that_the_server_closed_is_not_noticed(server: Server) -> None:
    async def main(host: PostgresHost) -> None:
        url = postgres_url(server)
        first, second = session(host), session(host)
        pids = [await only(guest, url, "SELECT pg_backend_pid()") for guest in (first, second)]
        await first.close()
        await wait_for_idle(host, second, url)
        await second.execute(url, "SELECT pg_terminate_backend($1)", (pids[0],))
        third = session(host)
        assert await only(third, url, "SELECT pg_backend_pid()") not in pids
        await second.close()
        await third.close()

    run(main)


def end_socket(connection: Any) -> None:
    """End a connection; the loop will know when it looks."""
    descriptor = connection._connection._transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=os.dup(descriptor)) as same:
        same.shutdown(socket.SHUT_RDWR)


def test_a_connection_lost_while_idle_but_not_told(server: Server) -> None:
    """The statement goes to the server again, on another connection."""

    async def main(host: PostgresHost) -> None:
        url = postgres_url(server)
        first, second = session(host), session(host)
        pid = await only(first, url, "SELECT pg_backend_pid()")
        ((_, connection),) = first._connections._lent.values()
        await first.close()
        await drain(host)
        end_socket(connection)
        assert connection.usable
        assert await only(second, url, "SELECT pg_backend_pid()") != pid
        await second.close()

    run(main)


def test_a_guest_is_told_that_its_connection_was_lost(server: Server) -> None:
    """Its transaction is gone with it."""

    async def main(guest: PostgresSession, url: str) -> None:
        await guest.execute(url, "BEGIN", ())
        ((_, connection),) = guest._connections._lent.values()
        end_socket(connection)
        with pytest.raises(QueryFailedError, match="was lost"):
            await guest.execute(url, "SELECT 1", ())
        await guest.execute(url, "SELECT 1", ())

    run_session(server, main)


def test_opened_connections_are_a_guests_own(server: Server) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        handles = [await guest.open(url) for _ in range(2)]
        pids = []
        wheres: list[str | int] = [*handles, url]
        for where in wheres:
            ((pid,),) = (await guest.query(where, "SELECT pg_backend_pid()", ())).rows
            pids.append(pid)
        assert len(set(pids)) == 3
        await guest.execute(handles[0], "BEGIN", ())
        guest.drop(handles[0])
        guest.drop(99)
        with pytest.raises(ConnectionFailedError, match="no connection 0"):
            await guest.execute(handles[0], "SELECT 1", ())
        assert await guest.open(url) == 2
        with pytest.raises(ConnectionFailedError, match="names no user"):
            await guest.open("postgres://")

        async def open_many() -> None:
            for _ in range(16):
                await guest.open(url)

        with pytest.raises(ConnectionFailedError, match="may have 16 connections"):
            await open_many()

    run_session(server, main)


def test_an_opened_connection_that_was_lost_while_idle(server: Server) -> None:
    async def main(host: PostgresHost) -> None:
        url = postgres_url(server)
        first, second = session(host), session(host)
        await only(first, url, "SELECT 1")
        ((_, connection),) = first._connections._lent.values()
        await first.close()
        await drain(host)
        end_socket(connection)
        handle = await second.open(url)
        await second.execute(handle, "SELECT 1", ())
        ((_, connection),) = second._connections._lent.values()
        end_socket(connection)
        with pytest.raises(QueryFailedError, match="was lost"):
            await second.execute(handle, "SELECT 1", ())
        await second.execute(handle, "SELECT 1", ())
        await second.close()

    run(main)


def test_a_connection_lost_in_a_statement(server: Server) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        with pytest.raises(
            QueryFailedError, match=f"connection to postgres://{server.address} was"
        ):
            await guest.execute(url, "SELECT pg_terminate_backend(pg_backend_pid())", ())
        assert await only(guest, url, "SELECT 1") == (Kind.INT32, 1)

    run_session(server, main)


def test_a_server_that_starts_again() -> None:
    with running_postgres() as server:

        async def main(host: PostgresHost) -> None:
            url = postgres_url(server)
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


def test_who_is_cut_off_leaves_nothing_running(server: Server) -> None:
    async def main(host: PostgresHost) -> None:
        url = postgres_url(server)
        watcher = session(host)
        guest = session(host)
        await guest.execute(url, "SET application_name = 'sleeper'", ())
        task = asyncio.create_task(guest.query(url, "SELECT pg_sleep(600)", ()))
        count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sleeper'"
        active = f"{count} AND state = 'active'"
        while await only(watcher, url, active) != (Kind.INT64, 1):
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await guest.close()
        while await only(watcher, url, count) != (Kind.INT64, 0):
            pass
        await watcher.close()

    run(main)


def test_many_guests_share_connections(server: Server) -> None:
    async def main(host: PostgresHost) -> None:
        url = postgres_url(server)
        access = access_to("postgres://*:*")
        seen: set[Value] = set()

        async def one(number: int) -> None:
            guest = host.session(access)
            try:
                if number % 10 == 0:
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.01):
                            await guest.query(url, "SELECT pg_sleep(5)", ())
                else:
                    seen.add(await only(guest, url, "SELECT pg_backend_pid() FROM pg_sleep(0.002)"))
            finally:
                await guest.close()

        await asyncio.gather(*map(one, range(500)))
        watcher = session(host)
        await wait_for_idle(host, watcher, url)
        count = await only(
            watcher,
            url,
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'",
        )
        assert isinstance(count[1], int)
        assert count[1] <= pool_module.ADDRESS_LIMIT
        await watcher.close()

    run(main)


def test_close_leaves_no_connection(server: Server) -> None:
    async def main(host: PostgresHost) -> None:
        url = postgres_url(server)
        watching = PostgresHost(Networks(), no_tls)
        watcher = session(watching)
        name = f"{url}{PLAIN}&application_name=closing"
        guests = [session(host) for _ in range(3)]
        for guest in guests:
            await only(guest, name, "SELECT 1")
        await guests[0].close()
        running = asyncio.create_task(guests[1].query(name, "SELECT pg_sleep(600)", ()))
        count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'closing'"
        while await only(watcher, url, f"{count} AND state = 'active'") != (Kind.INT64, 1):
            pass
        await host.close()
        with pytest.raises(DatabaseError):
            await running
        idle = f"{count} AND state <> 'active'"  # the server finds out about the other later
        while await only(watcher, url, idle) != (Kind.INT64, 0):
            pass
        with pytest.raises(ConnectionFailedError, match="the app ends"):
            await session(host).query(url, "SELECT 1", ())
        await watcher.execute(
            url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = "
            "'closing'",
            (),
        )
        await watcher.close()
        await watching.close()

    run(main)


def test_a_guest_has_a_limit_of_addresses(server: Server) -> None:
    async def main(guest: PostgresSession, url: str) -> None:
        for number in range(16):
            await only(guest, f"{url}?application_name={number}", "SELECT 1")
        with pytest.raises(ConnectionFailedError, match="may have 16 connections"):
            await guest.query(f"{url}?application_name=x", "SELECT 1", ())

    run_session(server, main)


def test_others_are_served_while_wide_rows_are_taken(server: Server) -> None:
    """Whatever is done with many values at once, others wait for a third of it at most."""
    columns = ", ".join(["a"] * 1600)
    statement = f"SELECT {columns} FROM generate_series(1, 500) t(a)"

    async def main(guest: PostgresSession, address: str) -> None:
        async def take() -> None:
            assert len((await guest.query(address, statement, [])).rows) == 500

        assert await longest_turn(take()) < 1 / 3

    run_session(server, main)
