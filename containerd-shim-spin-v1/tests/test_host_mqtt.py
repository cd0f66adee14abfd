"""Publishing by MQTT to a real server, and to some that behave badly."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import os
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
import uvloop

from containerd_shim_spin_v1.host import mqtt as mqtt_module
from containerd_shim_spin_v1.host.mqtt import (
    MAX_HANDLES,
    ConnectionFailedError,
    InvalidAddressError,
    MqttHost,
    MqttSession,
    OtherMqttError,
    Target,
    TooManyConnectionsError,
    parse_target,
)
from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.outbound.access import DestinationNotAllowedError, OutboundAccess
from containerd_shim_spin_v1.variables.values import Variables
from containerd_shimkit.http_client.networks import Networks
from containerd_shimkit.mqtt import connection as mqtt_connection
from containerd_shimkit.mqtt.packets import Login, Qos
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.servers.mosquitto import running_mosquitto
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.tls import Authority, certificate_authority

DEADLINE = 20.0
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
allowed_outbound_hosts = [{hosts}]
"""


def access(*hosts: str) -> OutboundAccess:
    entries = ", ".join(f'"{host}"' for host in hosts or ("*://*:*",))
    app = parse_manifest(MANIFEST.format(hosts=entries), "/spin.toml")
    return OutboundAccess(app.component("c"), Variables(app, []))


def no_tls() -> ssl.SSLContext:
    raise AssertionError("no TLS is used")


@asynccontextmanager
async def running_host(**options: Any) -> AsyncIterator[MqttHost]:
    host = MqttHost(options.pop("networks", Networks()), options.pop("tls", no_tls), **options)
    try:
        yield host
    finally:
        await host.close()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(DEADLINE * 2):
            await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_mosquitto() as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[Server]:
    """One to be stopped."""
    with running_mosquitto() as running:
        yield running


@pytest.fixture(scope="module")
def private_server() -> Iterator[Server]:
    with running_mosquitto(users={"ann": PASSWORD}) as running:
        yield running


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with certificate_authority() as made:
        yield made


@asynccontextmanager
async def subscribed(server: Server, topic: str) -> AsyncIterator[aiomqtt.Client]:
    """Somebody else's client, which gets what is sent to ``topic``."""
    async with aiomqtt.Client(server.host, server.port) as client:
        await client.subscribe(topic, qos=2)
        yield client


async def messages(client: aiomqtt.Client, count: int) -> list[tuple[str, bytes, int]]:
    found: list[tuple[str, bytes, int]] = []
    async with asyncio.timeout(DEADLINE):
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            found.append((str(message.topic), message.payload, message.qos))
            if len(found) == count:
                break
    return found


async def open_session(host: MqttHost, server: Server, **changes: str) -> tuple[MqttSession, int]:
    session = MqttSession(host, access())
    given = {"username": "", "password": "", "query": ""} | changes
    address = f"mqtt://{server.address}{given['query']}"
    return session, await session.open(address, given["username"], given["password"], 60)


@pytest.mark.parametrize("size", [0, 1, 10_000_000], ids=["empty", "byte", "10 MB"])
@pytest.mark.parametrize("qos", Qos)
def test_message_arrives(server: Server, qos: Qos, size: int) -> None:
    topic = f"é/{qos}/{size}"
    payload = os.urandom(size)

    async def main() -> None:
        async with subscribed(server, topic) as client, running_host() as host:
            session, handle = await open_session(host, server)
            await session.publish(handle, topic, payload, qos)
            assert await messages(client, 1) == [(topic, payload, qos)]

    run(main)


def test_many_messages_share_one_connection(server: Server) -> None:
    async def main() -> None:
        async with subscribed(server, "many") as client, running_host() as host:
            sessions = [
                await open_session(host, server, query="?client_id=many") for _ in range(50)
            ]
            async with asyncio.TaskGroup() as group:
                for number, (session, handle) in enumerate(sessions * 3):
                    qos = Qos(number % 3)
                    group.create_task(session.publish(handle, "many", b"%d" % number, qos))
            found = await messages(client, 150)
            assert sorted(int(payload) for _, payload, _ in found) == list(range(150))
            assert all(int(payload) % 3 == qos for _, payload, qos in found)

    run(main)
    assert server.log.read_text().count(" as many (") == 1


