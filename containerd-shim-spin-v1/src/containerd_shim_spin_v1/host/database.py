"""Values, results and errors that PostgreSQL and MySQL have in common.

Source: Spin 1.5 wit/ephemeral/{rdbms-types,pg-types,mysql-types}.wit.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Final, NamedTuple, TypeAlias


class DataType(IntEnum):
    """``db-data-type``, numbered as there."""

    BOOLEAN = 0
    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    UINT8 = 5
    UINT16 = 6
    UINT32 = 7
    UINT64 = 8
    FLOATING32 = 9
    FLOATING64 = 10
    STR = 11
    BINARY = 12
    OTHER = 13


class Kind(IntEnum):
    """The cases of ``db-value`` and, without the last, of ``parameter-value``."""

    BOOLEAN = 0
    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    UINT8 = 5
    UINT16 = 6
    UINT32 = 7
    UINT64 = 8
    FLOATING32 = 9
    FLOATING64 = 10
    STR = 11
    BINARY = 12
    DB_NULL = 13
    UNSUPPORTED = 14

    @property
    def wit(self) -> str:
        """The name that guests know: ``db-null``."""
        return self.name.lower().replace("_", "-")


Value: TypeAlias = tuple[Kind, bool | int | float | str | bytes | None]
"""A case and what it holds: None for the last two, else what its name says."""

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


class DatabaseError(Exception):
    """The cases of ``pg-error`` and ``mysql-error``; the message is for the guest."""

    case: ClassVar[str]


class ConnectionFailedError(DatabaseError):
    """No connection may be made, or none can."""

    case = "connection-failed"


class BadParameterError(DatabaseError):
    """A parameter is of a kind that the database does not have."""

    case = "bad-parameter"


class QueryFailedError(DatabaseError):
    """The server refused the statement, or its result cannot be taken."""

    case = "query-failed"


class ValueConversionFailedError(DatabaseError):
    """A value of the result, or a parameter, cannot be converted."""

    case = "value-conversion-failed"


class OtherDatabaseError(DatabaseError):
    """Anything else."""

    case = "other-error"
