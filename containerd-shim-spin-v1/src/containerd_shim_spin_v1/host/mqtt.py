"""Publishing messages by MQTT: ``fermyon:spin/mqtt@2.0.0``.

A server is connected to when the first message is published, as Spin does. What guests open are
handles: all who give the same address and login share one connection, which stays for the next
guest and ends when nobody has used it for a while. In Spin each guest connects for itself, and a
server ends the older of two connections that give the same client identifier.

An address is ``mqtt://host[:1883]?client_id=name``, or ``mqtts`` (8883) with TLS; ``tcp`` and
``ssl`` mean the same. Without ``client_id``, which Spin demands, the server chooses one.

Source: Spin 3.6 wit/deps/spin@2.0.0/mqtt.wit, crates/factor-outbound-mqtt/src; rumqttc's
MqttOptions::parse_url.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from containerd_shim_spin_v1.outbound.access import OutboundAccess
from containerd_shimkit.hosts import HostError, parse_host
from containerd_shimkit.http_client.networks import BlockedNetworkError, Networks
from containerd_shimkit.mqtt.connection import (
    ConnectError,
    ConnectionLostError,
    MqttConnection,
    open_connection,
)
from containerd_shimkit.mqtt.packets import (
    MAX_KEEP_ALIVE_SECONDS,
    MAX_REST_BYTES,
    MAX_STRING_BYTES,
    Login,
    Qos,
)
from containerd_shimkit.tasks import take_exception
from containerd_shimkit.tls import TlsConfigError

MAX_HANDLES: Final = 256
MAX_CONNECTIONS: Final = 256
"""Of an app, unless its runtime configuration says so."""
CONNECT_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 10.0

_PORTS: Final = {"mqtt": 1883, "tcp": 1883, "mqtts": 8883, "ssl": 8883}
_TLS: Final = frozenset({"mqtts", "ssl"})
_MAX_ADDRESS: Final = 2048
_UNPRINTABLE: Final = re.compile(r"[\x00-\x20\x7f]")
_IGNORED: Final = frozenset(
    {
        "clean_session",
        "conn_timeout_secs",
        "inflight_num",
        "keep_alive_secs",
        "max_incoming_packet_size_bytes",
        "max_outgoing_packet_size_bytes",
        "max_request_batch_num",
        "pending_throttle_usecs",
        "request_channel_capacity_num",
    }
)
"""Settings of Spin's client that have no meaning here."""


class MqttError(Exception):
    """A call failed; the classes below are the cases of the interface's ``error``."""


class InvalidAddressError(MqttError):
    """The address is none of a server; the message says why."""


class TooManyConnectionsError(MqttError):
    """The guest has too many handles, or the app too many connections."""


class ConnectionFailedError(MqttError):
    """The server cannot be reached, or may not be, or does not let in."""


