"""PostgreSQL for guests: ``outbound-pg``.

A guest keeps its connections for as long as it lives: transactions, ``currval`` and temporary
tables reach from one call to the next. Then they are reset for others.

Statements go to the server as they are, with ``$1`` for parameters, prepared without a name each
time, so that none is left on the server. What a parameter may be is decided by the type that the
server wants for it, as Spin does.

TLS, by ``sslmode``: ``disable`` never uses it, ``prefer``, the default, where the server has it,
``require`` always. Where it is used the server's certificate is verified, whatever the mode.

Sources: Spin 1.5 crates/outbound-pg, Spin 3.6 crates/factor-outbound-pg.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  # names of hosts are encoded by it, and it cannot be found later
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final

import asyncpg

from containerd_shim_spin_v1.host.database import (
    MAX_RESULT_BYTES,
    NULL,
    UNSUPPORTED,
    BadParameterError,
    Column,
    DataType,
    Kind,
    OtherDatabaseError,
    QueryFailedError,
    RowSet,
    Value,
    ValueConversionFailedError,
)
from containerd_shim_spin_v1.host.database_connections import GuestConnections, Where
from containerd_shim_spin_v1.host.postgres_address import PostgresAddress, parse_address
from containerd_shim_spin_v1.host.postgres_connection import connect
from containerd_shim_spin_v1.outbound.access import OutboundAccess
from containerd_shimkit.http_client.networks import Networks
from containerd_shimkit.pool import Pool
from containerd_shimkit.postgres_client import PostgresConnection, ResultTooLargeError, copies
from containerd_shimkit.turns import map_in_turns

_MAX_MESSAGE: Final = 4096

# By the numbers that types have in every server, see pg_type.dat: what guests get them as.
_RESULTS: Final = {
    16: (DataType.BOOLEAN, Kind.BOOLEAN),
    17: (DataType.BINARY, Kind.BINARY),
    20: (DataType.INT64, Kind.INT64),
    21: (DataType.INT16, Kind.INT16),
    23: (DataType.INT32, Kind.INT32),
    25: (DataType.STR, Kind.STR),
    700: (DataType.FLOATING32, Kind.FLOATING32),
    701: (DataType.FLOATING64, Kind.FLOATING64),
    1042: (DataType.STR, Kind.STR),
    1043: (DataType.STR, Kind.STR),
}
# A number may be given for one of another width; the server's range is checked.
_INTEGERS: Final = frozenset({"int2", "int4", "int8"})
_FLOATS: Final = frozenset({"float4", "float8"})
_PARAMETERS: Final[dict[str, frozenset[str]]] = {
    Kind.BOOLEAN: frozenset({"bool"}),
    Kind.INT8: _INTEGERS,
    Kind.INT16: _INTEGERS,
    Kind.INT32: _INTEGERS,
    Kind.INT64: _INTEGERS,
    Kind.FLOATING32: _FLOATS,
    Kind.FLOATING64: _FLOATS,
    Kind.STR: frozenset({"text", "varchar", "bpchar", "name", "unknown", "citext"}),
    Kind.BINARY: frozenset({"bytea"}),
}
_UNSIGNED: Final = frozenset({Kind.UINT8, Kind.UINT16, Kind.UINT32, Kind.UINT64})


class PostgresHost:
    """The app's connections."""

    def __init__(
        self,
        networks: Networks,
        tls: Callable[[], ssl.SSLContext],
        max_connections: int | None = None,
        *,
        max_result_bytes: int = MAX_RESULT_BYTES,
    ) -> None:
        """tls: the context that verifies servers.  max_connections: of the app, in this process."""

        async def make(address: PostgresAddress) -> PostgresConnection:
            return await connect(address, networks, tls, max_result_bytes)

        self._pool: Pool[PostgresAddress, PostgresConnection] = Pool(make, max_connections)

    def session(self, access: OutboundAccess) -> PostgresSession:
        """Return what one guest asks; it has to be closed."""
        return PostgresSession(self._pool, access)

    async def close(self) -> None:
        """End every connection."""
        await self._pool.close()


