"""What modules export, read before anything is called."""

from __future__ import annotations

import pytest
import wasmtime

from containerd_shimkit.errors import ModuleError
from containerd_shimkit.wasm.exports import Exports, check_memory, export_fault, read_exports


def module(text: str) -> wasmtime.Module:
    return wasmtime.Module(wasmtime.Engine(), text)


def test_functions_and_memory() -> None:
    exports = read_exports(
        module(
            """(module (memory (export "memory") 1) (global (export "g") i32 (i32.const 0))
            (func (export "run") (param i32 i64) (result i32) (i32.const 0)))"""
        )
    )
    assert exports == {"memory": None, "g": None, "run": (("i32", "i64"), ("i32",))}
    check_memory(exports, "app")


@pytest.mark.parametrize("type_", ["v128", "externref", "funcref"])
def test_types_that_the_host_has_no_values_of(type_: str) -> None:
    """wasmtime would end the process if asked which these are."""
    exports = read_exports(
        module(
            f"""(module (func (export "give") (param f64 {type_} f32) (unreachable))
            (func (export "take") (result {type_}) (unreachable)))"""
        )
    )
    assert exports == {"give": (("f64", "other", "f32"), ()), "take": ((), ("other",))}


def test_a_memory_that_is_none() -> None:
    exports = read_exports(module('(module (func (export "memory")))'))
    with pytest.raises(ModuleError, match="app: exports no memory named 'memory'"):
        check_memory(exports, "app")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("run", None),
        ("other", "exports no function 'other'"),
        ("g", "exports no function 'g'"),
        ("walk", "function 'walk' has type () -> (), not (i32) -> (i32)"),
    ],
)
def test_fault_of_a_function(name: str, fault: str | None) -> None:
    exports: Exports = {"run": (("i32",), ("i32",)), "walk": ((), ()), "g": None}
    assert export_fault(exports, name, (("i32",), ("i32",))) == fault
