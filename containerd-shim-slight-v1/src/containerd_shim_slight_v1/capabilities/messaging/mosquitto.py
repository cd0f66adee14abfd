"""``messaging.mosquitto``: an MQTT server, without login and TLS, as upstream.

Messages are published with QoS 0, on one connection of the app. A subscription is a connection of
its own with QoS 1, and begins when it is made; a message is acknowledged when a guest takes it.
Whoever receives waits for as long as its request may take. When a subscription's connection is
lost, the next who receives connects again: what was published meanwhile is not received.

Source: SpiderLightning 0.5 crates/messaging/src/implementors/mosquitto.rs.
"""

from __future__ import annotations

import asyncio
from typing import Final

from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.messaging.base import (
    CONNECT_SECONDS,
    MAX_MESSAGE_BYTES,
    ConnectionLostError,
    InsufficientPermissionsError,
    MessagingBackend,
    MessagingError,
    ServiceUnavailableError,
    TopicNotFoundError,
    check_size,
)
from containerd_shim_slight_v1.capabilities.messaging.subscriptions import Subscriptions
from containerd_shimkit.hosts import HostError, parse_host
from containerd_shimkit.mqtt.connection import (
    ConnectError,
    MqttConnection,
    SubscriptionRefusedError,
    open_connection,
)
from containerd_shimkit.mqtt.connection import ConnectionLostError as MqttLostError
from containerd_shimkit.mqtt.packets import MAX_STRING_BYTES, Login, Qos

_KEEP_ALIVE_SECONDS: Final = 60
_MAX_WAITING_BYTES: Final = 256 << 10  # of each of a thousand subscriptions
_CLOSE_SECONDS: Final = 2.0


class Backend(MessagingBackend):
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._publisher: MqttConnection | None = None
        self._connecting = asyncio.Lock()
        self._subscriptions: Subscriptions[_Subscription] = Subscriptions()

    async def publish(self, name: str, topic: str, message: bytes) -> None:
        check_size(message)
        encoded = _topic(topic)
        if any(character in topic for character in "+#"):
            raise TopicNotFoundError("a topic to publish to holds no + and no #")
        for last in (False, True):
            connection = await self._connected()
            try:
                await connection.publish(encoded, message, Qos.AT_MOST_ONCE)
            except MqttLostError as exc:
                if exc.sent or last:
                    raise ConnectionLostError(f"{await self._server()}: {exc}") from None
            else:
                return

    async def subscribe(self, name: str, topic: str) -> str:
        _topic(topic)

        async def make() -> _Subscription:
            subscription = _Subscription(self, topic)
            await subscription.connect()
            return subscription

        return await self._subscriptions.add(make)

    async def receive(self, name: str, token: str) -> bytes:
        with self._subscriptions.used(token) as subscription:
            return await subscription.receive()

    async def unsubscribe(self, name: str, token: str) -> None:
        await self._subscriptions.remove(token)

    async def close(self) -> None:
        await self._subscriptions.close()
        if self._publisher is not None:
            await end(self._publisher)

    async def open(self, max_message_bytes: int | None = None) -> MqttConnection:
        """Return a new connection. Raises MessagingError, ConfigValueError."""
        host, port = await self._host(), await self._port()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await open_connection(
                    *([host], port, Login("", None, None), _KEEP_ALIVE_SECONDS),
                    tls=None,
                    name=host,
                    max_message_bytes=max_message_bytes,
                    max_waiting_bytes=_MAX_WAITING_BYTES,
                )
        except TimeoutError:
            raise ServiceUnavailableError(f"{host}:{port}: no connection in time") from None
        except ConnectError as exc:
            raise ServiceUnavailableError(f"{host}:{port}: {exc}") from None

    async def _connected(self) -> MqttConnection:
        async with self._connecting:
            if self._publisher is None or not self._publisher.usable:
                self._publisher = await self.open()
            return self._publisher

    async def _host(self) -> str:
        host = await self.context.value("MOSQUITTO_HOST")
        try:
            parse_host(f"[{host}]" if ":" in host else host)
        except HostError:
            # It may be a URL, with a password.
            raise MessagingError("MOSQUITTO_HOST is no name or address of a host") from None
        return host

    async def _port(self) -> int:
        text = await self.context.value("MOSQUITTO_PORT")
        if not text.isascii() or not text.isdecimal() or not 0 < int(text[:6]) < 65536:
            raise MessagingError("MOSQUITTO_PORT is no port")
        return int(text)

    async def _server(self) -> str:
        return f"{await self._host()}:{await self._port()}"


class _Subscription:
    """A topic filter and the connection it is subscribed to by."""

    def __init__(self, backend: Backend, topic: str) -> None:
        self._backend = backend
        self._topic = topic
        self._connection: MqttConnection | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    async def connect(self) -> None:
        """Subscribe. Raises MessagingError."""
        connection = await self._backend.open(MAX_MESSAGE_BYTES + MAX_STRING_BYTES)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.subscribe(self._topic)
        except BaseException as exc:
            connection.abort("not subscribed")
            if isinstance(exc, SubscriptionRefusedError):
                raise InsufficientPermissionsError(str(exc)) from None
            if isinstance(exc, TimeoutError | MqttLostError):
                raise ServiceUnavailableError("the server does not subscribe") from None
            raise
        if self._closed:
            connection.abort("nobody waits for it")
            raise TopicNotFoundError("the subscription has ended")
        self._connection = connection

    async def receive(self) -> bytes:
        """Return the next message. Raises MessagingError."""
        for last in (False, True):
            try:
                async with self._connecting:
                    if self._connection is None:
                        await self.connect()
                    connection = self._connection
                assert connection is not None
                return (await connection.receive()).payload
            except MqttLostError as exc:
                if self._closed:
                    raise TopicNotFoundError("the subscription has ended") from None
                if self._connection is connection:
                    self._connection = None
                if last:
                    raise ConnectionLostError(str(exc)) from None
        raise AssertionError

    async def close(self) -> None:
        self._closed = True
        if self._connection is not None:
            await end(self._connection)


async def end(connection: MqttConnection) -> None:
    """Close a connection; return when it has ended."""
    connection.end()
    await asyncio.wait((connection.lost,), timeout=_CLOSE_SECONDS)


def _topic(topic: str) -> bytes:
    encoded = topic.encode()
    if not 1 <= len(encoded) <= MAX_STRING_BYTES or "\0" in topic:
        raise TopicNotFoundError(f"a topic has 1 to {MAX_STRING_BYTES} bytes, and no NUL")
    return encoded
