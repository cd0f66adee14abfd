"""``keyvalue.redis``: the key ``STORE:KEY`` of the database that ``REDIS_ADDRESS`` says.

To remove a key that is not there is no error, as Redis and upstream have it.

Source: SpiderLightning 0.5 crates/keyvalue/src/implementors/redis.rs.
"""

from __future__ import annotations

import re
from typing import Final

from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.keyvalue.base import (
    MAX_VALUE_BYTES,
    AuthenticationError,
    InvalidValueError,
    KeyNotFoundError,
    KeyValueBackend,
    KeyValueError,
    StoreConnectionError,
    StoreIoError,
    StoreTimeoutError,
)
from containerd_shim_slight_v1.capabilities.listing import Names
from containerd_shimkit.lookups import Lookups
from containerd_shimkit.redis_client.address import AddressError, RedisAddress
from containerd_shimkit.redis_client.connection import (
    CannotConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    LoginRefusedError,
    RedisError,
    ServerError,
)
from containerd_shimkit.redis_client.pool import RedisPool
from containerd_shimkit.redis_client.protocol import Reply

_REFUSALS: Final = frozenset({b"NOAUTH", b"NOPERM", b"WRONGPASS"})
_GLOB: Final = re.compile(rb"[*?\[\]\\^]")


class Backend(KeyValueBackend):
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._pool = RedisPool(context.app.certificates.context, Lookups())
        self._address: RedisAddress | None = None

    async def open(self, store: str) -> None:
        await self._server()

    async def get(self, store: str, key: str) -> bytes:
        match await self._call(b"GET", _name(store, key)):
            case bytes(value):
                return value
            case None:
                raise KeyNotFoundError(key)
        raise KeyValueError(f"{self._address}: unknown answer")

    async def set(self, store: str, key: str, value: bytes) -> None:
        if len(value) > MAX_VALUE_BYTES:
            raise InvalidValueError(f"{len(value)} bytes, more than {MAX_VALUE_BYTES}")
        await self._call(b"SET", _name(store, key), value)

    async def keys(self, store: str) -> list[str]:
        prefix = _name(store, "")
        pattern = _GLOB.sub(rb"\\\g<0>", prefix) + b"*"
        # In steps: KEYS would stop the server for everybody until it has them all.
        # Somebody else's key need not be UTF-8; then it is nothing that a guest could ask for.
        found = Names(f"store {store!r}", StoreIoError)  # the same key may come again
        cursor = b"0"
        while True:
            match await self._call(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"1000"):
                case [bytes() as cursor, list() as keys]:
                    found.add(
                        key.removeprefix(prefix).decode(errors="replace")
                        for key in keys
                        if isinstance(key, bytes)
                    )
                case _:
                    raise KeyValueError(f"{self._address}: unknown answer")
            if cursor == b"0":
                return list(found)

    async def delete(self, store: str, key: str) -> None:
        await self._call(b"DEL", _name(store, key))

    async def close(self) -> None:
        await self._pool.close()

    async def _server(self) -> RedisAddress:
        if self._address is None:
            try:
                self._address = RedisAddress.parse(await self.context.value("REDIS_ADDRESS"))
            except AddressError as exc:
                raise KeyValueError(f"config 'REDIS_ADDRESS': {exc}") from None
        return self._address

    async def _call(self, *words: bytes) -> Reply:
        try:
            async with self._pool.connection(await self._server()) as connection:
                return await connection.call(*words)
        except RedisError as exc:
            raise _error(exc) from exc


def _name(store: str, key: str) -> bytes:
    return f"{store}:{key}".encode()


def _error(exc: RedisError) -> KeyValueError:
    match exc:
        case LoginRefusedError():
            return AuthenticationError(str(exc))
        case ServerError() if exc.code in _REFUSALS:
            return AuthenticationError(str(exc))
        case ConnectTimeoutError():
            return StoreTimeoutError(str(exc))
        case CannotConnectError() | ConnectionLostError():
            return StoreConnectionError(str(exc))
    return KeyValueError(str(exc))
