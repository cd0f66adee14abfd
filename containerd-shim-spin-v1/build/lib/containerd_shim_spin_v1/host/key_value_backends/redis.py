"""Stores in a Redis server: keys as they are, so that the database's other keys are the store's.

Source: Spin 3.6 crates/key-value-redis/src/store.rs.
"""

from __future__ import annotations

from containerd_shim_spin_v1.host.key_value_backends.base import (
    KEY_BYTES,
    MAX_RESULT_BYTES,
    StoreError,
    too_large,
)
from containerd_shimkit.redis_client.address import RedisAddress
from containerd_shimkit.redis_client.connection import RedisError
from containerd_shimkit.redis_client.pool import RedisPool
from containerd_shimkit.redis_client.protocol import Reply
from containerd_shimkit.turns import map_in_turns


class RedisKeyValueStore:
    """See ``base.Store``."""

    def __init__(self, label: str, address: RedisAddress, pool: RedisPool) -> None:
        """pool: of several stores; it is not closed with one."""
        self._label = label
        self._address = address
        self._pool = pool

    async def get(self, key: str) -> bytes | None:
        """See ``Store``."""
        reply = await self._call(b"GET", key.encode())
        if reply is None or isinstance(reply, bytes):
            return reply
        raise self._unexpected()

    async def set(self, key: str, value: bytes) -> None:
        """See ``Store``."""
        await self._call(b"SET", key.encode(), value)

    async def delete(self, key: str) -> None:
        """See ``Store``."""
        await self._call(b"DEL", key.encode())

    async def exists(self, key: str) -> bool:
        """See ``Store``."""
        return await self._call(b"EXISTS", key.encode()) == 1

    async def get_keys(self) -> list[str]:
        """See ``Store``."""
        # In steps: KEYS would stop the server for everybody until it has them all.
        found: set[bytes] = set()  # the same key may come again
        size, cursor = 0, b"0"
        while True:
            match await self._call(b"SCAN", cursor, b"COUNT", b"1000"):
                case [bytes() as cursor, list() as keys]:
                    pass
                case _:
                    raise self._unexpected()
            new = {key for key in keys if isinstance(key, bytes)} - found
            found |= new
            size += sum(len(key) + KEY_BYTES for key in new)
            if size > MAX_RESULT_BYTES:
                raise too_large(self._label)
            if cursor == b"0":
                break
        try:
            return await map_in_turns(bytes.decode, found)
        except UnicodeDecodeError:
            raise StoreError(f"key-value store {self._label!r}: a key is no text") from None

    async def close(self) -> None:
        """See ``Store``."""

    async def _call(self, *words: bytes) -> Reply:
        try:
            async with self._pool.connection(self._address) as connection:
                return await connection.call(*words)
        except RedisError as exc:
            raise StoreError(f"key-value store {self._label!r}: {exc}") from exc

    def _unexpected(self) -> StoreError:
        return StoreError(f"key-value store {self._label!r}: {self._address}: unknown answer")