def test_login(private_server: Server) -> None:
    async def main() -> None:
        async with running_host() as host:
            session, handle = await open_session(
                host, private_server, username="ann", password=PASSWORD
            )
            await session.publish(handle, "t", b"", Qos.EXACTLY_ONCE)
            address = f"mqtt://ann:{PASSWORD}@{private_server.address}"
            handle = await session.open(address, "", "", 0)
            await session.publish(handle, "t", b"", Qos.EXACTLY_ONCE)

    run(main)


@pytest.mark.parametrize(
    ("username", "password"), [("", ""), ("ann", "wr0ng"), ("bob", PASSWORD), ("", PASSWORD)]
)
def test_wrong_login(private_server: Server, username: str, password: str) -> None:
    async def main() -> None:
        async with running_host() as host:
            session, handle = await open_session(
                host, private_server, username=username, password=password
            )
            with pytest.raises(ConnectionFailedError) as caught:
                await session.publish(handle, "t", b"", Qos.AT_MOST_ONCE)
            assert str(caught.value) == (
                f"mqtt://{private_server.address}: refused: not authorized"
            )

    run(main)


def test_tls(authority: Authority) -> None:
    address = free_address()
    certificate = authority.issue("mosquitto", f"IP:{address[0]}")

    def trusting() -> ssl.SSLContext:
        return ssl.create_default_context(cafile=authority.cert)

    async def main(tls: Callable[[], ssl.SSLContext]) -> None:
        async with running_host(tls=tls) as host:
            session = MqttSession(host, access())
            handle = await session.open(f"mqtts://{address[0]}:{address[1]}", "", "", 60)
            await session.publish(handle, "t", b"x" * 1_000_000, Qos.EXACTLY_ONCE)

    with running_mosquitto(certificate=certificate, address=address):
        run(lambda: main(trusting))
        with pytest.raises(ConnectionFailedError, match=r"no TLS connection: .*certificate"):
            run(lambda: main(ssl.create_default_context))


def test_server_that_is_not_there(server: Server) -> None:
    host, port = free_address()

    async def main() -> None:
        async with running_host() as mqtt:
            session = MqttSession(mqtt, access())
            for address in (f"{host}:{port}", "nobody.invalid:1883"):
                handle = await session.open(f"mqtt://ann:{PASSWORD}@{address}", "", "", 60)
                with pytest.raises(ConnectionFailedError, match=f"^mqtt://{address}: ") as caught:
                    await session.publish(handle, "t", b"", Qos.AT_MOST_ONCE)
                assert PASSWORD not in str(caught.value)

    run(main)


def test_denied_host(server: Server) -> None:
    async def main() -> None:
        async with running_host() as host:
            session = MqttSession(host, access("mqtt://127.0.0.1", "redis://*:*"))
            with pytest.raises(DestinationNotAllowedError) as caught:
                await session.open(f"mqtt://{server.address}", "ann", PASSWORD, 60)
            assert f'allowed_outbound_hosts = ["mqtt://{server.address}"]' in str(caught.value)
            assert PASSWORD not in str(caught.value)
            assert await session.open("mqtt://127.0.0.1?client_id=x", "", "", 60) == 1

    run(main)


def test_blocked_network(server: Server) -> None:
    networks = Networks([ipaddress.ip_network("127.0.0.0/8")])

    async def main() -> None:
        async with running_host(networks=networks) as host:
            session, handle = await open_session(host, server)
            with pytest.raises(ConnectionFailedError, match="block_networks"):
                await session.publish(handle, "t", b"", Qos.AT_MOST_ONCE)

    run(main)


@pytest.mark.parametrize("qos", Qos)
def test_server_that_was_restarted(own_server: Server, qos: Qos) -> None:
    async def main() -> None:
        async with running_host() as host:
            session, handle = await open_session(host, own_server)
            await session.publish(handle, "t", b"", Qos.AT_LEAST_ONCE)
            await asyncio.to_thread(own_server.stop, signal.SIGKILL)
            with pytest.raises(ConnectionFailedError):
                await session.publish(handle, "t", b"", qos)
            await asyncio.to_thread(own_server.start)
            async with subscribed(own_server, "t") as client:
                await session.publish(handle, "t", b"x", qos)
                assert await messages(client, 1) == [("t", b"x", qos)]

    run(main)


