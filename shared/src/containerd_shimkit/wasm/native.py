"""Everything of this project that touches wasmtime's private bindings.

The wheel's public classes configure engines, modules and linkers. What runs for every request
calls the C API directly: the wheel's wrappers cost several times the call they wrap. Pointers are
plain ``int`` here.

Two handles on one library: through ``_SHORT`` the interpreter lock is kept, which is cheaper but
right only for calls that neither run guest code nor wait; through ``_GUEST`` it is released, so
that the epoch ticker's thread can run.

Functions marked *bare* have no argument types, which halves what a call of them costs. They are for
ctypes objects, ``bytes`` and None only: an ``int`` would be cut to 32 bits.

Checked against wasmtime 50 (``wasmtime.h``, ``wasmtime/async.h``); the version is pinned exactly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_char_p, c_size_t, c_uint8, c_void_p
from typing import Any, Final

import wasmtime
from wasmtime import _ffi as ffi

_SHORT: Final = ctypes.PyDLL(ffi.dll._name)
_GUEST: Final = ctypes.CDLL(ffi.dll._name)

FUNC_SIZE: Final = ctypes.sizeof(ffi.wasmtime_func_t)
INSTANCE_SIZE: Final = ctypes.sizeof(ffi.wasmtime_instance_t)
EXTERN_SIZE: Final = ctypes.sizeof(ffi.wasmtime_extern_t)
EXTERN_PAYLOAD: Final = ffi.wasmtime_extern_t.of.offset
VAL_SIZE: Final = ctypes.sizeof(ffi.wasmtime_val_t)
VAL_PAYLOAD: Final = ffi.wasmtime_val_t.of.offset
RAW_VAL_SIZE: Final = ctypes.sizeof(ffi.wasmtime_val_raw_t)

# Kinds of wasmtime_extern_t and wasmtime_val_t (wasmtime/extern.h, val.h).
EXTERN_FUNC: Final = 0
EXTERN_MEMORY: Final = 3
VAL_I32: Final = 0
VAL_I64: Final = 1


def _prototype(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = library[name]
    function.restype = result
    function.argtypes = list(arguments)
    return function


def _short(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    return _prototype(_SHORT, name, result, *arguments)


def _guest(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    return _prototype(_GUEST, name, result, *arguments)


def _bare(library: ctypes.CDLL, name: str, result: Any) -> Callable[..., Any]:
    """Return a function without argument types; see the module."""
    function = library[name]
    function.restype = result
    return function


# Bare: (store), (context) and so on, each a c_void_p; limits are c_int64, epochs c_uint64.
store_new = _bare(_SHORT, "wasmtime_store_new", c_void_p)
store_context = _bare(_SHORT, "wasmtime_store_context", c_void_p)
store_delete = _bare(_SHORT, "wasmtime_store_delete", None)
store_limiter = _bare(_SHORT, "wasmtime_store_limiter", None)
set_epoch_deadline = _bare(_SHORT, "wasmtime_context_set_epoch_deadline", None)
# The header declares a wasmtime_error_t* result; the function returns nothing.
yield_at_epoch = _bare(_SHORT, "wasmtime_context_epoch_deadline_async_yield_and_update", None)

increment_epoch = _short("wasmtime_engine_increment_epoch", None, c_void_p)

wasi_config_new = _short("wasi_config_new", c_void_p)
wasi_config_delete = _short("wasi_config_delete", None, c_void_p)
wasi_config_set_argv = _short("wasi_config_set_argv", c_bool, c_void_p, c_size_t, c_void_p)
wasi_config_set_env = _short("wasi_config_set_env", c_bool, c_void_p, c_size_t, c_void_p, c_void_p)
wasi_config_preopen_dir = _short(
    "wasi_config_preopen_dir", c_bool, c_void_p, c_char_p, c_char_p, c_bool
)
wasi_config_set_stdin_bytes = _short("wasi_config_set_stdin_bytes", None, c_void_p, c_void_p)
_WRITE_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_ssize_t, c_void_p, POINTER(c_uint8), c_size_t)
_FINALIZER = ctypes.CFUNCTYPE(None, c_void_p)
# Bare: (config, a WriteCallback, None, None).
wasi_config_set_stdout_custom = _bare(_SHORT, "wasi_config_set_stdout_custom", None)
wasi_config_set_stderr_custom = _bare(_SHORT, "wasi_config_set_stderr_custom", None)
# Bare: (context, config).
context_set_wasi = _bare(_SHORT, "wasmtime_context_set_wasi", c_void_p)
ByteVec = ffi.wasm_byte_vec_t
byte_vec_new = _short("wasm_byte_vec_new", None, c_void_p, c_size_t, c_char_p)

# Bare; the parameters of each are those of wasmtime's header.
instance_pre_instantiate = _bare(_GUEST, "wasmtime_instance_pre_instantiate", c_void_p)
instance_pre_instantiate_async = _bare(_SHORT, "wasmtime_instance_pre_instantiate_async", c_void_p)
instance_export_get = _bare(_SHORT, "wasmtime_instance_export_get", c_bool)
func_call = _bare(_GUEST, "wasmtime_func_call_unchecked", c_void_p)
func_call_async = _bare(_SHORT, "wasmtime_func_call_async", c_void_p)

future_poll = _guest("wasmtime_call_future_poll", c_bool, c_void_p)
# Deleting a future that is not done unwinds the fiber, which may call finalizers of ours.
future_delete = _short("wasmtime_call_future_delete", None, c_void_p)

# Bare: (context, memory).
memory_data = _bare(_SHORT, "wasmtime_memory_data", c_void_p)
memory_data_size = _bare(_SHORT, "wasmtime_memory_data_size", c_size_t)
# Bare: (context, memory, a c_uint64 of pages, a pointer to those before).
memory_grow = _bare(_SHORT, "wasmtime_memory_grow", c_void_p)

caller_context = _short("wasmtime_caller_context", c_void_p, c_void_p)
trap_new = _short("wasmtime_trap_new", c_void_p, c_char_p, c_size_t)

_error_exit_status = _short("wasmtime_error_exit_status", c_bool, c_void_p, c_void_p)
_error_message = _short("wasmtime_error_message", None, c_void_p, c_void_p)
_error_delete = _short("wasmtime_error_delete", None, c_void_p)
_trap_message = _short("wasm_trap_message", None, c_void_p, c_void_p)
_trap_code = _short("wasmtime_trap_code", c_bool, c_void_p, c_void_p)
_trap_delete = _short("wasm_trap_delete", None, c_void_p)

AsyncCallback = ctypes.CFUNCTYPE(
    None, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p, c_void_p
)
"""``(env, caller, args, nargs, results, nresults, trap_ret, continuation_ret)``."""

ContinuationCallback = ctypes.CFUNCTYPE(c_bool, c_void_p)
Finalizer = _FINALIZER
WriteCallback = _WRITE_CALLBACK

_linker_define_async_func = _short(
    "wasmtime_linker_define_async_func",
    c_void_p,
    *(c_void_p, c_char_p, c_size_t, c_char_p, c_size_t, c_void_p, AsyncCallback, c_void_p),
    c_void_p,
)


class Continuation(ctypes.Structure):
    """``wasmtime_async_continuation_t``: how wasmtime asks whether a host call is done."""

    _fields_ = (("callback", ContinuationCallback), ("env", c_void_p), ("finalizer", Finalizer))


class GuestError(Exception):
    """Base of what ends a guest call early."""


class GuestTrap(GuestError):
    """The guest trapped; ``code`` is wasmtime's trap code or None for a trap made by the host."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


