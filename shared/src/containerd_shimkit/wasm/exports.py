"""What a module exports, as far as a host needs to know it before it calls anything."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import wasmtime

from containerd_shimkit.errors import ModuleError
from containerd_shimkit.wasm.native import is_same_type

FunctionType: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""Types of parameters and results: of numbers their names, of anything else ``other``."""
Exports: TypeAlias = dict[str, FunctionType | None]
"""Types of exported functions by name; None for what is no function."""

_TYPES: Final = {
    "i32": wasmtime.ValType.i32(),
    "i64": wasmtime.ValType.i64(),
    "f32": wasmtime.ValType.f32(),
    "f64": wasmtime.ValType.f64(),
}


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
    return tuple(map(_value_type, type_.params)), tuple(map(_value_type, type_.results))


def _value_type(type_: wasmtime.ValType) -> str:
    # Asking what kind of type it is ends the process if that is none of WebAssembly 1.0.
    return next((name for name, known in _TYPES.items() if is_same_type(type_, known)), "other")


def _described(type_: FunctionType) -> str:
    return f"({', '.join(type_[0])}) -> ({', '.join(type_[1])})"
