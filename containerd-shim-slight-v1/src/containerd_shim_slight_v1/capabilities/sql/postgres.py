"""``sql.postgres``: a PostgreSQL server.

``POSTGRES_CONNECTION_URL`` is ``postgres://user:password@host:port/database``. With
``?sslmode=require``, ``verify-ca`` or ``verify-full`` the connection is by TLS and the server's
certificate verified; else it is without, as upstream's.

Parameters are strings, and the server reads them as what it wants in their place. So all values are
exchanged in PostgreSQL's text form, in both directions. Connections are kept for the app, at most
32, and are as new for each statement; whoever finds none free waits for half a minute.

Source: SpiderLightning 0.5 crates/sql/src/lib.rs, crates/sql/src/implementors/postgres.rs.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg

from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.sql.base import (
    MAX_RESULT_BYTES,
    MAX_VALUES,
    AccessError,
    ConstraintError,
    Field,
    SqlBackend,
    SqlError,
    Statement,
    StatementSyntaxError,
    Value,
)
from containerd_shim_slight_v1.capabilities.sql.placeholders import numbered
from containerd_shimkit.pool import ConnectionLostError, Pool, PoolBusyError, PoolClosedError
from containerd_shimkit.postgres_client import (
    PostgresConnection,
    ResultTooLargeError,
    connect,
    copies,
)
from containerd_shimkit.tls import TlsConfigError
from containerd_shimkit.turns import map_in_turns

_WAIT_SECONDS: Final = 30.0
_MAX_MESSAGE: Final = 4096
_MAX_NUMBERED: Final = 256 << 10
_MODES: Final = {"disable": False, "allow": False, "prefer": False} | dict.fromkeys(
    ("require", "verify-ca", "verify-full"), True
)

_ESCAPED: Final = re.compile(rb"\\(\\|[0-3][0-7][0-7])")


def _bytes(text: str) -> bytes:
    """Return a binary value, in the one of the server's two forms that it is set to."""
    if text.startswith("\\x"):
        return bytes.fromhex(text[2:])
    return _ESCAPED.sub(
        lambda found: b"\\" if found[1] == b"\\" else bytes([int(found[1], 8)]), text.encode()
    )


# Of each type its case, and what makes a value of the text; other types have strings.
_TYPES: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "int2": ("int32", int),
    "int4": ("int32", int),
    "int8": ("int64", int),
    "float4": ("float", float),
    "float8": ("double", float),
    "bool": ("boolean", lambda text: text == "t"),
    "date": ("date", str),
    "time": ("time", str),
    "timetz": ("time", str),
    "timestamp": ("timestamp", str),
    "timestamptz": ("timestamp", str),
    "bytea": ("binary", _bytes),
}
_AS_TEXT: Final = (*_TYPES, "numeric", "interval", "uuid", "json", "jsonb", "oid")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Database:
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    name: str
    tls: bool

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Backend(SqlBackend):
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._pool: Pool[_Database, PostgresConnection] = Pool(
            self._connect, wait_seconds=_WAIT_SECONDS
        )
        self._database: _Database | None = None

    async def query(self, statement: Statement) -> list[Field]:
        async def run(connection: PostgresConnection) -> list[Field]:
            prepared = await connection.prepare(_text(statement))
            names = [(a.name, _TYPES.get(a.type.name)) for a in prepared.get_attributes()]
            most = MAX_VALUES // max(len(names), 1)
            parameters = _parameters(statement, prepared)
            records = await connection.fetch_few(prepared, parameters, most)
            # A name goes with each value.
            size = len(records) * sum(len(name) for name, _ in names)
            if size > MAX_RESULT_BYTES:
                raise ResultTooLargeError

            def fields(record: Any) -> list[Field]:
                return [
                    (name, _value(kind, value))
                    for (name, kind), value in zip(names, record.values(), strict=True)
                ]

            return [found for row in await map_in_turns(fields, records) for found in row]

        return await self._run(run)

    async def execute(self, statement: Statement) -> None:
        async def run(connection: PostgresConnection) -> None:
            prepared = await connection.prepare(_text(statement))
            await connection.execute(prepared, _parameters(statement, prepared))

        await self._run(run)

    async def close(self) -> None:
        await self._pool.close()

    async def _run(self, call: Callable[[PostgresConnection], Awaitable[T]]) -> T:
        if self._database is None:
            self._database = _database(await self.context.value("POSTGRES_CONNECTION_URL"))
        where = self._database
        try:
            return await self._call(where, call)
        except ResultTooLargeError:
            raise SqlError(
                f"the result has more than {MAX_VALUES} values or {MAX_RESULT_BYTES} bytes"
            ) from None
        except ConnectionLostError:
            raise SqlError(f"{where}: the connection was lost") from None
        except (PoolBusyError, PoolClosedError) as exc:
            raise SqlError(f"{where}: {exc}") from None
        except asyncpg.PostgresError as exc:
            raise _error(exc) from None
        except (asyncpg.InterfaceError, asyncpg.InternalClientError) as exc:
            raise SqlError(str(exc)[:_MAX_MESSAGE]) from None
        except ssl.SSLError:
            raise SqlError(f"{where}: its certificate or its TLS is not accepted") from None
        except ConnectionError as exc:
            # asyncpg has no other sign of it.
            if "rejected SSL upgrade" in str(exc):
                raise SqlError(f"{where}: it has no TLS") from None
            raise SqlError(f"{where}: the server does not answer") from None
        except (OSError, TimeoutError):
            raise SqlError(f"{where}: the server does not answer") from None

    async def _call(
        self, where: _Database, call: Callable[[PostgresConnection], Awaitable[T]]
    ) -> T:
        while True:
            connection = await self._pool.take(where)
            try:
                return await call(connection)
            except ConnectionLostError as exc:
                # One that the server closed while it was idle has not seen the statement.
                if exc.sent or not connection.lent_before:
                    raise
            finally:
                self._pool.give_back(where, connection)

    async def _connect(self, database: _Database) -> PostgresConnection:
        tls: ssl.SSLContext | bool = False
        if database.tls:
            try:
                tls = self.context.app.certificates.context()
            except TlsConfigError as exc:
                raise SqlError(str(exc)) from None
        connection = await connect(
            hosts=[(database.host, database.port)],
            user=database.user,
            password=database.password,
            database=database.name,
            tls=tls,
            max_result_bytes=MAX_RESULT_BYTES,
        )
        await connection.exchange(_AS_TEXT, str, str, "text")
        return connection


