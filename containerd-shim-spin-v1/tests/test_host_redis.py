"""Redis for guests, against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from containerd_shim_spin_v1.host.redis import (
    InvalidAddressError,
    RedisCallError,
    RedisHost,
    RedisSession,
    TooManyConnectionsError,
    WrongTypeError,
)
from containerd_shim_spin_v1.host.tls import TlsContexts
from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.outbound.access import DestinationNotAllowedError, OutboundAccess
from containerd_shim_spin_v1.runtime_config.model import RuntimeConfig
from containerd_shim_spin_v1.variables.values import Variables
from containerd_shimkit.redis_client import connection as connection_module
from containerd_shimkit.redis_client import pool as pool_module
from containerd_shimkit.redis_client.protocol import Status
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.servers.process import Server, server_directory
from containerd_shimkit.testing.servers.redis import running_redis, running_tls_redis

PASSWORD = "s3cret"


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


def access_to(*hosts: str) -> OutboundAccess:
    app = parse_manifest(MANIFEST % list(hosts), "/spin.toml")
    return OutboundAccess(app.component("c"), Variables(app, []))


class AllNetworks:
    active = False

    async def resolve(self, host: str, port: int) -> list[str]:
        raise AssertionError("nothing is blocked")


def no_tls() -> ssl.SSLContext:
    raise AssertionError("no TLS here")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_redis() as found:
        yield found


@pytest.fixture
def url(server: Server) -> str:
    return f"redis://{server.address}"


def run(main: Callable[[RedisHost], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Call ``main`` with a host; at the end it has no connection left."""

    async def whole() -> None:
        host = RedisHost(
            options.pop("tls", no_tls), options.pop("networks", AllNetworks()), **options
        )
        try:
            async with asyncio.timeout(60):
                await main(host)
        finally:
            await host.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())


@contextlib.asynccontextmanager
async def guest(
    host: RedisHost, access: OutboundAccess | None = None
) -> AsyncIterator[RedisSession]:
    session = host.session(access or access_to("redis://*:*", "rediss://*:*"))
    try:
        yield session
    finally:
        await session.close()


async def clients(session: RedisSession, url: str, what: bytes = b"connected") -> int:
    """Return how many connections the server has."""
    [text] = await session.execute(url, "INFO", [b"clients"])
    assert isinstance(text, bytes)
    return int(text.split(what + b"_clients:")[1].split()[0])