class OtherMqttError(MqttError):
    """Anything else."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a handle publishes."""

    scheme: str
    host: str
    port: int
    login: Login = field(repr=False)
    keep_alive_seconds: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class MqttHost:
    """The connections of an app."""

    def __init__(
        self,
        networks: Networks,
        tls: Callable[[], ssl.SSLContext],
        *,
        max_connections: int | None = None,
        max_payload_bytes: int | None = None,
    ) -> None:
        """tls: makes the context for servers; may raise TlsConfigError."""
        self._networks = networks
        self._max_connections = MAX_CONNECTIONS if max_connections is None else max_connections
        self.max_payload_bytes = max_payload_bytes
        self._tls = tls
        self._opening: dict[Target, asyncio.Task[MqttConnection]] = {}
        self._open: dict[Target, MqttConnection] = {}
        self.connections: set[MqttConnection] = set()
        """All that there are, also those that are ending."""
        self._closed = False
        self._sweep: asyncio.TimerHandle | None = None

    async def publish(self, target: Target, topic: bytes, payload: bytes, qos: Qos) -> None:
        """Send a message. Raises TooManyConnectionsError, ConnectionFailedError."""
        kept = self._open.get(target)
        if kept is not None and kept.usable:
            try:
                await kept.publish(topic, payload, qos)
                return
            except ConnectionLostError as exc:
                # It may have ended while it was kept. Nobody sends twice what arrives once.
                if exc.sent and qos is not Qos.AT_LEAST_ONCE:
                    raise ConnectionFailedError(f"{target}: {exc}") from None
        connection = await self._connect(target)
        try:
            await connection.publish(topic, payload, qos)
        except ConnectionLostError as exc:
            raise ConnectionFailedError(f"{target}: {exc}") from None

    async def close(self) -> None:
        """End every connection."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        opening = list(self._opening.values())
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        for connection in self.connections:
            connection.end()
        if self.connections:
            await asyncio.wait([connection.lost for connection in self.connections])

    async def _connect(self, target: Target) -> MqttConnection:
        """Return a connection, the one that is being made already or a new one."""
        if (connection := self._open.get(target)) is not None and connection.usable:
            return connection
        task = self._opening.get(target)
        if task is None:
            self._make_room()
            task = asyncio.create_task(self._open_connection(target))
            self._opening[target] = task
            task.add_done_callback(take_exception)
        # One who gives up does not end what others wait for. ``shield`` would log what becomes of
        # it then, with a traceback.
        await asyncio.wait((task,))
        return task.result()

    def _make_room(self) -> None:
        if self._closed:
            raise ConnectionFailedError("the app stops")
        usable = [connection for connection in self.connections if connection.usable]
        if len(usable) + len(self._opening) < self._max_connections:
            return
        unused = [connection for connection in usable if not connection.publishing]
        if not unused:
            raise TooManyConnectionsError(
                f"the app has {self._max_connections} connections, all in use"
            )
        min(unused, key=lambda connection: connection.last_used).end()

    async def _open_connection(self, target: Target) -> MqttConnection:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                hosts = [target.host]
                if self._networks.active:
                    hosts = await self._networks.resolve(target.host, target.port)
                connection = await open_connection(
                    *(hosts, target.port, target.login, target.keep_alive_seconds),
                    tls=self._tls() if target.scheme in _TLS else None,
                    name=target.host,
                )
        except TimeoutError:
            raise ConnectionFailedError(
                f"{target}: no connection within {CONNECT_SECONDS:g} s"
            ) from None
        except (ConnectError, BlockedNetworkError, TlsConfigError, OSError) as exc:
            raise ConnectionFailedError(f"{target}: {exc}") from None
        finally:
            del self._opening[target]
        self._open[target] = connection
        self.connections.add(connection)
        connection.lost.add_done_callback(lambda _: self._forget(target, connection))
        self._sweep_later()
        return connection

    def _forget(self, target: Target, connection: MqttConnection) -> None:
        self.connections.discard(connection)
        if self._open.get(target) is connection:
            del self._open[target]

    def _sweep_later(self) -> None:
        if self._sweep is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(IDLE_SECONDS / 2, self._end_unused, loop)

    def _end_unused(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep = None
        for connection in self.connections:
            if not connection.publishing and loop.time() - connection.last_used > IDLE_SECONDS:
                connection.end()
        if self.connections:
            self._sweep_later()


class MqttSession:
    """The handles of one guest."""

    def __init__(self, host: MqttHost, access: OutboundAccess) -> None:
        self._host = host
        self._access = access
        self._targets: dict[int, Target] = {}
        self._next = 0

    async def open(
        self, address: str, username: str, password: str, keep_alive_seconds: int
    ) -> int:
        """Return a handle; nothing is connected yet.

        keep_alive_seconds: 0 is none.  Raises MqttError, and as ``OutboundAccess.check``.
        """
        target = parse_target(address, username, password, keep_alive_seconds)
        await self._access.check(target.scheme, target.host, target.port)
        if len(self._targets) >= MAX_HANDLES:
            raise TooManyConnectionsError(f"the guest has {MAX_HANDLES} connections open")
        self._next += 1
        self._targets[self._next] = target
        return self._next

    async def publish(self, handle: int, topic: str, payload: bytes, qos: Qos) -> None:
        """Send a message; with ``qos`` the server has acknowledged it. Raises MqttError."""
        target = self._targets.get(handle)
        if target is None:
            raise OtherMqttError(f"there is no connection {handle}")
        encoded = _topic(topic)
        limit = self._host.max_payload_bytes
        if limit is not None and len(payload) > limit:
            raise OtherMqttError(
                f"the payload has {len(payload)} bytes, more than {limit} (max_payload_size_bytes)"
            )
        if len(encoded) + 4 + len(payload) > MAX_REST_BYTES:
            raise OtherMqttError(f"the payload has {len(payload)} bytes, more than MQTT can send")
        await self._host.publish(target, encoded, payload, qos)

    def drop(self, handle: int) -> None:
        """Forget a handle, if there is one."""
        self._targets.pop(handle, None)


def parse_target(address: str, username: str, password: str, keep_alive_seconds: int) -> Target:
    """Return what an address and a login mean. Raises InvalidAddressError.

    username, password: both empty are those of the address, if it has some.
    """
    if len(address) > _MAX_ADDRESS or _UNPRINTABLE.search(address):
        raise InvalidAddressError(f"an address is printable and has up to {_MAX_ADDRESS} letters")
    try:
        parts = urlsplit(address)
        port = parts.port
        host = str(parse_host(_bracketed(parts.hostname or "")))
        settings = dict(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=32))
    except (HostError, ValueError):
        raise InvalidAddressError("must be mqtt://host:port?client_id=name") from None
    if parts.scheme not in _PORTS:
        raise InvalidAddressError(f"must begin with one of {', '.join(_PORTS)} and ://")
    client_id = settings.pop("client_id", "")
    if unknown := settings.keys() - _IGNORED:
        raise InvalidAddressError(f"unknown setting {min(unknown)!r}")
    if not username and not password:
        username, password = unquote(parts.username or ""), unquote(parts.password or "")
    for text in (client_id, username, password):
        if len(text.encode()) > MAX_STRING_BYTES or "\0" in text:
            raise InvalidAddressError(f"names have up to {MAX_STRING_BYTES} bytes, none of them 0")
    return Target(
        parts.scheme,
        host,
        _PORTS[parts.scheme] if port is None else port,
        Login(client_id, username or None, password or None),
        min(keep_alive_seconds, MAX_KEEP_ALIVE_SECONDS),
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _topic(topic: str) -> bytes:
    """Return a topic to publish to: 4.7. Raises OtherMqttError."""
    encoded = topic.encode()
    if not encoded or len(encoded) > MAX_STRING_BYTES:
        raise OtherMqttError(f"a topic has 1 to {MAX_STRING_BYTES} bytes, this has {len(encoded)}")
    if any(character in topic for character in "+#\0"):
        raise OtherMqttError("a topic to publish to holds no +, # or NUL")
    return encoded
