"""MySQL for guests: ``outbound-mysql``.

A guest keeps its connections for as long as it lives: transactions, ``LAST_INSERT_ID()`` and
variables reach from one call to the next. Then they are reset for others.

Statements go to the server as they are, with ``?`` for parameters, prepared each time. What cannot
be prepared is run as it is if it has no parameters, and without its rows.

Sources: Spin 1.5 crates/outbound-mysql, Spin 3.6 crates/factor-outbound-mysql.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final

from pymysql.constants import FIELD_TYPE

from containerd_shim_spin_v1.host.database import (
    MAX_RESULT_BYTES,
    NULL,
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
from containerd_shim_spin_v1.host.mysql_address import MysqlAddress, parse_address
from containerd_shim_spin_v1.host.mysql_connection import (
    MysqlConnection,
    ResultTooLargeError,
    RowReader,
    StatementError,
    connect,
    message_of,
)
from containerd_shim_spin_v1.outbound.access import OutboundAccess
from containerd_shimkit.http_client.networks import Networks
from containerd_shimkit.pool import ConnectionLostError, Pool

_MAX_MESSAGE: Final = 4096
_UNSIGNED_FLAG: Final = 0x20
_BINARY_FLAG: Final = 0x80

_NUMBERS: Final = {
    FIELD_TYPE.DOUBLE: (DataType.FLOATING64, DataType.FLOATING64),
    FIELD_TYPE.FLOAT: (DataType.FLOATING32, DataType.FLOATING32),
    FIELD_TYPE.INT24: (DataType.INT32, DataType.UINT32),
    FIELD_TYPE.LONG: (DataType.INT32, DataType.UINT32),
    FIELD_TYPE.LONGLONG: (DataType.INT64, DataType.UINT64),
    FIELD_TYPE.SHORT: (DataType.INT16, DataType.UINT16),
    FIELD_TYPE.TINY: (DataType.INT8, DataType.UINT8),
}
_TEXTS: Final = frozenset(
    {FIELD_TYPE.BLOB, FIELD_TYPE.TINY_BLOB, FIELD_TYPE.STRING, FIELD_TYPE.VAR_STRING}
)
# Columns of long texts are sent as BLOB; long results of functions are these, and bytes in Spin.
_BYTES: Final = frozenset({FIELD_TYPE.MEDIUM_BLOB, FIELD_TYPE.LONG_BLOB})


class MysqlHost:
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

        async def make(address: MysqlAddress) -> MysqlConnection:
            return await connect(address, networks, tls, max_result_bytes)

        self._pool: Pool[MysqlAddress, MysqlConnection] = Pool(make, max_connections)

    def session(self, access: OutboundAccess) -> MysqlSession:
        """Return what one guest asks; it has to be closed."""
        return MysqlSession(self._pool, access)

    async def close(self) -> None:
        """End every connection."""
        await self._pool.close()


class MysqlSession:
    """One guest's use of MySQL; it makes one call at a time."""

    def __init__(self, pool: Pool[MysqlAddress, MysqlConnection], access: OutboundAccess) -> None:
        async def check(address: MysqlAddress) -> None:
            await access.check("mysql", address.host, address.port)

        self._connections = GuestConnections(pool, parse_address, check, message_of)

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
        """Run a statement and return its rows.

        Raises the errors of ``database``, DestinationNotAllowedError and VariableError. A value of
        a type that guests have not, a date for one, is an error of conversion.
        """
        rows = _Rows()
        columns = await self._run(where, statement, params, rows.add)
        if rows.failure is not None:
            raise ValueConversionFailedError(rows.failure)
        return RowSet([Column(found.name, _data_type(found)) for found in columns or ()], rows.rows)

    async def execute(self, where: Where, statement: str, params: Sequence[Value]) -> None:
        """Run a statement; raises as ``query``."""
        await self._run(where, statement, params, lambda _columns, _row: None)

    async def close(self) -> None:
        """Give the connections back."""
        self._connections.close()

    async def _run(
        self, where: Where, statement: str, params: Sequence[Value], row: RowReader
    ) -> Sequence[Any] | None:
        async def run(connection: MysqlConnection) -> Sequence[Any] | None:
            try:
                return await connection.run(statement, params, row)
            except (StatementError, ResultTooLargeError) as exc:
                raise QueryFailedError(str(exc)[:_MAX_MESSAGE]) from None
            except ConnectionLostError:
                raise
            except Exception as exc:
                raise OtherDatabaseError(
                    f"the server's answer cannot be read: {message_of(exc)}"[:_MAX_MESSAGE]
                ) from exc

        return await self._connections.call(where, run)


class _Rows:
    """Rows as guests get them, and the first value that they cannot."""

    def __init__(self) -> None:
        self.rows: list[list[Value]] = []
        self.failure: str | None = None
        self._types: list[DataType] = []

    def add(self, columns: Sequence[Any], row: Sequence[Any]) -> None:
        if self.failure is not None:
            return
        if not self._types:
            self._types = [_data_type(column) for column in columns]
        values: list[Value] = []
        for column, type_, value in zip(columns, self._types, row, strict=True):
            if value is None:
                values.append(NULL)
            elif type_ is DataType.STR:
                try:
                    values.append((Kind.STR, value.decode()))
                except UnicodeDecodeError:
                    self._fail(column, "is not UTF-8")
            elif type_ is DataType.OTHER:
                self._fail(column, "is of a type that guests have not")
            else:
                values.append((_KINDS[type_], value))
        self.rows.append(values)

    def _fail(self, column: Any, why: str) -> None:
        self.failure = f"a value of column {column.name!r} {why}"
        self.rows.clear()


_KINDS: Final = {type_: Kind[type_.name] for type_ in DataType if type_ is not DataType.OTHER}


def _data_type(column: Any) -> DataType:
    """Return what guests get a column as; binary collations make bytes of text, as in Spin."""
    if (numbers := _NUMBERS.get(column.type_code)) is not None:
        return numbers[1 if column.flags & _UNSIGNED_FLAG else 0]
    if column.type_code in _TEXTS:
        return DataType.BINARY if column.flags & _BINARY_FLAG else DataType.STR
    return DataType.BINARY if column.type_code in _BYTES else DataType.OTHER
