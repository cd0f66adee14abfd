"""One connection to a PostgreSQL server, over asyncpg.

asyncpg takes what it is not told from the process's environment and home directory; so everything
is said here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final

import asyncpg

from containerd_shim_spin_v1.host.database_connections import ConnectionLostError
from containerd_shim_spin_v1.host.networks import Networks
from containerd_shim_spin_v1.host.postgres_address import PostgresAddress
from containerd_shimkit.tls import TlsConfigError

_QUIT_SECONDS: Final = 1.0
_GREETING_BYTES: Final = 1 << 20  # until it is lent

# Types whose values cannot always be had in Python, a year 20000 for one; guests get none of them.
_NOT_DECODED: Final = ("date", "time", "timetz", "timestamp", "timestamptz", "interval", "numeric")


class ResultTooLargeError(Exception):
    """A result has more bytes than may be taken."""


class PostgresConnection:
    """A connection as the pool lends it."""

    def __init__(self, connection: Any, meter: _Meter) -> None:
        self._connection = connection
        self._meter = meter
        self._busy = False
        self.lent_before = False

    @property
    def usable(self) -> bool:
        return not self._busy and not self._connection.is_closed()

    async def prepare(self, statement: str) -> Any:
        """Return the prepared statement; raises what asyncpg does, and ConnectionLostError."""
        return await self._call(self._connection.prepare, statement, sent=False)

    async def fetch(self, prepared: Any, arguments: Sequence[Any]) -> list[Any]:
        """Run a prepared statement and return all records; raises as ``prepare``."""
        records: list[Any] = await self._call(prepared.fetch, *arguments, sent=True)
        return records

    async def _call(self, function: Callable[..., Any], *arguments: Any, sent: bool) -> Any:
        """sent: calling the function may change something at the server."""
        self._meter.received = 0
        # It stays so where the call is cancelled, or the state unknown.
        self._busy = True
        try:
            result = await function(*arguments)
        except (OSError, asyncpg.PostgresConnectionError) as exc:
            if self._meter.exceeded:
                raise ResultTooLargeError(
                    f"the result is larger than {self._meter.limit_bytes} bytes"
                ) from None
            raise ConnectionLostError(str(exc), sent=sent) from None
        except asyncpg.InternalClientError as exc:
            if sent:
                raise
            # So it is if the server's last words have come, and its end has not.
            raise ConnectionLostError(str(exc), sent=False) from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
            if self._connection.is_closed():
                raise ConnectionLostError(str(exc), sent=sent) from None
            self._busy = False
            raise
        self._busy = False
        return result

    async def reset(self) -> None:
        if self._connection.is_in_transaction():
            await self._connection.execute("ROLLBACK")
        await self._connection.execute("DISCARD ALL")
        self.lent_before = True

    async def quit(self) -> None:
        # If a statement is under way, asyncpg has asked the server to cancel it and waits for that.
        await self._connection.close(timeout=_QUIT_SECONDS)

    def abort(self) -> None:
        self._connection.terminate()


class _Meter(asyncio.Protocol):
    """Stands between transport and asyncpg, and ends the connection when too much comes."""

    def __init__(
        self, transport: asyncio.Transport, protocol: asyncio.Protocol, limit_bytes: int
    ) -> None:
        self.received = 0
        """Bytes of the call that is under way."""
        self.limit_bytes = limit_bytes
        self.exceeded = False
        self._transport = transport
        self._protocol = protocol
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.received <= self.limit_bytes:
            self._protocol.data_received(data)
        elif not self.exceeded:
            self.exceeded = True
            self._transport.abort()

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


class _MeteredConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """asyncpg's own, which gets to know its transport nowhere else."""

    __slots__ = ("meter",)

    def __init__(self, protocol: Any, transport: Any, *args: Any) -> None:
        super().__init__(protocol, transport, *args)
        self.meter = _Meter(transport, protocol, _GREETING_BYTES)


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
    if address.ssl_mode == "disable":
        connection = await _connect(address, networks, False)
    else:
        connection = await _connect_tls(address, networks, tls)
    connection.meter.limit_bytes = max_result_bytes
    for name in _NOT_DECODED:
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=bytes, decoder=_no_value, format="binary"
        )
    return PostgresConnection(connection, connection.meter)


async def _connect_tls(
    address: PostgresAddress, networks: Networks, tls: Callable[[], ssl.SSLContext]
) -> Any:
    """Return a connection by TLS, or without it where that is allowed and the server has none."""
    prefers = address.ssl_mode == "prefer"
    nobody_to_trust: TlsConfigError | None = None
    try:
        context = tls()
    except TlsConfigError as exc:
        if not prefers:
            raise
        context, nobody_to_trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), exc
    try:
        return await _connect(address, networks, context)
    except ssl.SSLCertVerificationError:
        if nobody_to_trust is not None:
            raise nobody_to_trust from None
        raise
    except ConnectionError as exc:
        # asyncpg has no other sign of it; its own `prefer` would verify nothing.
        if not prefers or "rejected SSL upgrade" not in str(exc):
            raise
    return await _connect(address, networks, False)


def _no_value(_: bytes) -> bool:
    return True


async def _connect(address: PostgresAddress, networks: Networks, tls: ssl.SSLContext | bool) -> Any:
    return await asyncpg.connect(
        host=[host for host, _ in address.hosts],
        port=[port for _, port in address.hosts],
        user=address.user,
        # Without one asyncpg would read PGPASSWORD and ~/.pgpass.
        password=address.password,
        database=address.database,
        ssl=tls,
        direct_tls=False,
        server_settings=dict(address.settings),
        target_session_attrs=address.session_attributes,
        krbsrvname="postgres",
        gsslib="gssapi",
        statement_cache_size=0,
        connection_class=_MeteredConnection,
        loop=_PinnedLoop(networks) if networks.active else None,
    )
