"""Connections to PostgreSQL servers, over asyncpg.

asyncpg takes what it is not told from the process's environment and home directory; so everything
is said here. What a server sends for one statement is limited: asyncpg itself would keep all of it.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401  # names of hosts are encoded by it, and it cannot be found later
import re
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import asyncpg

from containerd_shimkit.pool import ConnectionLostError

_COPY: Final = re.compile(
    r"(?:\s|--[^\n]*+|/\*(?>.*?\*/))*+copy\b.*\b(?:stdin|stdout)\b", re.IGNORECASE | re.DOTALL
)
_QUIT_SECONDS: Final = 1.0
_GREETING_BYTES: Final = 1 << 20
_HEAD: Final = struct.Struct(">xi")  # a message's kind, its length
_LENGTH_BYTES: Final = 4  # which count

T = TypeVar("T")


def copies(statement: str) -> bool:
    """Whether a statement copies from or to the client: the server would wait for what never comes.

    Cancelling it would not help.
    """
    return _COPY.match(statement) is not None


class ResultTooLargeError(Exception):
    """A result has more bytes or rows than may be taken."""


class PostgresConnection:
    """A connection as a pool lends it, see ``PooledConnection``."""

    def __init__(self, connection: Any, meter: _Meter) -> None:
        self._connection = connection
        self._meter = meter
        self._busy = False
        self.lent_before = False
        """Somebody else had it."""

    @property
    def usable(self) -> bool:
        return not self._busy and not self._connection.is_closed()

    async def prepare(self, statement: str) -> Any:
        """Return the prepared statement; raises what asyncpg does, and ConnectionLostError."""
        prepared: Any = await self._call(lambda: self._connection.prepare(statement), sent=False)
        return prepared

    async def fetch(self, prepared: Any, arguments: Sequence[Any]) -> list[Any]:
        """Run a prepared statement and return all records.

        Raises as ``prepare``, and ResultTooLargeError.
        """
        records: list[Any] = await self._call(lambda: prepared.fetch(*arguments), sent=True)
        return records

    async def fetch_few(self, prepared: Any, arguments: Sequence[Any], most: int) -> list[Any]:
        """Run a prepared statement in a transaction of its own; raises as ``fetch``.

        most: with more records than that it is rolled back, and ResultTooLargeError raised.
        """

        async def fetch() -> list[Any]:
            transaction = self._connection.transaction()
            await transaction.start()
            try:
                cursor = await prepared.cursor(*arguments)
                records: list[Any] = await cursor.fetch(most + 1)
                if len(records) > most:
                    raise ResultTooLargeError(f"the result has more than {most} rows")
            except Exception:
                # Whoever is cut off does not wait for the server, which need not answer any more.
                await transaction.rollback()
                raise
            await transaction.commit()
            return records

        return await self._call(fetch, sent=True)

    async def execute(self, prepared: Any, arguments: Sequence[Any]) -> None:
        """Run a prepared statement; its records are not kept. Raises as ``fetch``."""
        await self._call(lambda: prepared.executemany([arguments]), sent=True)

    async def exchange(
        self,
        types: Iterable[str],
        encoder: Callable[[Any], Any],
        decoder: Callable[[Any], Any],
        format_: str,
    ) -> None:
        """Have values of these types of the server be other ones; failing, end the connection.

        format_: text or binary.
        """
        try:
            for name in types:
                await self._connection.set_type_codec(
                    name, schema="pg_catalog", encoder=encoder, decoder=decoder, format=format_
                )
        except BaseException:
            self.abort()
            raise

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

    async def _call(self, function: Callable[[], Awaitable[T]], *, sent: bool) -> T:
        """sent: calling the function may change something at the server."""
        self._meter.received = 0
        # It stays so where the call is cancelled, or the state unknown.
        self._busy = True
        try:
            result = await function()
        except ResultTooLargeError:
            self._busy = False
            raise
        except (OSError, asyncpg.PostgresConnectionError) as exc:
            self._check_size()
            raise ConnectionLostError(str(exc), sent=sent) from None
        except asyncpg.InternalClientError as exc:
            if sent:
                raise
            # So it is if the server's last words have come, and its end has not.
            raise ConnectionLostError(str(exc), sent=False) from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
            self._check_size()
            if self._connection.is_closed():
                raise ConnectionLostError(str(exc), sent=sent) from None
            self._busy = False
            raise
        self._busy = False
        return result

    def _check_size(self) -> None:
        if self._meter.exceeded:
            raise ResultTooLargeError(
                f"the result is larger than {self._meter.limit_bytes} bytes"
            ) from None


class _Meter(asyncio.Protocol):
    """Stands between transport and asyncpg, and ends the connection when too much comes.

    Or a message that says it is shorter than its own length: asyncpg would read it for ever, and
    stop the loop.
    """

    def __init__(self, protocol: Any) -> None:
        self.received = 0
        """Bytes of the call that is under way."""
        self.limit_bytes = _GREETING_BYTES
        self.exceeded = False
        self.protocol = protocol
        self.transport: _Transport
        self._head = b""
        self._left = 0
        """Of the message that is under way, without its head."""

    def connection_made(self, transport: Any) -> None:
        self.transport = _Transport(transport)
        self.transport.meter = self
        self.protocol.connection_made(self.transport)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if not self._follow(data):
            self.transport.abort()
        elif self.received <= self.limit_bytes:
            self.protocol.data_received(data)
        elif not self.exceeded:
            self.exceeded = True
            self.transport.abort()

    def _follow(self, data: bytes) -> bool:
        """Find where messages begin; return whether all lengths are possible."""
        at, end = self._left, len(data)
        while at < end:
            if self._head or end - at < _HEAD.size:
                taken = min(_HEAD.size - len(self._head), end - at)
                self._head += data[at : at + taken]
                at += taken
                if len(self._head) < _HEAD.size:
                    break
                length = _HEAD.unpack(self._head)[0]
                self._head = b""
            else:
                (length,) = _HEAD.unpack_from(data, at)
                at += _HEAD.size
            if length < _LENGTH_BYTES:
                return False
            at += length - _LENGTH_BYTES
        self._left = max(at - end, 0)
        return True

    def eof_received(self) -> bool | None:
        stays: bool | None = self.protocol.eof_received()
        return stays

    def connection_lost(self, exc: Exception | None) -> None:
        self.protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self.protocol.resume_writing()


class _Transport:
    """A transport whose protocol, if asyncpg sets another, gets a meter in front as well."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.meter: _Meter | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def set_protocol(self, protocol: Any) -> None:
        self.meter = _Meter(protocol)
        self.meter.transport = self
        self.real.set_protocol(self.meter)


