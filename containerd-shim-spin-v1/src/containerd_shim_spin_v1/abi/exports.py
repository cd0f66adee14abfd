"""What a module has to export to be called by a trigger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import wasmtime

from containerd_shimkit.errors import ModuleError

FunctionType: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""Types of parameters and results."""
Exports: TypeAlias = dict[str, FunctionType | None]
"""Types of exported functions by name; None for what is no function."""

_REALLOC_TYPE: Final[FunctionType] = (("i32",) * 4, ("i32",))


@dataclass(frozen=True, slots=True)
class Handler:
    """An exported function that a trigger calls, and the allocator for its arguments."""

    function: bytes
    realloc: bytes
    type: FunctionType


def read_exports(module: wasmtime.Module) -> Exports:
    """Return what a module exports, a ``memory`` only if it is one."""
    exports = {export.name: _function_type(export.type) for export in module.exports}
    # Whatever else had this name would be read as a memory, which ends the process.
    if not any(
        export.name == "memory" and isinstance(export.type, wasmtime.MemoryType)
        for export in module.exports
    ):
        exports.pop("memory", None)
    return exports


def find_handler(exports: Exports, handlers: Sequence[Handler], trigger: str, name: str) -> Handler:
    """Return which of ``handlers`` a module has; the first is what messages ask for.

    trigger: for messages, as ``HTTP``.  name: what messages call the module.  Raises ModuleError.
    """
    found = next((h for h in handlers if exports.get(h.function.decode())), handlers[0])
    for function, type_ in ((found.function, found.type), (found.realloc, _REALLOC_TYPE)):
        if (actual := exports.get(function.decode())) is None:
            hint = ""
            if trigger == "HTTP":
                hint = ' (a program with a main function wants executor = { type = "wagi" })'
            raise ModuleError(
                f"{name}: exports no function {function.decode()!r}: it is no Spin {trigger} "
                f"component{hint}"
            )
        if actual != type_:
            raise ModuleError(
                f"{name}: function {function.decode()!r} has type {_described(actual)}, "
                f"not {_described(type_)}"
            )
    _check_memory(exports, name)
    return found


def check_command(exports: Exports, entrypoint: str, what: str, name: str) -> None:
    """Raise ModuleError unless a module has a function to be run as a program.

    what: of the manifest, for messages, as ``the wagi entrypoint``.
    """
    if entrypoint not in exports:
        raise ModuleError(f"{name}: exports no function {entrypoint!r}, {what}")
    if exports[entrypoint] != ((), ()):
        raise ModuleError(f"{name}: {what} {entrypoint!r} takes or returns values")
    _check_memory(exports, name)


def _check_memory(exports: Exports, name: str) -> None:
    if "memory" not in exports:
        raise ModuleError(f"{name}: exports no memory named 'memory'")


def _function_type(type_: Any) -> FunctionType | None:
    if not isinstance(type_, wasmtime.FuncType):
        return None
    return tuple(map(str, type_.params)), tuple(map(str, type_.results))


def _described(type_: FunctionType) -> str:
    return f"({', '.join(type_[0])}) -> ({', '.join(type_[1])})"
