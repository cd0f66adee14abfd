"""Values, results and errors that PostgreSQL and MySQL have in common.

Source: Spin 1.5 wit/ephemeral/{rdbms-types,pg-types,mysql-types}.wit.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias


class DataType(StrEnum):
    """``db-data-type``."""

    BOOLEAN = "boolean"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    FLOATING32 = "floating32"
    FLOATING64 = "floating64"
    STR = "str"
    BINARY = "binary"
    OTHER = "other"


class Kind(StrEnum):
    """The cases of ``db-value`` and, without the last, of ``parameter-value``."""

    BOOLEAN = "boolean"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    FLOATING32 = "floating32"
    FLOATING64 = "floating64"
    STR = "str"
    BINARY = "binary"
    DB_NULL = "db-null"
    UNSUPPORTED = "unsupported"


Value: TypeAlias = tuple[str, bool | int | float | str | bytes | None]
"""A case, by its name, and what it holds: None for the last two, else what the name says."""

NULL: Final[Value] = (Kind.DB_NULL, None)
UNSUPPORTED: Final[Value] = (Kind.UNSUPPORTED, None)


class Column(NamedTuple):
    name: str
    data_type: DataType


class RowSet(NamedTuple):
    """What a query returned."""

    columns: list[Column]
    rows: list[list[Value]]


MAX_RESULT_BYTES: Final = 128 << 20  # Spin 3.6 crates/world/src/lib.rs
"""Of one result, as the server sends it."""


class AddressError(ValueError):
    """An address that cannot be used; the message does not repeat it: it may hold a password."""


class DatabaseError(Exception):
    """The cases of ``pg-error`` and ``mysql-error``; the message is for the guest."""


class ConnectionFailedError(DatabaseError):
    """No connection can be made."""


class BadParameterError(DatabaseError):
    """A parameter is of a kind that the database does not have."""


class QueryFailedError(DatabaseError):
    """The server refused the statement, or its result cannot be taken."""


class ValueConversionFailedError(DatabaseError):
    """A value of the result, or a parameter, cannot be converted."""


class OtherDatabaseError(DatabaseError):
    """Anything else."""
