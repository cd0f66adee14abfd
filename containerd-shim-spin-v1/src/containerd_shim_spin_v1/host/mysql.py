"""MySQL for guests: ``outbound-mysql``.

A guest keeps one connection to each address for as long as it lives, as in Spin 1: transactions,
``LAST_INSERT_ID()`` and variables reach from one call to the next. Then it is reset for others.

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
    ConnectionFailedError,
    DataType,
    Kind,
    OtherDatabaseError,
    QueryFailedError,
    RowSet,
    Value,
    ValueConversionFailedError,
)
from containerd_shim_spin_v1.host.mysql_address import (
    MysqlAddress,
    MysqlAddressError,
    parse_address,
)
from containerd_shim_spin_v1.host.mysql_connection import (
    ConnectionLostError,
    MysqlConnection,
    ResultTooLargeError,
    StatementError,
    connect,
    message_of,
)
from containerd_shim_spin_v1.host.networks import Networks
from containerd_shim_spin_v1.host.pool import Pool, PoolBusyError, PoolClosedError
from containerd_shim_spin_v1.outbound.access import DestinationNotAllowedError, OutboundAccess

MAX_ADDRESSES: Final = 16
"""That one guest may use at once."""

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
        self._pool = pool
        self._access = access
        self._mine: dict[str, tuple[MysqlAddress, MysqlConnection]] = {}

    async def query(self, address: str, statement: str, params: Sequence[Value]) -> RowSet:
        """Run a statement and return its rows.

        Raises the errors of ``database``: one about conversion if any value is of a type that
        guests have not, a date for one.
        """
        rows = _Rows()
        columns = await self._run(address, statement, params, rows.add)
        if rows.failure is not None:
            raise ValueConversionFailedError(rows.failure)
        return RowSet([Column(found.name, _data_type(found)) for found in columns or ()], rows.rows)

    async def execute(self, address: str, statement: str, params: Sequence[Value]) -> None:
        """Run a statement; raises as ``query``."""
        await self._run(address, statement, params, lambda _columns, _row: None)

    async def close(self) -> None:
        """Give the connections back: nothing of this guest is left on them for the next."""
        mine, self._mine = self._mine, {}
        for address, connection in mine.values():
            self._pool.give_back(address, connection)

    async def _run(
        self,
        address: str,
        statement: str,
        params: Sequence[Value],
        row: Callable[[Sequence[Any], Sequence[Any]], None],
    ) -> Sequence[Any] | None:
        while True:
            first = address not in self._mine
            where, connection = await self._connection(address)
            try:
                return await connection.run(statement, params, row)
            except ConnectionLostError as exc:
                # What the server closed while it was idle has not seen the statement. Later on a
                # guest has to know: a transaction may be gone with the connection.
                if first and connection.lent_before and not exc.sent:
                    continue
                raise QueryFailedError(
                    f"the connection to {where.shown} was lost: {exc}"[:_MAX_MESSAGE]
                ) from None
            except (StatementError, ResultTooLargeError) as exc:
                raise QueryFailedError(str(exc)[:_MAX_MESSAGE]) from None
            except Exception as exc:
                raise OtherDatabaseError(
                    f"{where.shown} gave no answer that can be read: {message_of(exc)}"[
                        :_MAX_MESSAGE
                    ]
                ) from exc
            finally:
                if not connection.usable:
                    self._mine.pop(address, None)
                    self._pool.give_back(where, connection)

    async def _connection(self, address: str) -> tuple[MysqlAddress, MysqlConnection]:
        if (mine := self._mine.get(address)) is not None:
            return mine
        try:
            where = parse_address(address)
        except MysqlAddressError as exc:
            raise ConnectionFailedError(f"the address {exc}") from None
        if len(self._mine) >= MAX_ADDRESSES:
            raise ConnectionFailedError(f"more than {MAX_ADDRESSES} addresses are in use")
        try:
            await self._access.check("mysql", where.host, where.port)
        except DestinationNotAllowedError as exc:
            raise ConnectionFailedError(str(exc)) from exc
        try:
            connection = await self._pool.take(where)
        except (PoolBusyError, PoolClosedError) as exc:
            raise ConnectionFailedError(f"cannot connect to {where.shown}: {exc}") from None
        except TimeoutError:
            raise ConnectionFailedError(
                f"cannot connect to {where.shown}: no answer in time"
            ) from None
        except Exception as exc:
            raise ConnectionFailedError(
                f"cannot connect to {where.shown}: {message_of(exc)}"[:_MAX_MESSAGE]
            ) from None
        self._mine[address] = where, connection
        return where, connection


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
