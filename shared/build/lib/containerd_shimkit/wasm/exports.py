"""What a module exports, as far as a host needs to know it before it calls anything."""

from __future__ import annotations

from typing import Any, TypeAlias

import wasmtime

from containerd_shimkit.errors import ModuleError

FunctionType: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""Types of parameters and results."""
Exports: TypeAlias = dict[str, FunctionType | None]
"""Types of exported functions by name; None for what is no function."""


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


def export_fault(exports: Exports, function: str, type_: FunctionType) -> str | None:
    """Return what keeps a function from being called as one of this type, None if nothing does."""
    actual = exports.get(function)
    if actual is None:
        return f"exports no function {function!r}"
    if actual != type_:
        return f"function {function!r} has type {_described(actual)}, not {_described(type_)}"
    return None


def check_memory(exports: Exports, name: str) -> None:
    """Raise ModuleError unless a module exports its memory. name: what messages call it."""
    if "memory" not in exports:
        raise ModuleError(f"{name}: exports no memory named 'memory'")


def _function_type(type_: Any) -> FunctionType | None:
    if not isinstance(type_, wasmtime.FuncType):
        return None
    return tuple(map(str, type_.params)), tuple(map(str, type_.results))


def _described(type_: FunctionType) -> str:
    return f"({', '.join(type_[0])}) -> ({', '.join(type_[1])})"
