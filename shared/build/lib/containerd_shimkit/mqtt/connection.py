"""One connection to an MQTT server: to publish, shared by many, or to receive what is published.

Messages of many are under way at once, told apart by packet identifiers. One who gives up leaves
his message under way: its identifier is free again when the server has answered.

What is received is acknowledged when somebody takes it. While much waits to be taken, nothing more
is read.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Final, cast

from containerd_shimkit.mqtt.packets import (
    DISCONNECT,
    PINGREQ,
    REFUSALS,
    Login,
    Message,
    MqttProtocolError,
    PacketReader,
    PacketType,
    Qos,
    connect,
    puback,
    publish_head,
    pubrel,
    subscribe,
)

_CLOSE_SECONDS: Final = 1.0
_CHECK_SECONDS: Final = 15.0  # at the longest; so an answer is missed after half a minute
_MAX_UNDER_WAY: Final = 65_535  # all packet identifiers
_MAX_WAITING: Final = 1000  # messages that nobody has taken
_MAX_WAITING_BYTES: Final = 4 << 20
_SUBSCRIPTION_REFUSED: Final = 0x80  # 3.9.3


class ConnectError(Exception):
    """There is no connection; the message is the reason."""


class ConnectionLostError(Exception):
    """The connection ended before a message was through."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        """sent: whether the server may have got the message."""
        super().__init__(reason)
        self.sent = sent


class SubscriptionRefusedError(Exception):
    """The server does not let us subscribe."""


class MqttConnection(asyncio.Protocol):
    """Made by ``open_connection``; ends by ``end``, or when the server does."""

    def __init__(
        self,
        login: Login,
        keep_alive_seconds: int,
        max_message_bytes: int | None = None,
        max_waiting_bytes: int = _MAX_WAITING_BYTES,
    ) -> None:
        """max_message_bytes: of those received, topic included; None is of one who publishes.

        max_waiting_bytes: of messages that nobody has taken; then the server is not listened to.
        """
        self.publishing = 0
        """How many messages are being published."""
        self._loop = loop = asyncio.get_running_loop()
        self.last_used = loop.time()
        self.lost: asyncio.Future[str] = loop.create_future()
        """Done when the connection has ended, with the reason."""
        self._login = login
        self._keep_alive_seconds = keep_alive_seconds
        self._reason = "the server closed the connection"
        self._ending = False
        self._transport: asyncio.Transport | None = None
        self._max_waiting_bytes = max_waiting_bytes
        self._reader = PacketReader(max_message_bytes)
        self._accepted: asyncio.Future[int] = loop.create_future()
        self._writable = asyncio.Event()
        self._writable.set()
        self._sending = asyncio.Lock()
        self._under_way: dict[int, asyncio.Future[None]] = {}
        self._released: set[int] = set()
        """Of those, what PUBREL has been sent for."""
        self._next_id = 1
        self._check: asyncio.TimerHandle | None = None
        self._pinged_at: tuple[int, int] | None = None
        self._received = 0
        self._subscribing: tuple[int, asyncio.Future[int]] | None = None
        self._messages: deque[Message] = deque()
        self._waiting_bytes = 0
        self._paused = False
        self._arrived = asyncio.Event()
        """Set while there are messages, and at the end."""

    @property
    def usable(self) -> bool:
        """Whether messages can be published still."""
        return not self._ending

    @property
    def unsent_bytes(self) -> int:
        """What waits for the server to read."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    async def log_in(self) -> None:
        """Send CONNECT and wait for the answer. Raises ConnectError."""
        transport = cast(asyncio.Transport, self._transport)
        transport.write(connect(self._login, self._keep_alive_seconds))
        waiting = (self._accepted, self.lost)
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not self._accepted.done():
            raise ConnectError(self.lost.result())
        if code := self._accepted.result():
            self.abort("refused")
            raise ConnectError(f"refused: {REFUSALS.get(code, f'return code {code}')}")
        self._check_later()

    async def publish(self, topic: bytes, payload: bytes, qos: Qos) -> None:
        """Return when the message is sent, or acknowledged with a ``qos`` that says so.

        Raises ConnectionLostError.
        """
        self.publishing += 1
        try:
            # One by one, or all who wait for room would write at once when there is some.
            async with self._sending:
                await self._room(sent=False)
                answered = self._send(topic, payload, qos)
            if answered is None:
                await self._room(sent=True)
            else:
                # Not to be cancelled with whoever waits: it holds the packet identifier.
                await asyncio.wait((answered,))
                answered.result()
        finally:
            self.publishing -= 1
            self.last_used = self._loop.time()

    async def subscribe(self, topic_filter: str) -> None:
        """Have the server send what is published, with QoS 1. To be called once.

        Raises SubscriptionRefusedError, ConnectionLostError.
        """
        packet_id, answered = self._new_id(), self._loop.create_future()
        self._subscribing = packet_id, answered
        transport = cast(asyncio.Transport, self._transport)
        transport.write(subscribe(topic_filter, Qos.AT_LEAST_ONCE, packet_id))
        await asyncio.wait((answered, self.lost), return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise ConnectionLostError(self.lost.result(), sent=True)
        if answered.result() >= _SUBSCRIPTION_REFUSED:
            raise SubscriptionRefusedError("the server refuses the subscription")

    async def receive(self) -> Message:
        """Return the next message, also one that came before the end. Raises ConnectionLostError.

        Cancelled, it takes none.
        """
        while not self._messages:
            if self._ending:
                raise ConnectionLostError(self._reason, sent=False)
            await self._arrived.wait()
        message = self._messages.popleft()
        if not self._messages and not self._ending:
            self._arrived.clear()
        self._waiting_bytes -= len(message.payload)
        if not self._ending:
            transport = cast(asyncio.Transport, self._transport)
            if message.packet_id:
                transport.write(puback(message.packet_id))
            if self._paused and not self._is_full():
                self._paused = False
                transport.resume_reading()
        return message

    def end(self) -> None:
        """Begin to close the connection: ``lost`` is done soon."""
        if self._ending or self._transport is None:
            return
        self._ending = True
        self._reason = "the connection was closed"
        self._transport.write(DISCONNECT)
        self._transport.close()  # when all is written
        self._loop.call_later(_CLOSE_SECONDS, self._transport.abort)

    def abort(self, reason: str) -> None:
        """Close the connection at once, for a reason that everybody who publishes is told."""
        if not self._ending and self._transport is not None:
            self._ending, self._reason = True, reason
            self._transport.abort()

    def _send(self, topic: bytes, payload: bytes, qos: Qos) -> asyncio.Future[None] | None:
        """Return what is done when the server has answered, None for no answer."""
        packet_id = self._new_id() if qos else 0
        transport = cast(asyncio.Transport, self._transport)
        transport.writelines([publish_head(topic, len(payload), qos, packet_id), payload])
        if not qos:
            return None
        answered = self._under_way[packet_id] = self._loop.create_future()
        return answered

    def _new_id(self) -> int:
        if len(self._under_way) >= _MAX_UNDER_WAY:
            raise ConnectionLostError("too many messages without an answer", sent=False)
        while self._next_id in self._under_way:
            self._next_id = self._next_id % _MAX_UNDER_WAY + 1
        found, self._next_id = self._next_id, self._next_id % _MAX_UNDER_WAY + 1
        return found

    async def _room(self, *, sent: bool) -> None:
        """Return when what was written is on its way."""
        await self._writable.wait()
        if self._ending:
            raise ConnectionLostError(self._reason, sent=sent)

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        try:
            for packet in self._reader.feed(data):
                if isinstance(packet, Message):
                    self._take_message(packet)
                else:
                    self._take(*packet)
        except MqttProtocolError as exc:
            self.abort(f"the server does not speak MQTT: {exc}")

    def _take_message(self, message: Message) -> None:
        self._messages.append(message)
        self._waiting_bytes += len(message.payload)
        self._arrived.set()
        if self._is_full() and not self._paused and not self._ending:
            self._paused = True
            cast(asyncio.Transport, self._transport).pause_reading()

    def _is_full(self) -> bool:
        return len(self._messages) >= _MAX_WAITING or self._waiting_bytes >= self._max_waiting_bytes

    def _take(self, kind: PacketType, number: int) -> None:
        if kind is PacketType.CONNACK:
            if not self._accepted.done():
                self._accepted.set_result(number & 0xFF)
        elif kind is PacketType.PINGRESP:
            self._pinged_at = None
        elif kind is PacketType.PUBREC:
            # Once each: a server that sends for ever and never reads would fill our memory.
            if number in self._under_way and number not in self._released:
                self._released.add(number)
                cast(asyncio.Transport, self._transport).write(pubrel(number))
        elif kind is PacketType.SUBACK:
            packet_id, code = divmod(number, 256)
            if self._subscribing is not None and self._subscribing[0] == packet_id:
                self._subscribing[1].set_result(code)
                self._subscribing = None
        elif (answered := self._under_way.pop(number, None)) is not None:
            self._released.discard(number)
            answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.abort(f"the connection was lost: {exc}" if exc else self._reason)
        if self._check is not None:
            self._check.cancel()
        under_way, self._under_way = self._under_way, {}
        for answered in under_way.values():
            answered.set_exception(ConnectionLostError(self._reason, sent=True))
            answered.exception()  # whoever waited may have given up
        self._writable.set()
        self._arrived.set()
        self.lost.set_result(self._reason)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # Whether the server is there

    def _check_later(self) -> None:
        # The promise is to send something within the time; half of it leaves room.
        seconds = min((self._keep_alive_seconds or _CHECK_SECONDS * 2) / 2, _CHECK_SECONDS)
        self._check = self._loop.call_later(seconds, self._ping)

    def _ping(self) -> None:
        if self._ending:
            return
        progress = self._received, self.unsent_bytes
        # While nothing is read no answer can come.
        if self._pinged_at == progress and not self._paused:
            self.abort("the server does not answer")
            return
        if self._pinged_at is None or self._paused:
            cast(asyncio.Transport, self._transport).write(PINGREQ)
        self._pinged_at = progress
        self._check_later()


async def open_connection(
    hosts: Sequence[str],
    port: int,
    login: Login,
    keep_alive_seconds: int,
    *,
    tls: ssl.SSLContext | None,
    name: str,
    max_message_bytes: int | None = None,
    max_waiting_bytes: int = _MAX_WAITING_BYTES,
) -> MqttConnection:
    """Connect to the first of ``hosts`` that answers, and log in.

    name: what the server's certificate has to say.  The others: see ``MqttConnection``.
    Raises ConnectError.
    """
    loop = asyncio.get_running_loop()
    reason = "the name leads nowhere"
    for host in hosts:
        connection = MqttConnection(login, keep_alive_seconds, max_message_bytes, max_waiting_bytes)
        try:
            await loop.create_connection(
                lambda: connection,  # noqa: B023  called before the next one is made
                *(host, port),
                ssl=tls,
                server_hostname=name if tls is not None else None,
            )
            await connection.log_in()
        except ssl.SSLCertVerificationError as exc:
            reason = f"no TLS connection: {exc.verify_message}"
        except ssl.SSLError as exc:
            reason = f"no TLS connection: {exc.reason}"
        except OSError as exc:
            reason = exc.strerror or str(exc)
        except BaseException:
            connection.abort("nobody waits for it")
            raise
        else:
            return connection
    raise ConnectError(reason)