def test_cancelled_at_any_moment(server: Server) -> None:
    """Whoever gives up leaves a connection that serves the next, or none."""

    async def main() -> None:
        async with running_host() as host:
            for steps in range(30):
                for qos in Qos:
                    session, handle = await open_session(
                        host, server, query=f"?client_id=cancel-{steps}"
                    )
                    publishing = session.publish(handle, "t", b"x" * 300_000, qos)
                    task = asyncio.create_task(publishing)
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    await session.publish(handle, "t", b"", Qos.EXACTLY_ONCE)
            # 30 of them by now, all kept.
            assert len(host.connections) == 30

    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    run(main)
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors


def test_connection_that_fails_when_nobody_waits_any_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is nobody's concern: asyncio logs exceptions of tasks that nobody has asked for."""
    monkeypatch.setattr(mqtt_module, "CONNECT_SECONDS", 0.1)

    async def main() -> None:
        async with bad_server(never) as address, running_host() as host:
            session = MqttSession(host, access())
            publishing = session.publish(
                await session.open(address, "", "", 0), "t", b"", Qos.AT_LEAST_ONCE
            )
            before = asyncio.all_tasks()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await publishing
            (connecting,) = asyncio.all_tasks() - before
            await asyncio.wait([connecting])
            del connecting
            gc.collect()

    run(main)
    assert not caplog.records


def test_close_ends_what_waits(own_server: Server) -> None:
    async def main() -> None:
        async with running_host() as host:
            session, handle = await open_session(host, own_server)
            await session.publish(handle, "t", b"", Qos.AT_LEAST_ONCE)
            own_server.send_signal(signal.SIGSTOP)
            try:
                waiting = asyncio.create_task(session.publish(handle, "t", b"", Qos.EXACTLY_ONCE))
                connecting = asyncio.create_task(
                    session.publish(
                        await session.open(f"mqtt://{own_server.address}?client_id=b", "", "", 0),
                        *("t", b"", Qos.EXACTLY_ONCE),
                    )
                )
                await asyncio.sleep(0)
                await host.close()
            finally:
                own_server.send_signal(signal.SIGCONT)
            results = await asyncio.gather(waiting, connecting, return_exceptions=True)
            assert [type(result) for result in results] == [
                ConnectionFailedError,
                asyncio.CancelledError,
            ]
            with pytest.raises(ConnectionFailedError, match="the app stops"):
                await session.publish(handle, "t", b"", Qos.AT_MOST_ONCE)

    run(main)


def test_unused_connection_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_module, "IDLE_SECONDS", 0.05)

    async def main() -> None:
        async with running_host() as host:
            session, handle = await open_session(host, server)
            await session.publish(handle, "t", b"", Qos.AT_LEAST_ONCE)
            (connection,) = host.connections
            assert await connection.lost == "the connection was closed"
            assert not host.connections
            await session.publish(handle, "t", b"", Qos.AT_LEAST_ONCE)

    run(main)


def test_connections_are_limited(server: Server) -> None:
    async def main() -> None:
        async with running_host(max_connections=1) as host:
            session = MqttSession(host, access())
            handles = [
                await session.open(f"mqtt://{server.address}?client_id=limit-{n}", "", "", 60)
                for n in range(2)
            ]
            # One that nobody uses makes room; one in use does not.
            for _ in range(3):
                for handle in handles:
                    await session.publish(handle, "t", b"", Qos.AT_LEAST_ONCE)
            task = asyncio.create_task(session.publish(handles[0], "t", b"", Qos.EXACTLY_ONCE))
            await asyncio.sleep(0)
            with pytest.raises(TooManyConnectionsError, match="has 1 connections, all in use"):
                await session.publish(handles[1], "t", b"", Qos.AT_LEAST_ONCE)
            await task

    run(main)