async def until(look: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Return when ``look`` does so with True: for what nobody announces."""
    while not await look():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def until_clients(
    session: RedisSession, url: str, count: int, what: bytes = b"connected"
) -> None:
    """Return when the server has so many connections."""

    async def look() -> bool:
        return await clients(session, url, what) == count

    await until(look)


# Functions


def test_values(url: str) -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            assert await redis.get(url, "no such key") is None
            await redis.set(url, "ключ\r\n\0", b"\0\r\n\xff")
            assert await redis.get(url, "ключ\r\n\0") == b"\0\r\n\xff"
            await redis.set(url, "empty", b"")
            assert await redis.get(url, "empty") == b""
            assert await redis.delete(url, ["ключ\r\n\0", "empty", "no such key"]) == 2

    run(main)


def test_numbers(url: str) -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            await redis.delete(url, ["n"])
            assert [await redis.incr(url, "n") for _ in range(3)] == [1, 2, 3]
            await redis.set(url, "n", b"9223372036854775806")
            assert await redis.incr(url, "n") == (1 << 63) - 1
            with pytest.raises(RedisCallError, match="would overflow"):
                await redis.incr(url, "n")
            await redis.set(url, "n", b"many")
            with pytest.raises(RedisCallError, match="not an integer"):
                await redis.incr(url, "n")

    run(main)


def test_sets(url: str) -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            await redis.delete(url, ["s"])
            assert await redis.sadd(url, "s", ["a", "b", "a"]) == 2
            assert await redis.sadd(url, "s", ["a", "ü"]) == 1
            assert sorted(await redis.smembers(url, "s")) == ["a", "b", "ü"]
            assert await redis.srem(url, "s", ["a", "x"]) == 1
            assert await redis.smembers(url, "no such set") == []
            await redis.execute(url, "SADD", [b"s", b"\xff"])
            with pytest.raises(WrongTypeError, match="no text"):
                await redis.smembers(url, "s")

    run(main)


def test_wrong_type(url: str) -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            await redis.set(url, "text", b"x")
            with pytest.raises(WrongTypeError, match=r"redis://127.*: WRONGTYPE "):
                await redis.sadd(url, "text", ["a"])
            with pytest.raises(WrongTypeError):
                await redis.smembers(url, "text")
            with pytest.raises(RedisCallError, match="wrong number of arguments"):
                await redis.delete(url, [])

    run(main)


def test_execute(url: str) -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            assert await redis.execute(url, "set", [b"k", -5]) == [Status(b"OK")]
            assert await redis.execute(url, "GET", [b"k"]) == [b"-5"]
            assert await redis.execute(url, "GET", [b"no such key"]) == [None]
            assert await redis.execute(url, "INCRBY", [b"k", 7]) == [2]
            script = b"return {1, {'a', {false, redis.status_reply('fine')}}, {}}"
            assert await redis.execute(url, "EVAL", [script, 0]) == [1, b"a", None, Status(b"fine")]
            with pytest.raises(RedisCallError, match="unknown command"):
                await redis.execute(url, "GET k", [])
            with pytest.raises(RedisCallError, match="unknown command"):
                await redis.execute(url, "", [])

    run(main)


def test_publish(url: str) -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host) as redis, guest(host) as listener:
            assert await listener.execute(url, "SUBSCRIBE", [b"c"]) == [b"subscribe", b"c", 1]
            own = next(iter(listener._own.values()))
            await redis.publish(url, "c", b"\0hello")
            assert await own.read() == [b"message", b"c", b"\0hello"]

    run(main)


def test_large_value(url: str) -> None:
    value = bytes(range(256)) * (10 << 12)

    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            await redis.set(url, "large", value)
            assert await redis.get(url, "large") == value
            await redis.delete(url, ["large"])

    run(main)


def test_reply_that_is_too_large(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by its announced length, and the next call works."""
    defaults = connection_module.connect.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "max_reply_bytes", 1 << 20)

    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            await redis.set(url, "large", bytes(2 << 20))
            with pytest.raises(RedisCallError, match="the reply exceeds 1048576 bytes"):
                await redis.get(url, "large")
            assert await redis.delete(url, ["large"]) == 1

    run(main)


# Whom a connection belongs to


def test_connections_are_shared(url: str) -> None:
    async def main(host: RedisHost) -> None:
        for _ in range(20):
            async with guest(host) as redis:
                await redis.get(url, "x")
        async with guest(host) as redis:
            assert await clients(redis, url) == 1

    run(main)


def test_state_of_a_connection_is_its_guests(url: str) -> None:
    """What a guest selects or begins is seen by its own calls and by nobody after it."""

    async def main(host: RedisHost) -> None:
        async with guest(host) as redis, guest(host) as other:
            await redis.set(url, "where", b"0")
            assert await redis.execute(url, "SELECT", [5]) == [Status(b"OK")]
            await redis.set(url, "where", b"5")
            assert await other.get(url, "where") == b"0"
            assert await redis.get(url, "where") == b"5"
            assert await redis.get(url + "/5", "where") == b"5"
            await redis.delete(url, ["where"])
            assert await redis.execute(url, "MULTI", []) == [Status(b"OK")]
            with pytest.raises(WrongTypeError, match="in a transaction"):
                await redis.incr(url, "n")
        async with guest(host) as redis:
            assert await redis.get(url, "where") == b"0"

    run(main)


