"""A module whose memory is another one's after it was initialised."""

from __future__ import annotations

from typing import Any

import pytest
import wasmtime

import snapshot

MODULE = """
(module
  (global $stack (mut i32) (i32.const 65536))
  (memory (export "memory") 2)
  (table 1 funcref)
  (elem (i32.const 0) $read)
  (data (i32.const 65540) "old")
  (func $read (export "read") (param i32) (result i32) (i32.load8_u (local.get 0)))
  (func (export "allocate") (param i32) (result i32) (i32.const 70000))
  (func (export "prepare") (param i32 i32) (result i32)
    (i32.store8 (i32.const 70100) (local.get 1))
    (i32.eqz (local.get 1)))
  (func (export "_initialize")
    (global.set $stack (i32.const 65520))
    (i32.store8 (i32.const 65530) (i32.const 1))
    (i32.store8 (i32.const 65540) (i32.const 78))
    (i32.store8 (i32.const 131071) (i32.const 7))
    (drop (memory.grow (i32.const 1)))
    (i32.store8 (i32.const 190000) (i32.const 9))
    (global.set $stack (i32.const 65536))))
"""


def exports_of(wasm: bytes) -> tuple[wasmtime.Store, Any]:
    store = wasmtime.Store()
    module = wasmtime.Module(store.engine, wasm)
    return store, wasmtime.Instance(store, module, []).exports(store)


def test_memory_is_there_from_the_start() -> None:
    wasm = bytes(wasmtime.wat2wasm(MODULE))
    store, exports = exports_of(snapshot.rewrite(wasm, snapshot.run(wasm, b"abc")))
    memory = exports["memory"]
    assert memory.size(store) == 3
    assert memory.read(store, 65540, 65543) == b"Nld"
    assert [exports["read"](store, place) for place in (131071, 190000, 70100)] == [7, 9, 3]
    assert memory.read(store, 70000, 70003) == b"abc"
    assert exports["read"](store, 65530) == 0, "what is below the stack pointer is dead"


def test_zeros_take_no_place() -> None:
    wasm = bytes(wasmtime.wat2wasm(MODULE))
    assert len(snapshot.rewrite(wasm, snapshot.run(wasm, None))) < len(wasm) + 100


def test_prepare_that_fails_is_an_error() -> None:
    wasm = bytes(wasmtime.wat2wasm(MODULE))
    with pytest.raises(RuntimeError, match="prepare failed"):
        snapshot.run(wasm, b"")