# Servers that behave badly

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def bad_server(behaviour: Behaviour) -> AsyncIterator[str]:
    """A server that gets each connection after its CONNECT."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readexactly(2)
            await reader.readexactly(head[1])
            await behaviour(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    host, port = free_address()
    async with await asyncio.start_server(serve, host, port):
        yield f"mqtt://{host}:{port}"


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def receive_for_ever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say that a message was received, many times, and another that never was; read nothing."""
    writer.write(b"\x20\x02\0\0")
    await reader.readexactly(2)
    for _ in range(100):
        writer.write(b"\x50\x02\0\1" * 1000 + b"\x50\x02\0\2" * 1000)
        await writer.drain()
    writer.write(b"\x70\x02\0\1")
    await never(reader, writer)


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    pass


async def talk_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await reader.read()


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x20\x02\x00\x09")
    await reader.read()


async def only_accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x20\x02\x00\x00")
    await reader.read()


async def accept_and_hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x20\x02\x00\x00")
    await reader.readexactly(1)


async def send_to_us(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x20\x02\x00\x00\x30\x03\x00\x01a")
    await reader.read()


async def answer_what_was_not_asked(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(b"\x20\x02\x00\x00\x40\x02\x77\x77\x70\x02\x77\x77\x20\x02\x00\x05\xd0\x00")
    await reader.read()


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (never, "no connection within 0.3 s"),
        (hang_up, "the server closed the connection"),
        (talk_http, "the server does not speak MQTT: PUBACK with flags 8 and 84 bytes"),
        (refuse, "refused: return code 9"),
        (only_accept, "the server does not answer"),
        (accept_and_hang_up, "the server closed the connection"),
        (send_to_us, "the server does not speak MQTT: packet type 3 is not for a client"),
        (answer_what_was_not_asked, "the server does not answer"),
    ],
)
def test_bad_server(behaviour: Behaviour, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_module, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(mqtt_connection, "_CHECK_SECONDS", 0.05)

    async def main() -> None:
        async with bad_server(behaviour) as address, running_host() as host:
            session = MqttSession(host, access())
            handle = await session.open(address, "", "", 0)
            with pytest.raises(ConnectionFailedError) as caught:
                await session.publish(handle, "t", b"", Qos.EXACTLY_ONCE)
            assert str(caught.value) == f"{address}: {message}"
            assert not host.connections

    run(main)


def test_server_that_does_not_read_gets_one_message_at_a_time() -> None:
    """What many guests send does not pile up in memory."""
    size = 20_000_000  # more than sockets hold

    async def main() -> None:
        reading = asyncio.Event()

        async def stop_reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"\x20\x02\x00\x00")
            await reading.wait()
            await reader.readexactly(5 * size)

        async with bad_server(stop_reading) as address, running_host() as host:
            session = MqttSession(host, access())
            handle = await session.open(address, "", "", 0)
            payload = b"x" * size
            tasks = [
                asyncio.create_task(session.publish(handle, "t", payload, Qos.AT_MOST_ONCE))
                for _ in range(5)
            ]
            await asyncio.wait(tasks, timeout=0.3)
            (connection,) = host.connections
            assert 0 < connection.unsent_bytes < size + 100
            reading.set()
            await asyncio.gather(*tasks)

    run(main)


def test_keep_alive_is_kept() -> None:
    async def main() -> None:
        pinged: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def wait_for_ping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"\x20\x02\x00\x00")
            await reader.readexactly(5)
            pinged.set_result(await reader.readexactly(2))
            await reader.read()

        async with bad_server(wait_for_ping) as address, running_host() as host:
            session = MqttSession(host, access())
            handle = await session.open(address, "", "", 1)
            await session.publish(handle, "t", b"", Qos.AT_MOST_ONCE)
            async with asyncio.timeout(0.9):
                assert await pinged == b"\xc0\x00"

    run(main)


# Handles, addresses and messages