class PostgresSession:
    """One guest's use of PostgreSQL; it makes one call at a time."""

    def __init__(
        self, pool: Pool[PostgresAddress, PostgresConnection], access: OutboundAccess
    ) -> None:
        async def check(address: PostgresAddress) -> None:
            for host, port in address.hosts:
                await access.check("postgres", host, port)

        self._connections = GuestConnections(pool, parse_address, check, _reason)

    @property
    def has_open(self) -> bool:
        """Whether there is anything to close."""
        return self._connections.has_any

    async def open(self, address: str) -> int:
        """Return a handle of a new connection; raises as ``query``."""
        return await self._connections.open(address)

    def drop(self, handle: int) -> None:
        """Give an opened connection back."""
        self._connections.drop(handle)

    async def query(self, where: Where, statement: str, params: Sequence[Value]) -> RowSet:
        """Run a statement and return its rows; columns are only told of if there are any.

        Raises the errors of ``database``, DestinationNotAllowedError and VariableError.
        """
        if any(kind in _UNSIGNED for kind, _ in params):
            raise BadParameterError("PostgreSQL has no unsigned integers")
        records, attributes, _ = await self._run(where, statement, params)
        if not records:
            return RowSet([], [])
        types = [_RESULTS.get(found.type.oid) for found in attributes]
        columns = [
            Column(found.name, known[0] if known else DataType.OTHER)
            for found, known in zip(attributes, types, strict=True)
        ]
        kinds = [known[1] if known else None for known in types]
        return RowSet(columns, await _rows(records, kinds))

    async def execute(self, where: Where, statement: str, params: Sequence[Value]) -> int:
        """Run a statement and return how many rows it was about; raises as ``query``."""
        if any(kind in _UNSIGNED for kind, _ in params):
            raise ValueConversionFailedError("PostgreSQL has no unsigned integers")
        _, _, status = await self._run(where, statement, params)
        last = status.rpartition(" ")[2]
        return int(last) if last.isascii() and last.isdigit() else 0

    async def close(self) -> None:
        """Give the connections back."""
        self._connections.close()

    async def _run(
        self, where: Where, statement: str, params: Sequence[Value]
    ) -> tuple[list[Any], Sequence[Any], str]:
        """Return records, what their columns are, and the server's word of what was done."""
        if "\0" in statement:
            raise QueryFailedError("the statement holds a NUL")
        if copies(statement):
            raise QueryFailedError("COPY from and to the client is not supported")

        async def run(connection: PostgresConnection) -> tuple[list[Any], Sequence[Any], str]:
            prepared = await connection.prepare(statement)
            arguments = _arguments(params, prepared.get_parameters())
            records = await connection.fetch(prepared, arguments)
            return records, prepared.get_attributes(), prepared.get_statusmsg() or ""

        try:
            return await self._connections.call(where, run)
        except ResultTooLargeError as exc:
            raise QueryFailedError(str(exc)) from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
            raise QueryFailedError(_reason(exc)) from None
        except asyncpg.InternalClientError as exc:
            raise OtherDatabaseError(_reason(exc)) from None


def _arguments(params: Sequence[Value], wanted: Sequence[Any]) -> list[Any]:
    """Return what is sent, if the server's types allow it. Raises QueryFailedError."""
    if len(params) != len(wanted):
        raise QueryFailedError(
            f"the statement has {len(wanted)} parameters, and {len(params)} were given"
        )
    for number, ((kind, _), type_) in enumerate(zip(params, wanted, strict=True), 1):
        if kind != Kind.DB_NULL and type_.name not in _PARAMETERS.get(kind, ()):
            raise QueryFailedError(
                f"parameter ${number} is {kind}, which is no value for type {type_.name}"
            )
    return [value for _, value in params]


async def _rows(records: list[Any], kinds: list[Kind | None]) -> list[list[Value]]:
    def row(record: Any) -> list[Value]:
        return [
            (UNSUPPORTED if kind is None else NULL if value is None else (kind, value))
            for kind, value in zip(kinds, record.values(), strict=True)
        ]

    return await map_in_turns(row, records)


def _reason(exc: BaseException) -> str:
    """Return a message for the guest."""
    if isinstance(exc, asyncpg.PostgresError):
        parts = [f"{exc} (SQLSTATE {exc.sqlstate})"]
    else:
        parts = [str(exc) or type(exc).__name__]
    if isinstance(exc, ssl.SSLCertVerificationError):
        parts.append("sslmode=disable connects without TLS")
    return "; ".join(parts)[:_MAX_MESSAGE]
