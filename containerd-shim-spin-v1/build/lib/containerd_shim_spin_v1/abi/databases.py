"""What ``outbound-pg`` and ``outbound-mysql`` have in common: values, results and errors.

Guests for Spin 1.x name the server's address in each call, those for 2.0 and later have a
connection, which here is a handle.

Source: Spin 1.5 wit/ephemeral/{rdbms-types,outbound-pg,outbound-mysql}.wit, wit/preview2; Spin 3.6
wit/deps/spin@2.0.0/{rdbms-types,postgres,mysql}.wit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from containerd_shim_spin_v1.abi.imports import Function, Interface
from containerd_shim_spin_v1.host.database import (
    BadParameterError,
    ConnectionFailedError,
    DatabaseError,
    DataType,
    QueryFailedError,
    ValueConversionFailedError,
)
from containerd_shim_spin_v1.host.mysql import MysqlSession
from containerd_shim_spin_v1.host.postgres import PostgresSession
from containerd_shim_spin_v1.outbound.access import DestinationNotAllowedError
from containerd_shim_spin_v1.variables.values import VariableError
from containerd_shimkit.wasm.canonical import (
    BOOL,
    BYTES,
    F32,
    F64,
    S8,
    S16,
    S32,
    S64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    Enum,
    List,
    Record,
    Result,
    Type,
    Variant,
)
from containerd_shimkit.wasm.interfaces import CURRENT_REALLOC

_KINDS: Final[dict[str, Type | None]] = {
    "boolean": BOOL,
    "int8": S8,
    "int16": S16,
    "int32": S32,
    "int64": S64,
    "uint8": U8,
    "uint16": U16,
    "uint32": U32,
    "uint64": U64,
    "floating32": F32,
    "floating64": F64,
    "str": STRING,
    "binary": BYTES,
    "db_null": None,
}
_PARAMETERS: Final = List(Variant(**_KINDS))
_ROW_SET: Final = Record(
    List(Record(STRING, Enum(*DataType))), List(List(Variant(**_KINDS, unsupported=None)))
)
_ERRORS: Final[dict[str, Type | None]] = {
    "connection_failed": STRING,
    "bad_parameter": STRING,
    "query_failed": STRING,
    "value_conversion_failed": STRING,
}
_ERROR_V1: Final = Variant(success=None, **_ERRORS, other_error=STRING)
_ERROR: Final = Variant(**_ERRORS, other=STRING)

SessionOf = Callable[[Any], PostgresSession | MysqlSession]
"""Returns the session of an ``Instance``."""


def interfaces_of(
    session_of: SessionOf, affected: Type | None, old_name: str, name: str
) -> tuple[Interface, ...]:
    """Return the interfaces of one kind of server.

    affected: what ``execute`` returns.  old_name: in 1.0.  name: since 1.4.
    """
    return (
        Interface(old_name, _functions_v1(session_of, affected), _error_v1),
        Interface(
            f"fermyon:spin/{name}", _functions_v1(session_of, affected), _error_v1, CURRENT_REALLOC
        ),
        Interface(
            f"fermyon:spin/{name}@2.0.0", _functions(session_of, affected), _error, CURRENT_REALLOC
        ),
    )


_Call = Callable[..., Awaitable[Any]]


def _calls(session_of: SessionOf) -> tuple[_Call, _Call]:
    """Return what ``query`` and ``execute`` call, with an address or a handle."""

    async def query(instance: Any, *arguments: Any) -> Any:
        return await session_of(instance).query(*arguments)

    async def execute(instance: Any, *arguments: Any) -> Any:
        return await session_of(instance).execute(*arguments)

    return query, execute


def _functions_v1(session_of: SessionOf, affected: Type | None) -> list[Function]:
    query, execute = _calls(session_of)
    parameters = [STRING, STRING, _PARAMETERS]
    return [
        Function("query", parameters, Result(_ROW_SET, _ERROR_V1), query),
        Function("execute", parameters, Result(affected, _ERROR_V1), execute),
    ]


def _functions(session_of: SessionOf, affected: Type | None) -> list[Function]:
    async def open_(instance: Any, address: str) -> int:
        return await session_of(instance).open(address)

    async def drop(instance: Any, handle: int) -> None:
        session_of(instance).drop(handle)

    query, execute = _calls(session_of)
    parameters = [U32, STRING, _PARAMETERS]
    return [
        Function("[static]connection.open", [STRING], Result(U32, _ERROR), open_),
        Function("[method]connection.query", parameters, Result(_ROW_SET, _ERROR), query),
        Function("[method]connection.execute", parameters, Result(affected, _ERROR), execute),
        Function("[resource-drop]connection", [U32], None, drop),
    ]


def _error_v1(exc: Exception) -> tuple[str, str] | None:
    return _case_of(exc, "other-error")


def _error(exc: Exception) -> tuple[str, str] | None:
    return _case_of(exc, "other")


def _case_of(exc: Exception, other: str) -> tuple[str, str] | None:
    match exc:
        case ConnectionFailedError() | DestinationNotAllowedError():
            return "connection-failed", str(exc)
        case BadParameterError():
            return "bad-parameter", str(exc)
        case QueryFailedError():
            return "query-failed", str(exc)
        case ValueConversionFailedError():
            return "value-conversion-failed", str(exc)
        case DatabaseError() | VariableError():
            return other, str(exc)
    return None
