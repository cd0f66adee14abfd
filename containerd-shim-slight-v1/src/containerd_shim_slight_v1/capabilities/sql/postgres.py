"""``sql.postgres``: a PostgreSQL server.

``POSTGRES_CONNECTION_URL`` is ``postgres://user:password@host:port/database``. With
``?sslmode=require``, ``verify-ca`` or ``verify-full`` the connection is by TLS and the server's
certificate verified; else it is without, as upstream's.

Parameters are strings, and the server reads them as what it wants in their place. So all values are
exchanged in PostgreSQL's text form, in both directions. Connections are kept for the app, and are
as new for each statement.

Source: SpiderLightning 0.5 crates/sql/src/lib.rs, crates/sql/src/implementors/postgres.rs.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401  # names of hosts are encoded by it, and it cannot be found later
import ssl
from collections.abc import Awaitable, Callable
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
from containerd_shimkit.tls import TlsConfigError

_MAX_CONNECTIONS: Final = 32
_CONNECT_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 2.0
_IDLE_SECONDS: Final = 60.0
_ROWS_AT_ONCE: Final = 500
_MAX_MESSAGE: Final = 4096
_MODES: Final = {"disable": False, "allow": False, "prefer": False} | dict.fromkeys(
    ("require", "verify-ca", "verify-full"), True
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
    "bytea": ("binary", lambda text: bytes.fromhex(text.removeprefix("\\x"))),
}
_AS_TEXT: Final = (*_TYPES, "numeric", "interval", "uuid", "json", "jsonb", "oid")

T = TypeVar("T")


class Backend(SqlBackend):
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._pool: Any = None
        self._making = asyncio.Lock()

    async def query(self, statement: Statement) -> list[Field]:
        async def run(connection: Any) -> list[Field]:
            async with connection.transaction():
                prepared = await connection.prepare(numbered(statement.text))
                names = [(a.name, _TYPES.get(a.type.name)) for a in prepared.get_attributes()]
                fields: list[Field] = []
                size = 0
                cursor = prepared.cursor(*_parameters(statement, prepared), prefetch=_ROWS_AT_ONCE)
                async for record in cursor:
                    for (name, kind), value in zip(names, record.values(), strict=True):
                        fields.append((name, _value(kind, value)))
                        size += len(name) + (len(value) if isinstance(value, str) else 0)
                    if len(fields) > MAX_VALUES or size > MAX_RESULT_BYTES:
                        raise SqlError(
                            f"the result has more than {MAX_VALUES} values or"
                            f" {MAX_RESULT_BYTES} bytes"
                        )
                return fields

        return await self._run(run)

    async def execute(self, statement: Statement) -> None:
        async def run(connection: Any) -> None:
            prepared = await connection.prepare(numbered(statement.text))
            await prepared.fetch(*_parameters(statement, prepared))

        await self._run(run)

    async def close(self) -> None:
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _run(self, call: Callable[[Any], Awaitable[T]]) -> T:
        async with self._making:
            if self._pool is None:
                self._pool = await self._make_pool()
        try:
            async with self._pool.acquire(timeout=_CONNECT_SECONDS) as connection:
                return await call(connection)
        except asyncpg.PostgresError as exc:
            raise _error(exc) from None
        except (asyncpg.InterfaceError, asyncpg.InternalClientError) as exc:
            raise SqlError(str(exc)[:_MAX_MESSAGE]) from None
        except ssl.SSLError:
            raise SqlError("the server's certificate or its TLS is not accepted") from None
        except (OSError, TimeoutError):
            raise SqlError("the server does not answer") from None

    async def _make_pool(self) -> Any:
        """Return a pool that connects later."""
        # asyncpg takes from the environment what is not said.
        options = _options(await self.context.value("POSTGRES_CONNECTION_URL"))
        tls: ssl.SSLContext | bool = False
        if options.pop("tls"):
            try:
                tls = self.context.app.certificates.context()
            except TlsConfigError as exc:
                raise SqlError(str(exc)) from None
        return await asyncpg.create_pool(
            **options,
            ssl=tls,
            direct_tls=False,
            target_session_attrs="any",
            krbsrvname="postgres",
            gsslib="gssapi",
            min_size=0,
            max_size=_MAX_CONNECTIONS,
            max_inactive_connection_lifetime=_IDLE_SECONDS,
            timeout=_CONNECT_SECONDS,
            statement_cache_size=0,
            init=_exchange_text,
            reset=_reset,
        )


async def _exchange_text(connection: Any) -> None:
    for name in _AS_TEXT:
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=str, decoder=str, format="text"
        )


async def _reset(connection: Any) -> None:
    if connection.is_in_transaction():
        await connection.execute("ROLLBACK")
    await connection.execute("DISCARD ALL")


def _options(url: str) -> dict[str, Any]:
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
    return {
        "host": [parts.hostname],
        "port": [port],
        "user": user,
        "password": unquote(parts.password or ""),
        "database": unquote(parts.path.removeprefix("/")) or user,
        "tls": _MODES[mode],
    }


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
