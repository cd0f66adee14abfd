"""``messaging.confluent_apache_kafka``: Apache Kafka, Confluent's or any other.

``CAK_ENDPOINT`` is ``host:port``, or several with commas between. ``CAK_SECURITY_PROTOCOL`` is
``SASL_SSL``, ``SASL_PLAINTEXT``, ``SSL`` or ``PLAINTEXT``; the first two need
``CAK_SASL_MECHANISMS``, ``PLAIN``, ``SCRAM-SHA-256`` or ``SCRAM-SHA-512``, with
``CAK_SASL_USERNAME`` and ``CAK_SASL_PASSWORD``.

All containers with one ``CAK_GROUP_ID`` share a topic's messages: each goes to one of them. A token
is the topic's name, so that all guests of an app share them as well; who receives from a topic
that nobody has subscribed to subscribes. A message is handled when the guest that received it
receives another or ends. If it fails, or is cut off, another guest receives the message, until five
have failed; whatever was not handled when a container dies is received by others. Whoever receives
waits half a second.

Source: SpiderLightning 0.5 crates/messaging/src/implementors/apache_kafka.rs; librdkafka
CONFIGURATION.md, for what the values may be.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections import Counter
from contextlib import suppress
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalSaslStateError,
    InvalidTopicError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NodeNotReadyError,
    RecordListTooLargeError,
    RequestTimedOutError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedCodecError,
    UnsupportedSaslMechanismError,
)

from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.messaging.base import (
    CONNECT_SECONDS,
    MAX_MESSAGE_BYTES,
    ConnectionLostError,
    DeliveryFailedError,
    Held,
    InsufficientPermissionsError,
    MessagingBackend,
    MessagingError,
    PayloadTooLargeError,
    ServiceUnavailableError,
    TopicNotFoundError,
    UnsupportedFormatError,
    check_size,
)
from containerd_shim_slight_v1.capabilities.messaging.kafka_consumer import TopicConsumer
from containerd_shim_slight_v1.capabilities.messaging.subscriptions import Subscriptions
from containerd_shimkit.tls import TlsConfigError

# The library tells of every attempt to connect, and who logs in.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

_PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_SERVER: Final = re.compile(
    r"(?:[A-Z_]+://)?((?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?)"
)
_MAX_SERVERS: Final = 20
_TOPIC: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")
_MAX_TOPICS: Final = 100
"""That one app receives from: each is a member of the group with connections of its own."""
_CALL_SECONDS: Final = 10.0
_SEND_SECONDS: Final = 2 * _CALL_SECONDS
_MAX_KNOWN: Final = 1000
_FIND_SECONDS: Final = 5.0
"""For what a topic's first use makes the server do, when it makes topics by itself."""
_JOIN_SECONDS: Final = 60.0
"""A group may wait for members that are gone, and for more of them to come."""
_CLOSE_SECONDS: Final = 5.0
_HEAD_BYTES: Final = 1 << 10  # of a message: its key and numbers

_REFUSALS: Final = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)
_LOST: Final = (
    KafkaConnectionError,
    KafkaTimeoutError,
    NodeNotReadyError,
    RequestTimedOutError,
    TimeoutError,
)


