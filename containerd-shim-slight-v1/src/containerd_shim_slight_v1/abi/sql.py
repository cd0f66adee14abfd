"""``sql``, which came with SpiderLightning 0.3.

Source: SpiderLightning 0.5 wit/sql.wit.
"""

from __future__ import annotations

from typing import Final

from containerd_shim_slight_v1.abi.imports import Function, Interface, error_of
from containerd_shim_slight_v1.capabilities.errors import TooManyHandlesError
from containerd_shim_slight_v1.capabilities.instance import Instance
from containerd_shim_slight_v1.capabilities.sql.base import Field, OpenDatabase, SqlError, Statement
from containerd_shim_slight_v1.slightfile.resources import SQL
from containerd_shimkit.wasm.canonical import (
    BOOL,
    BYTES,
    F64,
    S32,
    S64,
    STRING,
    U32,
    U64,
    AbiError,
    List,
    Record,
    Result,
    Variant,
)

_ERROR: Final = Variant(
    syntax_error=STRING,
    constraint_violation=STRING,
    access_violation=STRING,
    unexpected_error=STRING,
)
_DATA: Final = Variant(
    int32=S32,
    int64=S64,
    uint32=U32,
    uint64=U64,
    float=F64,
    double=F64,
    str=STRING,
    boolean=BOOL,
    date=STRING,
    time=STRING,
    timestamp=STRING,
    binary=BYTES,
    null=None,
)


async def _open(instance: Instance, name: str) -> int:
    return instance.handles.add(OpenDatabase(instance.services.backend(SQL, name)))


async def _query(instance: Instance, handle: int, statement: int) -> list[Field]:
    database = instance.handles.get(handle, OpenDatabase)
    return await database.backend.query(instance.handles.get(statement, Statement))


async def _exec(instance: Instance, handle: int, statement: int) -> None:
    database = instance.handles.get(handle, OpenDatabase)
    await database.backend.execute(instance.handles.get(statement, Statement))


async def _prepare(instance: Instance, text: str, parameters: list[str]) -> int:
    try:
        return instance.handles.add(Statement(text, tuple(parameters)), text, *parameters)
    except TooManyHandlesError as exc:  # there is no other way to say it
        raise AbiError(str(exc)) from None


RESOURCES: Final = ("sql", "statement")
INTERFACES: Final = (
    Interface(
        "sql",
        [
            Function("sql::open", [STRING], Result(U32, _ERROR), _open),
            Function("sql::query", [U32, U32], Result(List(Record(STRING, _DATA)), _ERROR), _query),
            Function("sql::exec", [U32, U32], Result(None, _ERROR), _exec),
            Function("statement::prepare", [STRING, List(STRING)], U32, _prepare),
        ],
        error_of(SqlError),
    ),
)
