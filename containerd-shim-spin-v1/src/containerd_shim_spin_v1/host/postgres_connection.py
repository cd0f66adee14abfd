"""Connecting to a PostgreSQL server as a guest's address says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

from containerd_shim_spin_v1.host.postgres_address import PostgresAddress
from containerd_shimkit import postgres_client
from containerd_shimkit.http_client.networks import Networks
from containerd_shimkit.postgres_client import PostgresConnection
from containerd_shimkit.tls import TlsConfigError

# Types whose values cannot always be had in Python, a year 20000 for one; guests get none of them.
_NOT_DECODED: Final = ("date", "time", "timetz", "timestamp", "timestamptz", "interval", "numeric")


class _PinnedLoop:
    """The event loop for asyncpg where networks are blocked: names lead to allowed addresses only.

    asyncpg looks up names itself, by ``create_connection``; and it must know the name, not the
    address, as the server's certificate is for the name.
    """

    def __init__(self, networks: Networks) -> None:
        self._loop = asyncio.get_running_loop()
        self._networks = networks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, **options: Any
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        failure: OSError | None = None
        for address in await self._networks.resolve(host, port):
            try:
                return await self._loop.create_connection(factory, address, port, **options)
            except OSError as exc:
                failure = exc
        raise failure or OSError("no address")


async def connect(
    address: PostgresAddress,
    networks: Networks,
    tls: Callable[[], ssl.SSLContext],
    max_result_bytes: int,
) -> PostgresConnection:
    """Return a new connection.

    Raises OSError, BlockedNetworkError, TlsConfigError and what asyncpg raises.
    """

    async def connect_by(tls: ssl.SSLContext | bool) -> PostgresConnection:
        return await postgres_client.connect(
            hosts=address.hosts,
            user=address.user,
            password=address.password,
            database=address.database,
            tls=tls,
            max_result_bytes=max_result_bytes,
            settings=dict(address.settings),
            session_attributes=address.session_attributes,
            loop=_PinnedLoop(networks) if networks.active else None,
        )

    if address.ssl_mode == "disable":
        connection = await connect_by(False)
    else:
        connection = await _connect_tls(connect_by, address.ssl_mode == "prefer", tls)
    await connection.exchange(_NOT_DECODED, bytes, _no_value, "binary")
    return connection


async def _connect_tls(
    connect_by: Callable[[ssl.SSLContext | bool], Awaitable[PostgresConnection]],
    prefers: bool,
    tls: Callable[[], ssl.SSLContext],
) -> PostgresConnection:
    """Return a connection by TLS, or without it where that is allowed and the server has none."""
    nobody_to_trust: TlsConfigError | None = None
    try:
        context = tls()
    except TlsConfigError as exc:
        if not prefers:
            raise
        context, nobody_to_trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), exc
    try:
        return await connect_by(context)
    except ssl.SSLCertVerificationError:
        if nobody_to_trust is not None:
            raise nobody_to_trust from None
        raise
    except ConnectionError as exc:
        # asyncpg has no other sign of it; its own `prefer` would verify nothing.
        if not prefers or "rejected SSL upgrade" not in str(exc):
            raise
    return await connect_by(False)


def _no_value(_: bytes) -> bool:
    return True