class Backend(MessagingBackend):
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()
        self._topics: set[str] = set()
        """Those that are there."""
        self._sought: Counter[str] = Counter()
        self._consumers: Subscriptions[TopicConsumer] = Subscriptions(_MAX_TOPICS)
        self._joining: dict[str, asyncio.Task[None]] = {}

    async def publish(self, name: str, topic: str, message: bytes) -> None:
        check_size(message)
        producer = await self._connected()
        await self._find_topic(producer, topic)
        # As upstream has it, a key without meaning: topics that are compacted need one.
        key = uuid.uuid4().hex.encode()
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                await producer.send_and_wait(topic, message, key=key)
        except (MessageSizeTooLargeError, RecordListTooLargeError):
            raise PayloadTooLargeError(len(message), None) from None
        except _LOST:
            raise ConnectionLostError("the server is away: the message may be lost") from None
        except KafkaError as exc:
            raise _error(exc, DeliveryFailedError) from None

    async def subscribe(self, name: str, topic: str) -> str:
        await self._join(topic)
        return topic

    async def receive(self, name: str, token: str) -> bytes:
        held = await self.receive_held(name, token)
        await held.done()
        return held.message

    async def receive_held(self, name: str, token: str) -> Held:
        await self._join(token)
        try:
            with self._consumers.used(token) as consumer:
                return await consumer.receive()
        except UnsupportedCodecError:
            raise UnsupportedFormatError(
                "a message is compressed in an unknown way, or becomes too large"
            ) from None
        except KafkaError as exc:
            # A member that has failed once need not work again.
            await self._consumers.remove(token)
            raise _error(exc) from None

    async def unsubscribe(self, name: str, token: str) -> None:
        """Stay a member of the group: others of the app share it."""

    async def close(self) -> None:
        for task in list(self._joining.values()):
            task.cancel()
            await asyncio.wait((task,))
        await self._consumers.close()
        if self._producer is not None:
            await _stop(self._producer)

    async def _join(self, topic: str) -> None:
        """Have a consumer of a topic. Whoever is cut off meanwhile does not stop it."""
        if topic in self._consumers:
            return
        task = self._joining.get(topic)
        if task is None:
            task = self._joining[topic] = asyncio.create_task(self._start_consumer(topic))
            task.add_done_callback(lambda done: self._joined(topic, done))
        await asyncio.shield(task)

    def _joined(self, topic: str, task: asyncio.Task[None]) -> None:
        del self._joining[topic]
        if not task.cancelled():
            task.exception()  # nobody need be left who is told

    async def _start_consumer(self, topic: str) -> None:
        producer = await self._connected()
        await self._find_topic(producer, topic)
        group = await self.context.value("CAK_GROUP_ID")
        if not group:
            raise MessagingError("CAK_GROUP_ID is empty")
        options = await self._options()

        async def make() -> TopicConsumer:
            consumer = TopicConsumer(topic, group, options)
            async with asyncio.timeout(_JOIN_SECONDS):
                await consumer.start()
            return consumer

        try:
            await self._consumers.add(make, topic)
        except TimeoutError:
            raise ServiceUnavailableError(f"group {group!r} cannot be joined in time") from None
        except KafkaError as exc:
            raise _error(exc) from None

    async def _find_topic(self, producer: AIOKafkaProducer, topic: str) -> None:
        """Return when the server knows a topic. Raises MessagingError."""
        if topic in self._topics:
            return
        if not _TOPIC.fullmatch(topic):
            raise TopicNotFoundError("a Kafka topic has 1 to 249 letters, digits and ._-")
        self._sought[topic] += 1
        try:
            async with asyncio.timeout(_FIND_SECONDS):
                await producer.partitions_for(topic)
            if len(self._topics) >= _MAX_KNOWN:
                self._topics.clear()
            self._topics.add(topic)
        except (TimeoutError, UnknownTopicOrPartitionError, KafkaTimeoutError):
            if not await _reaches(producer):
                raise ServiceUnavailableError("the server is away") from None
            raise TopicNotFoundError(f"there is no topic {topic!r}") from None
        except KafkaError as exc:
            raise _error(exc) from None
        finally:
            self._sought[topic] -= 1
            self._sought += Counter()  # without what is at zero
            # Or the library would ask for all that ever were, of which guests may make any number.
            producer.client.set_topics({*self._topics, *self._sought})

    async def _connected(self) -> AIOKafkaProducer:
        async with self._connecting:
            if self._producer is None:
                self._producer = await self._connect()
            return self._producer

    async def _connect(self) -> AIOKafkaProducer:
        options = await self._options()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await _check_login(options)
                producer = AIOKafkaProducer(
                    acks="all", max_request_size=MAX_MESSAGE_BYTES + _HEAD_BYTES, **options
                )
                try:
                    await producer.start()
                except BaseException:
                    await _stop(producer)
                    raise
        except TimeoutError:
            servers = ",".join(options["bootstrap_servers"])
            raise ServiceUnavailableError(f"{servers}: no connection in time") from None
        except KafkaError as exc:
            raise _error(exc) from None
        return producer

    async def _options(self) -> dict[str, Any]:
        """Return what the library wants for a connection. Raises MessagingError."""
        protocol = (await self.context.value("CAK_SECURITY_PROTOCOL")).upper()
        if protocol not in _PROTOCOLS:
            raise MessagingError(f"CAK_SECURITY_PROTOCOL is none of {', '.join(_PROTOCOLS)}")
        options: dict[str, Any] = {
            "bootstrap_servers": _servers(await self.context.value("CAK_ENDPOINT")),
            "client_id": "slight",
            "request_timeout_ms": int(_CALL_SECONDS * 1000),
            "security_protocol": protocol,
        }
        if protocol.endswith("SSL"):
            try:
                options["ssl_context"] = self.context.app.certificates.context()
            except TlsConfigError as exc:
                raise MessagingError(str(exc)) from None
        if protocol.startswith("SASL"):
            mechanism = (await self.context.value("CAK_SASL_MECHANISMS")).upper()
            if mechanism not in _MECHANISMS:
                raise MessagingError(f"CAK_SASL_MECHANISMS is none of {', '.join(_MECHANISMS)}")
            options["sasl_mechanism"] = mechanism
            options["sasl_plain_username"] = await self.context.value("CAK_SASL_USERNAME")
            options["sasl_plain_password"] = await self.context.value("CAK_SASL_PASSWORD")
        return options