def test_transaction(url: str) -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            await redis.execute(url, "MULTI", [])
            await redis.set(url, "t", b"1")
            assert await redis.execute(url, "GET", [b"t"]) == [Status(b"QUEUED")]
            assert await redis.execute(url, "EXEC", []) == [Status(b"OK"), b"1"]
            await redis.execute(url, "MULTI", [])
            await redis.execute(url, "LPOP", [b"t"])
            with pytest.raises(RedisCallError, match="WRONGTYPE"):
                await redis.execute(url, "EXEC", [])

    run(main)


def test_own_connections_are_bounded(url: str) -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            for number in range(16):
                await redis.execute(f"{url}/{number}", "SELECT", [0])
            with pytest.raises(TooManyConnectionsError):
                await redis.execute(url.replace("://", "://u@"), "SELECT", [0])
            assert await clients(redis, url) == 16
        async with guest(host) as redis:
            await until_clients(redis, url, 1)

    run(main)


# Who may connect, and where


def test_denied_host(url: str) -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host, access_to("redis://cache.test:*")) as redis:
            with pytest.raises(DestinationNotAllowedError, match=r'"redis://nowhere\.invalid"'):
                await redis.get("redis://nowhere.invalid", "x")
            with pytest.raises(DestinationNotAllowedError, match=r'"rediss://cache\.test:1"'):
                await redis.get("rediss://u:p@cache.test:1/2?x", "x")

    run(main)


def test_bad_address() -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            with pytest.raises(InvalidAddressError) as caught:
                await redis.get(f"unix://u:{PASSWORD}@/run/x.sock", "x")
            assert PASSWORD not in str(caught.value)

    run(main)


def test_networks_say_what_is_connected_to(server: Server) -> None:
    class Found:
        active = True

        async def resolve(self, host: str, port: int) -> list[str]:
            assert (host, port) == ("cache.invalid", server.port)
            return ["127.255.255.254", server.host]

    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            assert await redis.get(f"redis://cache.invalid:{server.port}", "no such key") is None

    run(main, networks=Found())


def test_password() -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            assert await redis.execute(f"redis://:{PASSWORD}@{address}/2", "PING", []) == [
                Status(b"PONG")
            ]
            for wrong in ("", ":wrong@", "nobody:wrong@"):
                with pytest.raises(RedisCallError, match=f"redis://{address}: (NOAUTH|WRONGPASS)"):
                    await redis.get(f"redis://{wrong}{address}", "x")
            # A connection with a password is not for whoever has none.
            with pytest.raises(RedisCallError, match="NOAUTH"):
                await redis.get(f"redis://{address}/2", "x")

    with running_redis("--requirepass", PASSWORD) as found:
        address = found.address
        run(main)


def test_database_that_is_not_there(url: str) -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            with pytest.raises(RedisCallError, match="DB index is out of range"):
                await redis.get(url + "/9999", "x")

    run(main)


@pytest.fixture(scope="module")
def certificate() -> Iterator[tuple[Path, Path]]:
    """A certificate for ``cache.test`` that signs itself, and its key."""
    with server_directory() as directory:
        cert, key = directory / "cert.pem", directory / "key.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-subj", "/CN=test"),
                *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"),
                *("-addext", "subjectAltName=DNS:cache.test", "-keyout", key, "-out", cert),
            ],
            check=True,
            capture_output=True,
        )
        key.chmod(0o644)
        directory.chmod(0o755)
        yield cert, key


def test_without_certificates_a_server_cannot_be_checked(tmp_path: Path) -> None:
    """Nobody listens: the connection is not even tried."""

    async def main(host: RedisHost) -> None:
        async with guest(host) as session:
            with pytest.raises(RedisCallError, match="connect: there are no certificates"):
                await session.get("rediss://127.0.0.1:1", "k")

    tls = TlsContexts(RuntimeConfig(), {}, root=tmp_path)
    run(main, tls=tls.default)