def test_handles() -> None:
    async def main() -> None:
        async with running_host() as host:
            session = MqttSession(host, access())
            handles = [await session.open("mqtt://h", "", "", 0) for _ in range(MAX_HANDLES)]
            assert len(set(handles)) == MAX_HANDLES
            with pytest.raises(TooManyConnectionsError, match="the guest has 256 connections open"):
                await session.open("mqtt://h", "", "", 0)
            session.drop(handles[0])
            session.drop(handles[0])
            with pytest.raises(OtherMqttError, match=f"there is no connection {handles[0]}"):
                await session.publish(handles[0], "t", b"", Qos.AT_MOST_ONCE)
            assert await session.open("mqtt://h", "", "", 0) not in handles

    run(main)


@pytest.mark.parametrize(
    ("topic", "payload", "message"),
    [
        ("", b"", "a topic has 1 to 65535 bytes, this has 0"),
        ("é" * 32_768, b"", "a topic has 1 to 65535 bytes, this has 65536"),
        ("a/+", b"", "holds no"),
        ("a/#", b"", "holds no"),
        ("\0", b"", "holds no"),
        ("t", b"12345", "the payload has 5 bytes, more than 4 (max_payload_size_bytes)"),
    ],
)
def test_message_that_cannot_be(topic: str, payload: bytes, message: str) -> None:
    async def main() -> None:
        async with running_host(max_payload_bytes=4) as host:
            session = MqttSession(host, access())
            handle = await session.open("mqtt://h", "", "", 0)
            with pytest.raises(OtherMqttError) as caught:
                await session.publish(handle, topic, payload, Qos.AT_MOST_ONCE)
            assert message in str(caught.value)

    run(main)


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("mqtt://h", ("mqtt", "h", 1883, "", None, None)),
        ("mqtt://H.Example:1?client_id=a%20b", ("mqtt", "h.example", 1, "a b", None, None)),
        ("tcp://h", ("tcp", "h", 1883, "", None, None)),
        ("mqtts://h", ("mqtts", "h", 8883, "", None, None)),
        ("ssl://h:8884", ("ssl", "h", 8884, "", None, None)),
        ("mqtt://[::1]:1", ("mqtt", "::1", 1, "", None, None)),
        ("mqtt://0x7f.1", ("mqtt", "127.0.0.1", 1883, "", None, None)),
        ("mqtt://bücher.example", ("mqtt", "xn--bcher-kva.example", 1883, "", None, None)),
        ("mqtt://u%40:p%3A@h", ("mqtt", "h", 1883, "", "u@", "p:")),
        ("mqtt://h?keep_alive_secs=5&client_id=", ("mqtt", "h", 1883, "", None, None)),
    ],
)
def test_address(address: str, target: tuple[Any, ...]) -> None:
    scheme, host, port, *login = target
    assert parse_target(address, "", "", 5) == Target(scheme, host, port, Login(*login), 5)


def test_login_comes_before_that_of_the_address() -> None:
    target = parse_target("mqtt://u:p@h", "ann", PASSWORD, 1 << 63)
    assert target.login == Login("", "ann", PASSWORD)
    assert target.keep_alive_seconds == 65_535
    assert PASSWORD not in repr(target)


@pytest.mark.parametrize(
    "address",
    [
        *("", "h", "h:1883", "mqtt:h", "mqtt://", "mqtt://:1", "http://h", "ws://h", "mqtt://h:x"),
        *("mqtt://h:65536", "mqtt://h h", "mqtt://h\n", "mqtt://[::1", "mqtt://h?unknown=1"),
        *("mqtt://h?client_id=%00", f"mqtt://{'h' * 3000}", "mqtt://999.1.1.1"),
        *("mqtt://h?" + "&".join("a=1" for _ in range(100)), "mqtt://a\u2100b"),
    ],
)
def test_address_that_is_none(address: str) -> None:
    with pytest.raises(InvalidAddressError):
        parse_target(address, "", "", 0)


def test_a_server_that_never_reads_does_not_fill_our_memory() -> None:
    async def main() -> None:
        async with bad_server(receive_for_ever) as address, running_host() as host:
            session = MqttSession(host, access())
            handle = await session.open(address, "", "", 0)
            await session.publish(handle, "t", b"", Qos.EXACTLY_ONCE)
            (connection,) = host.connections
            assert connection.unsent_bytes < 100

    run(main)
