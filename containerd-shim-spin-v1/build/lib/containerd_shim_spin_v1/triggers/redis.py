"""The Redis trigger: subscribes to channels and has components handle their messages.

Rules:

- The messages of a channel are handled in order, one after another; channels do not wait for each
  other. Where several components have the same channel they handle a message at once. (Spin handles
  one message of a server at a time, whatever its channel.)
- Redis keeps no messages. What is published while there is no connection is lost, and so is what
  is not handled when the time to drain is over.
- A channel that is slow holds back the server's other channels once it has ``MAX_WAITING_BYTES`` of
  messages to handle. Redis closes a connection that is held back too long, or by too much.
- A server that is away is tried again for ever: it may start after the app.

Source: Spin 3.6 crates/trigger-redis/src/lib.rs.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from containerd_shimkit.redis_client.address import RedisAddress
from containerd_shimkit.redis_client.connection import (
    RedisConnection,
    RedisError,
    ServerError,
    connect,
)
from containerd_shimkit.redis_client.protocol import ReplyError

MAX_WAITING_BYTES: Final = 4 << 20
"""Of one channel, each message counted with ``_MESSAGE_BYTES`` more."""
_MESSAGE_BYTES: Final = 1 << 10
FIRST_DELAY_SECONDS: Final = 0.1
MAX_DELAY_SECONDS: Final = 10.0
_STABLE_SECONDS: Final = 10.0
"""A connection that lasted as long is reason to begin with the first delay again."""

Handler: TypeAlias = Callable[[bytes], Awaitable[None]]
"""Handles a message; reports its own errors and raises none."""

log = logging.getLogger(__name__)


class RedisTrigger:
    """Subscribed to the channels of all triggers of an app, by one process of it."""

    def __init__(
        self,
        subscriptions: Mapping[str, Sequence[tuple[str, Handler]]],
        tls: Callable[[], ssl.SSLContext],
        *,
        places: asyncio.Semaphore,
        drain_seconds: float,
    ) -> None:
        """subscriptions: channels and their handlers, by the server's address.

        tls: returns the context for ``rediss://``.  places: for guests of the app at once.
        Raises AddressError.
        """
        self._drain_seconds = drain_seconds
        self._servers = [
            _Server(RedisAddress.parse(address), channels, tls, places)
            for address, channels in subscriptions.items()
        ]
        self.connected = asyncio.Event()
        """Set when every channel has been subscribed to for the first time."""

    async def run(self, stop: asyncio.Event) -> None:
        """Handle messages until told to stop; then finish those that are there already."""
        channels = [channel for server in self._servers for channel in server.channels]
        handling = [asyncio.create_task(channel.handle()) for channel in channels]
        listening = [asyncio.create_task(server.listen()) for server in self._servers]
        others = [asyncio.create_task(stop.wait()), asyncio.create_task(self._tell_connected())]
        try:
            # Only the wait for ``stop`` ends, unless there is a bug.
            done, _ = await asyncio.wait(
                {others[0], *listening, *handling}, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
        finally:
            await _cancel((*listening, *others))
            for channel in channels:
                channel.end()
            if handling:
                await asyncio.wait(handling, timeout=self._drain_seconds)
            if lost := sum(channel.unfinished for channel in channels):
                log.error("redis trigger: %d messages are cut off: the app stops", lost)
            await _cancel(handling)

    async def _tell_connected(self) -> None:
        for server in self._servers:
            await server.subscribed.wait()
        self.connected.set()


async def _cancel(tasks: Iterable[asyncio.Task[object]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Server:
    """One server, and its channels."""

    def __init__(
        self,
        address: RedisAddress,
        channels: Sequence[tuple[str, Handler]],
        tls: Callable[[], ssl.SSLContext],
        places: asyncio.Semaphore,
    ) -> None:
        self._address = address
        self._tls = tls
        self._channels: dict[bytes, _Channel] = {}
        for name, handler in channels:
            made = self._channels.setdefault(name.encode(), _Channel(f"{address} {name!r}", places))
            made.handlers.append(handler)
        self.subscribed = asyncio.Event()
        self._away_since: float | None = None
        self._stable = False

    @property
    def channels(self) -> Iterable[_Channel]:
        return self._channels.values()

    async def listen(self) -> None:
        """Put messages into their channels until cancelled; connect again whenever that ends."""
        loop = asyncio.get_running_loop()
        delay = FIRST_DELAY_SECONDS
        while True:
            started = loop.time()
            try:
                await self._listen_once()
            except RedisError as exc:
                now = loop.time()
                if self._away_since is None:
                    self._away_since = now
                    log.error("redis trigger: %s; it is tried again until it is there", exc)
                if now - started >= _STABLE_SECONDS:
                    delay = FIRST_DELAY_SECONDS
            # A random part, so that all pods do not come back to a server at once.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, MAX_DELAY_SECONDS)

    async def _listen_once(self) -> None:
        connection = await connect(self._address, self._tls)
        try:
            await self._subscribe(connection)
            while True:
                match await connection.read():
                    case [b"message", bytes() as name, bytes() as payload]:
                        await self._channels[name].put(payload)
                    case reply:
                        raise RedisError(f"{self._address}: no message but {str(reply)[:100]!r}")
        finally:
            connection.abort()

    async def _subscribe(self, connection: RedisConnection) -> None:
        connection.send((b"SUBSCRIBE", *self._channels))
        for _ in self._channels:
            match await connection.read():
                case [b"subscribe", bytes(), int()]:
                    pass
                case ReplyError(text):
                    raise ServerError(self._address, text)
                case _:
                    raise RedisError(f"{self._address}: cannot subscribe: unknown answer")
        if self._away_since is not None:
            seconds = asyncio.get_running_loop().time() - self._away_since
            log.warning(
                "redis trigger: %s is there after %.1f s; messages of that time are lost",
                self._address,
                seconds,
            )
            self._away_since = None
        self.subscribed.set()


class _Channel:
    """Messages that wait, and who handles them."""

    def __init__(self, name: str, places: asyncio.Semaphore) -> None:
        self.handlers: list[Handler] = []
        self._name = name
        self._places = places
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._in_hand = 0
        self._ended = False
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def unfinished(self) -> int:
        """Messages that wait or are being handled."""
        return len(self._waiting) + self._in_hand

    async def put(self, payload: bytes) -> None:
        """Have a message handled; waits while there are too many."""
        while self._bytes > MAX_WAITING_BYTES:
            self._room.clear()
            await self._room.wait()
        self._waiting.append(payload)
        self._bytes += len(payload) + _MESSAGE_BYTES
        self._changed.set()

    def end(self) -> None:
        """Say that no message comes any more."""
        self._ended = True
        self._changed.set()

    async def handle(self) -> None:
        """Handle messages one after another; return when there will be none."""
        while True:
            while self._waiting:
                payload = self._waiting.popleft()
                self._in_hand = 1
                await asyncio.gather(*(self._call(handler, payload) for handler in self.handlers))
                self._in_hand = 0
                self._bytes -= len(payload) + _MESSAGE_BYTES
                self._room.set()
            if self._ended:
                return
            self._changed.clear()
            await self._changed.wait()

    async def _call(self, handler: Handler, payload: bytes) -> None:
        async with self._places:
            try:
                await handler(payload)
            except Exception as exc:
                log.error("redis trigger: %s: a message was not handled: %s", self._name, exc)
