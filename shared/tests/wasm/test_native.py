"""The C structures and failures as the installed wasmtime has them."""

from __future__ import annotations

import ctypes

import pytest
from wasmtime import _bindings as bindings
from wasmtime import _ffi, _trap

from containerd_shimkit.testing.guests import GuestHost
from containerd_shimkit.wasm import engine, native
from containerd_shimkit.wasm.native import GuestExit, GuestTrap


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (native.FUNC_SIZE, bindings.wasmtime_func_t),
        (native.INSTANCE_SIZE, bindings.wasmtime_instance_t),
        (native.EXTERN_SIZE, bindings.wasmtime_extern_t),
        (native.VAL_SIZE, bindings.wasmtime_val_t),
        (native.RAW_VAL_SIZE, bindings.wasmtime_val_raw_t),
    ],
)
def test_sizes_are_those_of_the_bindings(ours: int, theirs: type[ctypes.Structure]) -> None:
    assert ours == ctypes.sizeof(theirs)


def test_payloads_follow_the_kind() -> None:
    assert bindings.wasmtime_extern_t.of.offset == native.EXTERN_PAYLOAD == 8
    assert bindings.wasmtime_val_t.of.offset == native.VAL_PAYLOAD == 8
    assert native.RAW_VAL_SIZE == 16


def test_kinds_are_those_of_the_bindings() -> None:
    assert _ffi.WASMTIME_EXTERN_FUNC.value == native.EXTERN_FUNC
    assert _ffi.WASMTIME_EXTERN_MEMORY.value == native.EXTERN_MEMORY
    assert _ffi.WASMTIME_I32.value == native.VAL_I32
    assert _ffi.WASMTIME_I64.value == native.VAL_I64


def test_continuation_is_that_of_the_bindings() -> None:
    theirs = bindings.wasmtime_async_continuation_t
    assert ctypes.sizeof(native.Continuation) == ctypes.sizeof(theirs)
    for name in ("callback", "env", "finalizer"):
        assert getattr(native.Continuation, name).offset == getattr(theirs, name).offset


def test_every_pool_setting_exists() -> None:
    for name in native.POOL_SETTINGS:
        assert hasattr(bindings, f"wasmtime_pooling_allocation_config_{name}_set"), name


def test_fingerprint_names_the_version() -> None:
    assert engine.WASMTIME_VERSION in engine.COMPILER_FINGERPRINT


def test_no_failure_raises_nothing() -> None:
    native.raise_failure(None, None)
    native.raise_failure(0, 0)


def test_trap_of_the_host_has_its_message_and_no_code() -> None:
    trap = native.trap_new(b"out of \xc3\xa4", 9)
    with pytest.raises(GuestTrap, match="out of ä") as caught:
        native.raise_failure(None, trap)
    assert caught.value.code is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("unreachable", _trap.TrapCode.UNREACHABLE),
        ("(drop (i32.load (i32.const 0x7fffffff)))", _trap.TrapCode.MEMORY_OUT_OF_BOUNDS),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", _trap.TrapCode.INTEGER_DIVISION_BY_ZERO),
        ("(drop (i32.trunc_f32_s (f32.const nan)))", _trap.TrapCode.BAD_CONVERSION_TO_INTEGER),
        (
            "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))",
            _trap.TrapCode.INTEGER_OVERFLOW,
        ),
    ],
)
def test_guest_traps_have_their_code(host: GuestHost, body: str, code: _trap.TrapCode) -> None:
    text = (
        f'(module (memory (export "memory") 1) (func (export "f") (result i32) {body} i32.const 0))'
    )
    with host.guest(host.template(text)) as guest, pytest.raises(GuestTrap) as caught:
        guest.call_short(guest.export(b"f"))
    assert caught.value.code == code.value
    assert "wasm trap" in str(caught.value)


@pytest.mark.parametrize("status", [0, 1, 125])
def test_proc_exit_is_no_trap(host: GuestHost, status: int) -> None:
    text = """(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") 1)
      (func (export "f") (param i32) (result i32) (call $exit (local.get 0)) unreachable))"""
    with host.guest(host.template(text)) as guest, pytest.raises(GuestExit) as caught:
        guest.call_short(guest.export(b"f"), status)
    assert caught.value.status == status
