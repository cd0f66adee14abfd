"""Redis, as guests call it: with a server's address each time, or with a handle for it.

Commands run on connections that the app's guests share one after another. ``execute`` may send
anything, so a command that is not known to leave a connection as it was (``SELECT``, ``MULTI``,
``AUTH``) gets one that is its guest's alone: the guest's later calls with the same address or
handle use it, too, and it is closed with the guest.

Source: Spin 3.6 crates/factor-outbound-redis/src/host.rs, wit/deps/spin@2.0.0/redis.wit.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

from containerd_shim_spin_v1.host.redis_commands import STATELESS
from containerd_shim_spin_v1.outbound.access import OutboundAccess
from containerd_shimkit.redis_client.address import AddressError, RedisAddress
from containerd_shimkit.redis_client.connection import (
    ConnectionLostError,
    RedisConnection,
    RedisError,
    Resolver,
    ServerError,
    shown,
)
from containerd_shimkit.redis_client.pool import RedisPool
from containerd_shimkit.redis_client.protocol import Reply, ReplyError, Status
from containerd_shimkit.turns import map_in_turns

MAX_OWN_CONNECTIONS: Final = 16
"""Of one guest, beside the one that a call borrows."""

MAX_HANDLES: Final = 256
"""Of one guest. None is a connection by itself."""

Where: TypeAlias = str | int
"""An address, or a handle."""
RedisParameter: TypeAlias = int | bytes
RedisResult: TypeAlias = Status | int | bytes | None
"""None is nil; a ``Status`` is text."""


class RedisCallError(Exception):
    """Any other error: no connection, or the server's own."""


class InvalidAddressError(RedisCallError):
    """The address is none."""


class TooManyConnectionsError(RedisCallError):
    """A guest keeps too many connections for itself, or has too many handles."""


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
        self._handles: dict[int, RedisAddress] = {}
        self._next = 0
        self._own: dict[RedisAddress | int, RedisConnection] = {}

    @property
    def has_open(self) -> bool:
        """Whether there is anything to close."""
        return bool(self._own)

    async def close(self) -> None:
        """End the connections that are the guest's alone."""
        for key in list(self._own):
            self._end_own(key)

    async def open(self, address: str) -> int:
        """Return a handle for a server; whether that is there shows the first command."""
        server = await self._allowed(address)
        if len(self._handles) == MAX_HANDLES:
            raise TooManyConnectionsError(f"a guest may have {MAX_HANDLES} connections open")
        handle = self._next
        self._next += 1
        self._handles[handle] = server
        return handle

    def drop(self, handle: int) -> None:
        """Close a handle; any number is fine."""
        if self._handles.pop(handle, None) is not None and handle in self._own:
            self._end_own(handle)

    async def publish(self, where: Where, channel: str, payload: bytes) -> None:
        """Send a message to whoever listens to a channel."""
        await self._call(where, b"PUBLISH", channel.encode(), payload)

    async def get(self, where: Where, key: str) -> bytes | None:
        """Return the value of a key; None if there is none."""
        reply = await self._call(where, b"GET", key.encode())
        if reply is None or isinstance(reply, bytes):
            return reply
        raise _unexpected("GET")

    async def set(self, where: Where, key: str, value: bytes) -> None:
        """Set the value of a key, whatever it was."""
        await self._call(where, b"SET", key.encode(), value)

    async def incr(self, where: Where, key: str) -> int:
        """Add one to the number that is a key's value, 0 if there is none; return the sum."""
        return await self._number(where, b"INCRBY", key.encode(), b"1")

    async def delete(self, where: Where, keys: Sequence[str]) -> int:
        """Remove keys; return how many there were. The interface calls it ``del``."""
        return await self._number(where, b"DEL", *map(str.encode, keys))

    async def sadd(self, where: Where, key: str, values: Sequence[str]) -> int:
        """Add values to a set; return how many were not in it."""
        return await self._number(where, b"SADD", key.encode(), *map(str.encode, values))

    async def smembers(self, where: Where, key: str) -> list[str]:
        """Return the values of a set."""
        reply = await self._call(where, b"SMEMBERS", key.encode())
        if not isinstance(reply, list):
            raise _unexpected("SMEMBERS")
        try:
            return await map_in_turns(_text, reply)
        except UnicodeDecodeError:
            raise WrongTypeError("SMEMBERS: a value of the set is no text") from None

    async def srem(self, where: Where, key: str, values: Sequence[str]) -> int:
        """Remove values from a set; return how many were in it."""
        return await self._number(where, b"SREM", key.encode(), *map(str.encode, values))

    async def execute(
        self, where: Where, command: str, arguments: Sequence[RedisParameter]
    ) -> list[RedisResult]:
        """Run any command; return its result, lists in lists as one list."""
        words = [b"%d" % word if isinstance(word, int) else word for word in arguments]
        reply = await self._call(where, command.encode(), *words)
        return await map_in_turns(lambda value: value, _flattened(reply))

    async def _number(self, where: Where, *words: bytes) -> int:
        reply = await self._call(where, *words)
        if isinstance(reply, int):
            return reply
        raise _unexpected(words[0].decode())

    async def _call(self, where: Where, *words: bytes) -> Reply:
        if isinstance(where, int):
            key: RedisAddress | int = where
            if (server := self._handles.get(where)) is None:
                raise RedisCallError(f"there is no connection {where}")
        else:
            key = server = await self._allowed(where)
        try:
            return await self._run(key, server, words)
        except ServerError as exc:
            kind = WrongTypeError if exc.code == b"WRONGTYPE" else RedisCallError
            raise kind(str(exc)) from exc
        except RedisError as exc:
            raise RedisCallError(str(exc)) from exc

    async def _allowed(self, address: str) -> RedisAddress:
        try:
            server = RedisAddress.parse(address)
        except AddressError as exc:
            raise InvalidAddressError(str(exc)) from None
        await self._access.check(server.scheme, server.host, server.port)
        return server

    async def _run(
        self, key: RedisAddress | int, server: RedisAddress, words: tuple[bytes, ...]
    ) -> Reply:
        """key: of the guest's own connection, if it has one."""
        if key not in self._own:
            if words[0].upper() in STATELESS:
                async with self._pool.connection(server) as shared:
                    return await shared.call(*words)
            if len(self._own) == MAX_OWN_CONNECTIONS:
                raise TooManyConnectionsError(
                    f"a guest may keep {MAX_OWN_CONNECTIONS} connections to Redis servers at once"
                )
            self._own[key] = await self._pool.take(server)
        connection = self._own[key]
        try:
            if not connection.usable:
                raise ConnectionLostError(f"{server}: the connection was closed")
            return await connection.call(*words)
        except ServerError:
            raise
        except BaseException:
            # Not made anew for this command: it may belong to a transaction, which is lost.
            self._end_own(key)
            raise

    def _end_own(self, key: RedisAddress | int) -> None:
        self._pool.give(self._own.pop(key), keep=False)


def _text(value: Reply) -> str:
    if isinstance(value, bytes):
        return value.decode()
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
