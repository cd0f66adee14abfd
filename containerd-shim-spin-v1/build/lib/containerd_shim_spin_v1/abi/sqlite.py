"""``sqlite``: statements of the app's own databases.

Source: Spin 1.5 wit/ephemeral/sqlite.wit, wit/preview2/sqlite.wit; Spin 3.6
wit/deps/spin@2.0.0/sqlite.wit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from containerd_shim_spin_v1.abi.imports import Function, Interface
from containerd_shim_spin_v1.host.instance import Instance
from containerd_shim_spin_v1.host.sqlite import (
    AccessDeniedError,
    InvalidConnectionError,
    NoSuchDatabaseError,
)
from containerd_shim_spin_v1.host.sqlite_database import DatabaseFullError, SqliteError, Value
from containerd_shimkit.turns import map_in_turns
from containerd_shimkit.wasm.canonical import (
    BYTES,
    F64,
    S64,
    STRING,
    U32,
    List,
    Record,
    Result,
    Variant,
)
from containerd_shimkit.wasm.interfaces import CURRENT_REALLOC

_ERROR: Final = Variant(
    no_such_database=None,
    access_denied=None,
    invalid_connection=None,
    database_full=None,
    io=STRING,
)
_VALUE: Final = Variant(integer=S64, real=F64, text=STRING, blob=BYTES, null=None)
_RESULT: Final = Record(List(STRING), List(Record(List(_VALUE))))
_CASES: Final = {int: "integer", float: "real", str: "text", bytes: "blob", type(None): "null"}

log = logging.getLogger(__name__)


async def _open(instance: Instance, database: str) -> int:
    try:
        return await instance.sqlite.open(database)
    except AccessDeniedError as exc:
        # The guest's error has no room for it, and whoever runs the app is to see it.
        log.warning("component %r: sqlite.open: %s", instance.component_id, exc)
        raise


async def _execute(
    instance: Instance, handle: int, statement: str, parameters: Sequence[tuple[str, Value]]
) -> tuple[list[str], list[Any]]:
    values = [value for _, value in parameters]
    found = await instance.sqlite.execute(handle, statement, values)
    return found.columns, await map_in_turns(_row, found.rows)


def _row(values: Sequence[Value]) -> tuple[list[tuple[str, Value]]]:
    return ([(_CASES[type(value)], value) for value in values],)


async def _close(instance: Instance, handle: int) -> None:
    instance.sqlite.drop(handle)


def _error(exc: Exception) -> tuple[str, str | None] | None:
    match exc:
        case NoSuchDatabaseError():
            return "no-such-database", None
        case AccessDeniedError():
            return "access-denied", None
        case InvalidConnectionError():
            return "invalid-connection", None
        case DatabaseFullError():
            return "database-full", None
        case SqliteError():
            return "io", str(exc)
    return None


def _functions(open_: str, execute: str, close: str) -> list[Function]:
    """Return the functions by the names that a generation of guests has for them."""
    return [
        Function(open_, [STRING], Result(U32, _ERROR), _open),
        Function(execute, [U32, STRING, List(_VALUE)], Result(_RESULT, _ERROR), _execute),
        Function(close, [U32], None, _close),
    ]


_V1: Final = _functions("open", "execute", "close")
INTERFACES: Final = (
    Interface("sqlite", _V1, _error),
    Interface("fermyon:spin/sqlite", _V1, _error, CURRENT_REALLOC),
    Interface(
        "fermyon:spin/sqlite@2.0.0",
        _functions(
            "[static]connection.open", "[method]connection.execute", "[resource-drop]connection"
        ),
        _error,
        CURRENT_REALLOC,
    ),
)