def _servers(text: str) -> list[str]:
    """Return the servers of ``CAK_ENDPOINT``, whose places Confluent writes as URLs."""
    found = [_SERVER.fullmatch(part.strip()) for part in text.split(",")]
    servers = [match[1] for match in found if match is not None]
    if len(servers) < len(found) or len(servers) > _MAX_SERVERS:
        raise MessagingError("CAK_ENDPOINT is not like host:9092, or several with commas between")
    return servers


async def _check_login(options: dict[str, Any]) -> None:
    """Connect to the first server that can be connected to. Raises MessagingError.

    The library tells the servers' reasons to nobody.
    """
    options = dict(options)
    fault: MessagingError | None = None
    for host, port, _ in collect_hosts(options.pop("bootstrap_servers")):
        try:
            connection = await create_conn(host, port, **options)
        except _REFUSALS:
            raise InsufficientPermissionsError(
                f"{host}:{port}: the server refuses the credentials"
            ) from None
        except (KafkaError, OSError, TimeoutError, ValueError):
            fault = ServiceUnavailableError(f"{host}:{port}: there is no connection")
        else:
            await connection.close()
            return
    assert fault is not None
    raise fault


async def _reaches(producer: AIOKafkaProducer) -> bool:
    """Whether the server answers."""
    with suppress(TimeoutError, KafkaError):
        async with asyncio.timeout(_FIND_SECONDS):
            return bool(await producer.client.force_metadata_update())
    return False


async def _stop(producer: AIOKafkaProducer) -> None:
    with suppress(KafkaError, TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await producer.stop()


def _error(exc: KafkaError, other: type[MessagingError] = MessagingError) -> MessagingError:
    """Return what a guest is told. other: of an error that is none of the interface's cases."""
    if isinstance(exc, _REFUSALS):
        return InsufficientPermissionsError("the server refuses topic or group to this login")
    if isinstance(exc, UnknownTopicOrPartitionError | InvalidTopicError):
        return TopicNotFoundError("there is no such topic")
    if isinstance(exc, _LOST) or exc.retriable:
        return ServiceUnavailableError("the server is away")
    # Its text may have what the server says; its name is enough to look it up.
    return other(f"the server refuses: {type(exc).__name__}")