class GuestExit(GuestError):
    """The guest called ``proc_exit``."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the guest exited with status {status}")
        self.status = status


def address(obj: Any) -> int:
    """Return the C pointer owned by an object of the wheel (Engine, Linker, InstancePre …)."""
    value = ctypes.cast(obj.ptr(), c_void_p).value
    assert value is not None
    return value


def is_same_type(one: wasmtime.ValType, other: wasmtime.ValType) -> bool:
    """Whether two types of values are the same, whatever they are."""
    return ffi.wasmtime_wasm_valtype_equal(one.ptr(), other.ptr())


def _take_text(fill: Callable[..., Any], owner: int) -> str:
    vector = ffi.wasm_byte_vec_t()
    fill(owner, ctypes.byref(vector))
    text = ctypes.string_at(vector.data, vector.size).decode(errors="replace")
    ffi.wasm_byte_vec_delete(ctypes.byref(vector))
    return text.rstrip("\0")


def raise_failure(error: int | None, trap: int | None) -> None:
    """Raise what a call reported as ``wasmtime_error_t*`` or ``wasm_trap_t*``, and free it.

    Raises GuestExit for ``proc_exit``, GuestTrap for the rest; returns if both are null.
    """
    if error:
        status = ctypes.c_int()
        exited = _error_exit_status(error, ctypes.byref(status))
        message = "" if exited else _take_text(_error_message, error)
        _error_delete(error)
        raise GuestExit(status.value) if exited else GuestTrap(message, None)
    if trap:
        code = c_uint8()
        known = _trap_code(trap, ctypes.byref(code))
        message = _take_text(_trap_message, trap)
        _trap_delete(trap)
        raise GuestTrap(message, code.value if known else None)


def define_async_func(
    linker: wasmtime.Linker,
    module: str,
    name: str,
    type_: wasmtime.FuncType,
    callback: Any,
) -> None:
    """Define an import whose host side may suspend. ``callback`` must outlive the linker."""
    module_bytes, name_bytes = module.encode(), name.encode()
    error = _linker_define_async_func(
        address(linker),
        *(module_bytes, len(module_bytes), name_bytes, len(name_bytes)),
        *(address(type_), callback, None, None),
    )
    raise_failure(error, None)


POOL_SETTINGS: Final = (
    "total_core_instances",
    "total_memories",
    "total_tables",
    "total_stacks",
    "max_memory_size",
    "max_memories_per_module",
    "max_tables_per_module",
    "table_elements",
    "max_core_instance_size",
    "linear_memory_keep_resident",
    "table_keep_resident",
    "async_stack_keep_resident",
    "max_unused_warm_slots",
)


def use_pooling_allocator(config: wasmtime.Config, settings: dict[str, int]) -> None:
    """Make ``config`` allocate instances from a pool; ``settings``: by names in POOL_SETTINGS."""
    pool = ffi.wasmtime_pooling_allocation_config_new()
    for name, value in settings.items():
        assert name in POOL_SETTINGS, name
        getattr(ffi, f"wasmtime_pooling_allocation_config_{name}_set")(pool, value)
    ffi.wasmtime_pooling_allocation_strategy_set(config.ptr(), pool)
    ffi.wasmtime_pooling_allocation_config_delete(pool)


def set_async_stack_size(config: wasmtime.Config, size_bytes: int) -> None:
    """Set the size of each fiber's stack; it must exceed the wasm stack's limit (512 KiB)."""
    ffi.wasmtime_config_async_stack_size_set(config.ptr(), size_bytes)
