"""Redis, as guests call it: each function names the server's address anew.

Commands run on connections that the app's guests share one after another. ``execute`` may send
anything, so a command that is not known to leave a connection as it was (``SELECT``, ``MULTI``,
``AUTH``) gets one that is its guest's alone: the guest's later calls to the same address use it,
too, and it is closed with the guest.

Source: Spin 3.6 crates/factor-outbound-redis/src/host.rs, wit/deps/spin@2.0.0/redis.wit.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

from containerd_shim_spin_v1.host.redis_commands import STATELESS
from containerd_shim_spin_v1.outbound.access import OutboundAccess
from containerd_shim_spin_v1.redis_client.address import AddressError, RedisAddress
from containerd_shim_spin_v1.redis_client.connection import (
    ConnectionLostError,
    RedisConnection,
    RedisError,
    Resolver,
    ServerError,
    shown,
)
from containerd_shim_spin_v1.redis_client.pool import RedisPool
from containerd_shim_spin_v1.redis_client.protocol import Reply, ReplyError, Status

MAX_OWN_CONNECTIONS: Final = 16
"""Of one guest, beside the one that a call borrows."""

RedisParameter: TypeAlias = int | bytes
RedisResult: TypeAlias = Status | int | bytes | None
"""None is nil; a ``Status`` is text."""


class RedisCallError(Exception):
    """Any other error: no connection, or the server's own."""


class InvalidAddressError(RedisCallError):
    """The address is none."""


class TooManyConnectionsError(RedisCallError):
    """A guest keeps too many connections for itself."""


class WrongTypeError(RedisCallError):
    """A value is not of the type that the function is for."""


class RedisHost:
    """What the guests of an app share."""

    def __init__(
        self,
        tls: Callable[[], ssl.SSLContext],
        networks: Resolver,
        max_connections: int | None = None,
    ) -> None:
        """See ``RedisPool``."""
        self._pool = RedisPool(tls, networks, max_connections)

    def session(self, access: OutboundAccess) -> RedisSession:
        """Return what one guest calls."""
        return RedisSession(self._pool, access)

    async def close(self) -> None:
        """End every connection."""
        await self._pool.close()


class RedisSession:
    """One guest's Redis.

    Every function raises RedisCallError and its subclasses, DestinationNotAllowedError,
    BlockedNetworkError, and VariableError if what is allowed cannot be known.
    """

    def __init__(self, pool: RedisPool, access: OutboundAccess) -> None:
        self._pool = pool
        self._access = access
        self._own: dict[RedisAddress, RedisConnection] = {}

    async def close(self) -> None:
        """End the connections that are the guest's alone."""
        own, self._own = self._own, {}
        for connection in own.values():
            self._pool.give(connection, keep=False)

    async def publish(self, address: str, channel: str, payload: bytes) -> None:
        """Send a message to whoever listens to a channel."""
        await self._call(address, b"PUBLISH", channel.encode(), payload)

    async def get(self, address: str, key: str) -> bytes | None:
        """Return the value of a key; None if there is none."""
        reply = await self._call(address, b"GET", key.encode())
        if reply is None or isinstance(reply, bytes):
            return reply
        raise _unexpected("GET")

    async def set(self, address: str, key: str, value: bytes) -> None:
        """Set the value of a key, whatever it was."""
        await self._call(address, b"SET", key.encode(), value)

    async def incr(self, address: str, key: str) -> int:
        """Add one to the number that is a key's value, 0 if there is none; return the sum."""
        return await self._number(address, b"INCRBY", key.encode(), b"1")

    async def delete(self, address: str, keys: Sequence[str]) -> int:
        """Remove keys; return how many there were. The interface calls it ``del``."""
        return await self._number(address, b"DEL", *map(str.encode, keys))

    async def sadd(self, address: str, key: str, values: Sequence[str]) -> int:
        """Add values to a set; return how many were not in it."""
        return await self._number(address, b"SADD", key.encode(), *map(str.encode, values))

    async def smembers(self, address: str, key: str) -> list[str]:
        """Return the values of a set."""
        reply = await self._call(address, b"SMEMBERS", key.encode())
        if not isinstance(reply, list):
            raise _unexpected("SMEMBERS")
        try:
            return [_bytes(value).decode() for value in reply]
        except UnicodeDecodeError:
            raise WrongTypeError("SMEMBERS: a value of the set is no text") from None

    async def srem(self, address: str, key: str, values: Sequence[str]) -> int:
        """Remove values from a set; return how many were in it."""
        return await self._number(address, b"SREM", key.encode(), *map(str.encode, values))

    async def execute(
        self, address: str, command: str, arguments: Sequence[RedisParameter]
    ) -> list[RedisResult]:
        """Run any command; return its result, lists in lists as one list."""
        words = [b"%d" % word if isinstance(word, int) else word for word in arguments]
        reply = await self._call(address, command.encode(), *words)
        return list(_flattened(reply))

    async def _number(self, address: str, *words: bytes) -> int:
        reply = await self._call(address, *words)
        if isinstance(reply, int):
            return reply
        raise _unexpected(words[0].decode())

    async def _call(self, address: str, *words: bytes) -> Reply:
        try:
            server = RedisAddress.parse(address)
        except AddressError as exc:
            raise InvalidAddressError(str(exc)) from None
        await self._access.check(server.scheme, server.host, server.port)
        try:
            return await self._run(server, words)
        except ServerError as exc:
            kind = WrongTypeError if exc.code == b"WRONGTYPE" else RedisCallError
            raise kind(str(exc)) from exc
        except RedisError as exc:
            raise RedisCallError(str(exc)) from exc

    async def _run(self, server: RedisAddress, words: tuple[bytes, ...]) -> Reply:
        if server not in self._own and words[0].upper() in STATELESS:
            async with self._pool.connection(server) as shared:
                return await shared.call(*words)
        if server not in self._own:
            if len(self._own) == MAX_OWN_CONNECTIONS:
                raise TooManyConnectionsError(
                    f"a guest may keep {MAX_OWN_CONNECTIONS} connections to Redis servers at once"
                )
            self._own[server] = await self._pool.take(server)
        connection = self._own[server]
        try:
            if not connection.usable:
                raise ConnectionLostError(f"{server}: the connection was closed")
            return await connection.call(*words)
        except ServerError:
            raise
        except BaseException:
            # Not made anew for this command: it may belong to a transaction, which is lost.
            self._pool.give(self._own.pop(server), keep=False)
            raise


def _bytes(value: Reply) -> bytes:
    if isinstance(value, bytes):
        return value
    raise _unexpected("SMEMBERS")


def _unexpected(command: str) -> WrongTypeError:
    return WrongTypeError(f"{command}: the reply is of another type: in a transaction, perhaps")


def _flattened(reply: Reply) -> Iterable[RedisResult]:
    # Its depth is bounded by the parser.
    if isinstance(reply, list):
        for value in reply:
            yield from _flattened(value)
    elif isinstance(reply, ReplyError):
        raise RedisCallError(f"a command of the transaction failed: {shown(reply.text)}")
    else:
        yield reply
