"""Stores in Redis: a hash for each namespace, ``wws:kv:NAMESPACE``.

Changes of one request are made together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from containerd_shim_wws_v1.kv.base import Changes, Store, StoreError, check_size
from containerd_shimkit.redis_client.address import RedisAddress
from containerd_shimkit.redis_client.connection import RedisError, ServerError
from containerd_shimkit.redis_client.pool import RedisPool
from containerd_shimkit.redis_client.protocol import Reply, ReplyError
from containerd_shimkit.tls import TrustedCertificates

MAX_CONNECTIONS: Final = 64

_BORNE: Final = 4
"""Times what a namespace may hold: several that change it at once, each within the bound, may go
beyond it, and only a worker that can read it can make room."""


class RedisStore(Store):
    """See the module."""

    def __init__(self, address: RedisAddress, certificates: TrustedCertificates) -> None:
        self._address = address
        self._pool = RedisPool(certificates.context, max_connections=MAX_CONNECTIONS)

    async def read(self, namespace: str) -> Mapping[str, str]:
        (reply,) = await self._call(namespace, [(b"HGETALL", _key(namespace))])
        if not isinstance(reply, list) or not all(isinstance(each, bytes) for each in reply):
            raise StoreError(f"the store {namespace!r}: {self._address}: unknown answer")
        # Somebody else's values need not be UTF-8.
        texts = [each.decode(errors="replace") for each in reply if isinstance(each, bytes)]
        values = dict(zip(texts[::2], texts[1::2], strict=True))
        check_size(namespace, values, _BORNE)
        return values

    async def change(self, namespace: str, changes: Changes) -> None:
        key = _key(namespace)
        commands: list[Sequence[bytes]] = [(b"MULTI",)]
        if changes.written:
            pairs = [text.encode() for pair in changes.written.items() for text in pair]
            commands.append((b"HSET", key, *pairs))
        if changes.removed:
            commands.append((b"HDEL", key, *(name.encode() for name in changes.removed)))
        await self._call(namespace, [*commands, (b"EXEC",)])

    async def close(self) -> None:
        await self._pool.close()

    async def _call(self, namespace: str, commands: list[Sequence[bytes]]) -> list[Reply]:
        """Return the replies to commands that are sent together. Raises StoreError."""
        try:
            connection = await self._pool.take(self._address)
            complete = False
            try:
                connection.send(*commands)
                replies = [await connection.read() for _ in commands]
                complete = True
            finally:
                self._pool.give(connection, keep=complete)
            # Of a transaction that fails, an earlier error says why.
            last = replies[-1]
            for reply in (*replies, *(last if isinstance(last, list) else ())):
                if isinstance(reply, ReplyError):
                    raise ServerError(self._address, reply.text)
        except RedisError as exc:
            raise StoreError(f"the store {namespace!r}: {exc}") from None
        return replies


def _key(namespace: str) -> bytes:
    return f"wws:kv:{namespace}".encode()