def _database(url: str) -> _Database:
    """Return where to connect to. Raises SqlError, without a word of the URL."""
    try:
        parts = urlsplit(url)
        port = parts.port or 5432
        settings = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise SqlError("POSTGRES_CONNECTION_URL is no URL") from None
    if parts.scheme not in ("postgres", "postgresql") or not parts.hostname or not parts.username:
        raise SqlError("POSTGRES_CONNECTION_URL is not like postgres://user:password@host/database")
    mode = settings.pop("sslmode", "disable")
    if mode not in _MODES or settings.keys() - {"connect_timeout", "application_name"}:
        raise SqlError("POSTGRES_CONNECTION_URL has an option that is not supported")
    user = unquote(parts.username)
    return _Database(
        host=parts.hostname,
        port=port,
        user=user,
        password=unquote(parts.password or ""),
        name=unquote(parts.path.removeprefix("/")) or user,
        tls=_MODES[mode],
    )


def _text(statement: Statement) -> str:
    """Return what the server is sent. Raises SqlError."""
    if "\0" in statement.text:
        raise SqlError("the statement holds a NUL")
    if copies(statement.text):
        raise SqlError("COPY from and to the client is not supported")
    # To look for parameters stops the loop for everybody.
    if len(statement.text) > _MAX_NUMBERED and "?" in statement.text:
        raise SqlError(f"a statement with ? has more than {_MAX_NUMBERED} characters")
    return numbered(statement.text)


def _parameters(statement: Statement, prepared: Any) -> tuple[str, ...]:
    wanted = len(prepared.get_parameters())
    if wanted != len(statement.parameters):
        raise SqlError(
            f"the statement has {wanted} parameters, and {len(statement.parameters)} were given"
        )
    return statement.parameters


def _value(kind: tuple[str, Callable[[str], Any]] | None, value: Any) -> Value:
    # Arrays and composed values have no case.
    if not isinstance(value, str):
        return "null", None
    case, make = kind or ("str", str)
    return case, make(value)


def _error(exc: asyncpg.PostgresError) -> SqlError:
    state = exc.sqlstate or ""
    text = f"{exc} (SQLSTATE {state})"[:_MAX_MESSAGE]
    if state == "42501" or state.startswith("28"):
        return AccessError(text)
    if state.startswith("42"):
        return StatementSyntaxError(text)
    return ConstraintError(text) if state.startswith("23") else SqlError(text)