def test_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate

    class Found:
        active = True

        async def resolve(self, host: str, port: int) -> list[str]:
            return [own_server.host]

    async def trusted(host: RedisHost) -> None:
        async with guest(host) as redis:
            own_url = f"rediss://cache.test:{own_server.port}"
            await redis.set(own_url, "large", bytes(10 << 20))
            assert await redis.get(own_url, "large") == bytes(10 << 20)
            with pytest.raises(RedisCallError, match=r"(?i)certificate verify failed"):
                await redis.get(f"rediss://other.test:{own_server.port}", "x")

    async def untrusted(host: RedisHost) -> None:
        async with guest(host) as redis:
            with pytest.raises(RedisCallError, match=r"(?i)certificate verify failed"):
                await redis.get(f"rediss://cache.test:{own_server.port}", "x")

    trusting = ssl.create_default_context(cafile=str(cert))
    with running_tls_redis(str(cert), str(key)) as own_server:
        run(trusted, tls=lambda: trusting, networks=Found())
        run(untrusted, tls=ssl.create_default_context, networks=Found())


# Servers that fail


def test_server_down() -> None:
    host, port = free_address()

    async def main(redis_host: RedisHost) -> None:
        async with guest(redis_host) as redis:
            with pytest.raises(RedisCallError, match=f"redis://{host}:{port}: cannot connect: "):
                await redis.get(f"redis://u:{PASSWORD}@{host}:{port}", "x")
            with pytest.raises(RedisCallError, match="cannot connect: "):
                await redis.get("redis://nowhere.invalid", "x")

    run(main)


@contextlib.asynccontextmanager
async def silent_server(answer: bytes = b"") -> AsyncIterator[str]:
    """A server that answers each piece of data with ``answer``; yields its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            writer.write(answer)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()


def test_server_that_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CONNECT_SECONDS", 0.05)

    async def main(host: RedisHost) -> None:
        async with silent_server() as address, guest(host) as redis:
            with pytest.raises(RedisCallError, match=r"no answer within 0\.05 s"):
                await redis.get(f"redis://:x@{address}", "x")

    run(main)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"%1\r\n", b"+OK\r\n+OK\r\n"]
)
def test_server_of_another_kind(answer: bytes) -> None:
    """Its answers are errors, or at least taken for no other command's."""

    async def main(host: RedisHost) -> None:
        async with silent_server(answer) as address, guest(host) as redis:
            for _ in range(3):
                with pytest.raises(RedisCallError):
                    await redis.get(f"redis://{address}", "x")
            assert not host._pool._all

    run(main)


def test_server_restarts() -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            await redis.set(own_url, "x", b"1")
            for number in (signal.SIGTERM, signal.SIGKILL):
                own_server.stop(number)
                own_server.start()
                # The loop has had no turn to hear that its connection has ended.
                assert await redis.get(own_url, "x") is None
                own_server.stop(number)
                with pytest.raises(RedisCallError, match="cannot connect"):
                    await redis.get(own_url, "x")
                own_server.start()

    with running_redis() as own_server:
        own_url = f"redis://{own_server.address}"
        run(main)


def test_transaction_is_lost_with_its_server() -> None:
    """A command of it must not run by itself on a new connection."""

    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            await redis.execute(own_url, "MULTI", [])
            own_server.stop()
            own_server.start()
            with pytest.raises(RedisCallError, match="the connection was closed"):
                await redis.set(own_url, "x", b"1")
            assert await redis.get(own_url, "x") is None

    with running_redis() as own_server:
        own_url = f"redis://{own_server.address}"
        run(main)


def test_server_that_ends_while_a_command_runs() -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host) as redis, guest(host) as other:
            call = asyncio.create_task(redis.execute(own_url, "BLPOP", [b"k", 0]))
            await until_clients(other, own_url, 2)
            own_server.stop(signal.SIGKILL)
            with pytest.raises(RedisCallError, match="the connection was closed"):
                await call

    with running_redis() as own_server:
        own_url = f"redis://{own_server.address}"
        run(main)


