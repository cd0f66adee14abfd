"""The connections of an app to all its Redis servers.

A connection is taken for a command and given back after it, for whoever speaks to the same address
as the same user. Those that nobody needs are closed: after ``IDLE_SECONDS``, and the ones used
least recently as soon as there are more than ``MAX_IDLE``.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from containerd_shimkit.redis_client.address import RedisAddress
from containerd_shimkit.redis_client.connection import (
    CannotConnectError,
    RedisConnection,
    Resolver,
    connect,
)

MAX_IDLE: Final = 64
IDLE_SECONDS: Final = 60.0


class RedisPool:
    """Made in the event loop that serves."""

    def __init__(
        self,
        tls: Callable[[], ssl.SSLContext],
        networks: Resolver | None = None,
        max_connections: int | None = None,
    ) -> None:
        """tls: returns the context for ``rediss://``.  networks: None is any.

        max_connections: at once; who needs one more waits.  None is no limit.
        """
        self._tls = tls
        self._networks = networks
        self._max = max_connections
        self._places = None if max_connections is None else asyncio.Semaphore(max_connections)
        self._loop = asyncio.get_running_loop()
        self._all: set[RedisConnection] = set()
        self._taken = 0
        # By the time they were given back, the oldest first.
        self._idle: dict[RedisConnection, float] = {}
        self._by_address: dict[RedisAddress, list[RedisConnection]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def take(self, address: RedisAddress) -> RedisConnection:
        """Return a connection for one user, who gives it back. Raises as ``connect``."""
        if self._places is not None:
            await self._places.acquire()
        self._taken += 1
        try:
            while (connection := self._newest(address)) is not None:
                if connection.usable:
                    return connection
                self._end(connection)
            return await self._connect(address)
        except BaseException:
            self._give_place()
            raise

    def give(self, connection: RedisConnection, *, keep: bool) -> None:
        """Take a connection back. keep: it is in the state in which it was taken."""
        self._give_place()
        if self._closed or not keep or not connection.usable:
            self._end(connection)
            return
        self._idle[connection] = self._loop.time()
        self._by_address.setdefault(connection.address, []).append(connection)
        if len(self._idle) > MAX_IDLE:
            self._end_oldest()
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_SECONDS, self._expire)

    @asynccontextmanager
    async def connection(self, address: RedisAddress) -> AsyncIterator[RedisConnection]:
        """A connection for one command, or several that leave it as it was."""
        connection = await self.take(address)
        try:
            yield connection
        finally:
            self.give(connection, keep=True)

    async def close(self) -> None:
        """End every connection; no other is made."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._all):
            self._forget(connection)
            self._end(connection)

    async def _connect(self, address: RedisAddress) -> RedisConnection:
        # Idle ones are connections, too, where their number is limited.
        while self._max is not None and self._idle and self._taken + len(self._idle) > self._max:
            self._end_oldest()
        connection = await connect(address, self._tls, self._networks)
        if self._closed:
            connection.abort()
            raise CannotConnectError(f"{address}: cannot connect: the app stops")
        self._all.add(connection)
        return connection

    def _give_place(self) -> None:
        self._taken -= 1
        if self._places is not None:
            self._places.release()

    def _newest(self, address: RedisAddress) -> RedisConnection | None:
        idle = self._by_address.get(address)
        if not idle:
            return None
        connection = idle[-1]
        self._forget(connection)
        return connection

    def _forget(self, connection: RedisConnection) -> None:
        """Have a connection be no longer idle."""
        if self._idle.pop(connection, None) is None:
            return
        of_address = self._by_address[connection.address]
        of_address.remove(connection)
        if not of_address:
            del self._by_address[connection.address]

    def _end(self, connection: RedisConnection) -> None:
        self._all.discard(connection)
        connection.abort()

    def _end_oldest(self) -> None:
        connection = next(iter(self._idle))
        self._forget(connection)
        self._end(connection)

    def _expire(self) -> None:
        now = self._loop.time()
        while self._idle and next(iter(self._idle.values())) <= now - IDLE_SECONDS:
            self._end_oldest()
        self._timer = None
        if self._idle:
            due = next(iter(self._idle.values())) + IDLE_SECONDS
            self._timer = self._loop.call_at(due, self._expire)
