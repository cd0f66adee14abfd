"""One topic's messages for a group of Kafka's, at least once.

Kafka keeps one position for each partition of a topic: all before it was handled. Guests of one
app take messages in turn and end in any order, so the position stays before the first message that
a guest still holds. Who takes a partition over, another container or this one again, begins there.

What a guest gives back is the next that is received, and given up when ``MAX_DELIVERIES`` have
failed: else a message that makes all fail would be the last that the app ever gets.

A group that is new begins with what is published after its first member has joined; its position
is written down at once, so that a message is not lost because none was handled before it.

Source: aiokafka 0.14, AIOKafkaConsumer; Apache Kafka, "Consumer Configs".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import ConsumerStoppedError, KafkaError

from containerd_shim_slight_v1.capabilities.messaging.base import (
    MAX_MESSAGE_BYTES,
    SHORT_WAIT_SECONDS,
    Held,
    PayloadTooLargeError,
    ServiceUnavailableError,
    TopicNotFoundError,
)
from containerd_shim_slight_v1.capabilities.messaging.kafka_codecs import bound_decoders

bound_decoders()

MAX_DELIVERIES: Final = 5
"""Of one message to guests of an app that fail."""

_FETCH_BYTES: Final = 512 << 10
"""How much a consumer has of what nobody has received yet, or one message that is larger."""
_SESSION_SECONDS: Final = 10.0
"""How long the group waits for a member that is gone, before others get its partitions."""
_HEARTBEATS_IN_SESSION: Final = 3
_COMMIT_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 5.0
_AWAY_SECONDS: Final = 5.0
"""A server that has not answered for so long is away: it answers twice a second."""

log = logging.getLogger(__name__)


class Deliveries:
    """Which messages of each partition guests hold, and what follows from that."""

    def __init__(self) -> None:
        self._next: dict[TopicPartition, int] = {}
        self._held: dict[TopicPartition, set[int]] = {}
        self._written: dict[TopicPartition, int] = {}

    def take(self, partition: TopicPartition, offset: int) -> None:
        """Have a message held."""
        self._next[partition] = offset + 1
        self._held.setdefault(partition, set()).add(offset)

    def let_go(self, partition: TopicPartition, offset: int) -> None:
        """Have it no longer held; nothing if it was not."""
        self._held.get(partition, set()).discard(offset)

    def has(self, partition: TopicPartition, offset: int) -> bool:
        """Return whether a message is still held."""
        return offset in self._held.get(partition, ())

    def positions(self) -> dict[TopicPartition, int]:
        """Return the positions that have moved since they were written."""
        found = {
            partition: min(self._held[partition], default=after)
            for partition, after in self._next.items()
        }
        return {p: at for p, at in found.items() if at > self._written.get(p, -1)}

    def written(self, positions: Mapping[TopicPartition, int]) -> None:
        """Note which positions the server has."""
        self._written.update(positions)

    def forget(self) -> None:
        """Forget all: others may have the partitions now."""
        self._next.clear()
        self._held.clear()
        self._written.clear()


class TopicConsumer(ConsumerRebalanceListener):  # type: ignore[misc]  # it has no types
    """A member of the group, which all guests of the app share."""

    def __init__(self, topic: str, group: str, options: Mapping[str, Any]) -> None:
        """options: of aiokafka, for the connection."""
        self._topic = topic
        self._deliveries = Deliveries()
        self._joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._returned: deque[_HeldRecord] = deque()
        self._moved = asyncio.Event()
        self._committing: asyncio.Task[None] | None = None
        self._quiet_since: float | None = None
        self._consumer = AIOKafkaConsumer(
            group_id=group,
            auto_offset_reset="latest",
            enable_auto_commit=False,
            fetch_max_bytes=_FETCH_BYTES,
            max_partition_fetch_bytes=_FETCH_BYTES,
            session_timeout_ms=int(_SESSION_SECONDS * 1000),
            heartbeat_interval_ms=int(_SESSION_SECONDS * 1000 / _HEARTBEATS_IN_SESSION),
            **options,
        )

    async def start(self) -> None:
        """Join the group; return when it is known where to begin. Raises KafkaError."""
        try:
            self._consumer.subscribe([self._topic], listener=self)
            await self._consumer.start()
            await self._joined
        except BaseException:
            await self._stop()
            raise
        self._committing = asyncio.create_task(self._keep_committing())

    async def receive(self) -> Held:
        """Return the next message, empty after half a second without one.

        Raises KafkaError, MessagingError.
        """
        if self._returned:
            record = self._returned.popleft()
            record.deliveries += 1
            return record
        if self._quiet_since is None:
            self._quiet_since = time.time()
        try:
            async with asyncio.timeout(SHORT_WAIT_SECONDS):
                record = await self._consumer.getone()
        except TimeoutError:
            self._check_server()
            return Held(b"")
        except ConsumerStoppedError:
            raise TopicNotFoundError("the subscription has ended") from None
        self._quiet_since = None
        partition = TopicPartition(record.topic, record.partition)
        self._deliveries.take(partition, record.offset)
        message = record.value or b""
        if len(message) > MAX_MESSAGE_BYTES:
            self.let_go(partition, record.offset)
            raise PayloadTooLargeError(len(message))
        return _HeldRecord(self, partition, record.offset, message)

    async def close(self) -> None:
        """Write the positions, leave the group."""
        if self._committing is not None:
            self._committing.cancel()
            await asyncio.wait((self._committing,))
            await self._commit()
        await self._stop()

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Write the positions before others begin there."""
        await self._commit()
        self._deliveries.forget()
        self._returned.clear()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Write the positions that the group does not have."""
        try:
            async with asyncio.timeout(_COMMIT_SECONDS):
                missing = [p for p in assigned if await self._consumer.committed(p) is None]
                begin = {p: await self._consumer.position(p) for p in missing}
                if begin:
                    await self._consumer.commit(begin)
        except (KafkaError, TimeoutError) as exc:
            # Who joins is told; later it is one more partition, from its end on.
            if not self._joined.done():
                self._joined.set_exception(exc)
        else:
            if not self._joined.done():
                self._joined.set_result(None)

    def let_go(self, partition: TopicPartition, offset: int) -> None:
        """Have a message count as handled."""
        self._deliveries.let_go(partition, offset)
        self._moved.set()

    def take_back(self, record: _HeldRecord) -> None:
        """Have a message received once more, unless others have its partition now."""
        if not self._deliveries.has(record.partition, record.offset):
            return
        if record.deliveries < MAX_DELIVERIES:
            self._returned.append(record)
            return
        log.error(
            "topic %s, partition %d: message %d is given up: %d guests that received it failed",
            *(record.partition.topic, record.partition.partition, record.offset, MAX_DELIVERIES),
        )
        self.let_go(record.partition, record.offset)

    async def _keep_committing(self) -> None:
        while True:
            await self._moved.wait()
            self._moved.clear()
            await self._commit()

    async def _commit(self) -> None:
        positions = self._deliveries.positions()
        if not positions:
            return
        # What fails is written with the next one, or the messages come again.
        with suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(_COMMIT_SECONDS):
                await self._consumer.commit(positions)
            self._deliveries.written(positions)

    def _check_server(self) -> None:
        """Raise ServiceUnavailableError if it has not answered for some time."""
        polled = [
            at / 1000
            for partition in self._consumer.assignment()
            if (at := self._consumer.last_poll_timestamp(partition)) is not None
        ]
        if polled and time.time() - max(*polled, self._quiet_since or 0.0) > _AWAY_SECONDS:
            raise ServiceUnavailableError("the server is away")

    async def _stop(self) -> None:
        with suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._consumer.stop()


class _HeldRecord(Held):
    """A message, with what its consumer knows it by."""

    __slots__ = ("_consumer", "deliveries", "offset", "partition")

    def __init__(
        self, consumer: TopicConsumer, partition: TopicPartition, offset: int, message: bytes
    ) -> None:
        super().__init__(message)
        self._consumer = consumer
        self.partition = partition
        self.offset = offset
        self.deliveries = 1
        """The present one included."""

    async def done(self) -> None:
        self._consumer.let_go(self.partition, self.offset)

    async def give_back(self) -> None:
        self._consumer.take_back(self)