class _MeteredLoop:
    """The loop that asyncpg gets: connections that it makes have a meter from their first byte."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(
        self, factory: Callable[[], Any], *args: Any, **options: Any
    ) -> tuple[Any, Any]:
        def make() -> _Meter:
            return _Meter(factory())

        _, meter = await self._loop.create_connection(make, *args, **options)
        return meter.transport, meter.protocol

    async def start_tls(self, transport: Any, *args: Any, **options: Any) -> Any:
        secured = await self._loop.start_tls(transport.real, *args, **options)
        return None if secured is None else _Transport(secured)


class _MeteredConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """asyncpg's own, which gets to know its transport nowhere else."""

    __slots__ = ("meter",)

    def __init__(self, protocol: Any, transport: Any, *args: Any) -> None:
        super().__init__(protocol, transport, *args)
        self.meter = transport.meter


async def connect(
    *,
    hosts: Sequence[tuple[str, int]],
    user: str,
    password: str,
    database: str,
    tls: ssl.SSLContext | bool,
    max_result_bytes: int,
    settings: Mapping[str, str] | None = None,
    session_attributes: str = "any",
    loop: Any = None,
) -> PostgresConnection:
    """Return a new connection. Raises OSError and what asyncpg raises.

    hosts: tried in turn.  max_result_bytes: of one statement, as the server sends it.
    loop: None is the one that runs.
    """
    connection: Any = await asyncpg.connect(
        host=[host for host, _ in hosts],
        port=[port for _, port in hosts],
        user=user,
        # Without one asyncpg would read PGPASSWORD and ~/.pgpass.
        password=password,
        database=database,
        ssl=tls,
        direct_tls=False,
        server_settings=dict(settings or {}),
        target_session_attrs=session_attributes,
        krbsrvname="postgres",
        gsslib="gssapi",
        statement_cache_size=0,
        connection_class=_MeteredConnection,
        loop=_MeteredLoop(loop or asyncio.get_running_loop()),
    )
    connection.meter.limit_bytes = max_result_bytes
    return PostgresConnection(connection, connection.meter)