# Cancelled calls, many calls


@pytest.mark.parametrize("command", ["BLPOP", "blpop k"])
def test_cancelled_call_leaves_no_connection(url: str, command: str) -> None:
    """The reply that still comes must be nobody else's."""

    async def main(host: RedisHost) -> None:
        async with guest(host) as redis, guest(host) as other:
            await redis.delete(url, ["k"])
            words: list[int | bytes] = [b"k", 0]
            if command == "BLPOP":
                call = asyncio.create_task(redis.execute(url, command, words))
            else:  # on a connection of its own
                await redis.execute(url, "SELECT", [0])
                call = asyncio.create_task(redis.execute(url, "BLPOP", words))
            await until_clients(other, url, 1, b"blocked")
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            # Until it hears of the end the server would still give the value to that client.
            await until_clients(other, url, 0, b"blocked")
            assert await redis.execute(url, "RPUSH", [b"k", b"v"]) == [1]
            assert await redis.execute(url, "LPOP", [b"k"]) == [b"v"]

    run(main)


def test_cancelled_anywhere(url: str) -> None:
    """Calls cancelled after any number of the loop's turns neither leak nor mix up replies."""

    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            for number in range(200):
                await redis.set(url, f"key {number}", b"%d" % number)
            for turns in range(12):
                calls = [
                    asyncio.create_task(redis.get(url, f"key {number}")) for number in range(20)
                ]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for call in calls[::2]:
                    call.cancel()
                answers = await asyncio.gather(*calls, return_exceptions=True)
                assert answers[1::2] == [b"%d" % number for number in range(1, 20, 2)]
            assert len(host._pool._all) == len(host._pool._idle)
            await until_clients(redis, url, len(host._pool._all))

    run(main)


def test_many_guests_wait_at_once(url: str) -> None:
    """Each waits on its own connection, and most of these are closed again afterwards."""

    async def main(host: RedisHost) -> None:
        async def one() -> None:
            async with guest(host) as redis:
                assert await redis.execute(url, "BLPOP", [b"no such list", b"0.2"]) == [None]

        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            for _ in range(500):
                group.create_task(one())
        assert len(host._pool._all) == len(host._pool._idle) == pool_module.MAX_IDLE
        async with guest(host) as redis:
            await until_clients(redis, url, pool_module.MAX_IDLE)

    run(main)


def test_idle_connections_are_closed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "IDLE_SECONDS", 0.02)

    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            await redis.get(url, "x")

        async def none_left() -> bool:
            return not host._pool._all

        await until(none_left)
        assert not host._pool._by_address

    run(main)


def test_connections_are_limited(url: str) -> None:
    """Who needs one more waits, and idle ones of other addresses make room."""

    async def main(host: RedisHost) -> None:
        async def one(database: int) -> None:
            async with guest(host) as redis:
                await redis.execute(f"{url}/{database}", "BLPOP", [b"no such list", b"0.01"])
                assert len(host._pool._all) <= 3

        await asyncio.gather(*(one(number % 8) for number in range(24)))
        waiting = [asyncio.create_task(one(number)) for number in range(6)]
        await asyncio.sleep(0)
        for call in waiting:
            call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.gather(*(one(number) for number in range(6)))

    run(main, max_connections=3)


def test_no_connection_is_left(url: str, server: Server) -> None:
    async def main(host: RedisHost) -> None:
        async with guest(host) as redis:
            await redis.get(url, "x")
            await redis.execute(url, "SELECT", [1])
            call = asyncio.create_task(redis.execute(url, "BLPOP", [b"k", 0]))
            await asyncio.sleep(0)
            await host.close()
            with pytest.raises(RedisCallError, match="closed"):
                await call
            with pytest.raises(RedisCallError, match="the app stops"):
                await redis.get(url, "x")

    run(main)
