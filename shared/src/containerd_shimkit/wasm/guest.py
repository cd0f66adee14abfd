"""A guest: one instance of a module in a store of its own, called as a fiber of the event loop.

Order of a guest's life: create, look up exports, short calls, ``call``, read results, close.

- ``call_short`` runs to the end on the loop's thread. It is for allocators and the like; a guest
  that takes longer than ``SHORT_CALL_TICKS``, or waits in an import, traps. The same holds for a
  module's start function.
- ``call`` is awaited. The guest yields to the loop at every epoch tick, and is suspended while an
  asynchronous import waits. Cancelling the awaiting task drops the fiber. Only ``close`` may
  follow a cancelled call.
"""

from __future__ import annotations

import asyncio
import ctypes
import struct
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from ctypes import byref
from functools import cache
from typing import Any, Final

import wasmtime

from containerd_shimkit.wasm import native
from containerd_shimkit.wasm.engine import Ticker
from containerd_shimkit.wasm.native import GuestTrap

SHORT_CALL_TICKS: Final = 20  # 0.2 s
_MAX_ARGUMENTS: Final = 16

_Extern = ctypes.c_uint8 * native.EXTERN_SIZE
_Val = ctypes.c_uint8 * native.VAL_SIZE
# A raw value is 16 bytes: as 64-bit words, argument n is word 2n.
_RAW_WORDS: Final = native.RAW_VAL_SIZE // 8
_Raws = ctypes.c_int64 * (_RAW_WORDS * _MAX_ARGUMENTS)

_U32_MASK: Final = 0xFFFF_FFFF

# As large as a 32-bit memory can be. A view of it is made without asking how large the memory is,
# which every access through it therefore checks first.
_WholeMemory = ctypes.c_uint8 * (1 << 32)

_guests: dict[int, Guest] = {}
"""Running guests by the address of their store's context: how an import finds its caller."""


class GuestMemoryError(native.GuestError):
    """The guest named memory that it does not have."""


class GuestTemplate:
    """A module linked and ready to be instantiated; shared by all requests of a component."""

    def __init__(
        self,
        engine: wasmtime.Engine,
        linker: wasmtime.Linker,
        module: wasmtime.Module,
        imports: AsyncImports,
    ) -> None:
        self._keep = (engine, linker, module, imports)
        self._pre = linker.instantiate_pre(module)
        self.engine = native.address(engine)
        self.pre = native.address(self._pre)
        # An asynchronous import called from outside a fiber aborts the whole process. Guests that
        # have one get a fiber for each call; the others are spared its cost.
        self.may_suspend = any((i.module, i.name) in imports.names for i in module.imports)


class Guest:
    """One instance; a context manager that frees it."""

    __slots__ = (
        "_instance",
        "_memory",
        "_raws",
        "_store",
        "_template",
        "_ticker",
        "_trap",
        "_waiting",
        "clock_origin_ns",
        "context",
    )

    def __init__(
        self, template: GuestTemplate, ticker: Ticker, *, wasi_config: int, max_memory_bytes: int
    ) -> None:
        """Instantiate. ``wasi_config`` is owned by the guest from here on.

        Raises GuestTrap if the start function traps or the pool has no slot left.
        """
        self._template = template
        self._ticker = ticker
        self._waiting: asyncio.Future[Any] | None = None
        self._memory: Any = None
        self._raws = _Raws()
        self._trap = ctypes.c_void_p()
        self._instance = (ctypes.c_uint8 * native.INSTANCE_SIZE)()
        self._store = native.store_new(template.engine, None, None)
        self.context: int = native.store_context(self._store)
        _guests[self.context] = self
        try:
            native.store_limiter(self._store, max_memory_bytes, -1, -1, -1, -1)
            native.set_epoch_deadline(self.context, SHORT_CALL_TICKS)
            native.raise_failure(native.context_set_wasi(self.context, wasi_config), None)
            # wasmtime counts the guest's monotonic clock from about here.
            self.clock_origin_ns = time.monotonic_ns()
            ticker.note_call()
            self._instantiate()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the store and everything in it."""
        if self._store:
            _guests.pop(self.context, None)
            native.store_delete(self._store)
            self._store = 0

    def _instantiate(self) -> None:
        into = (self._template.pre, self.context, byref(self._instance), byref(self._trap))
        if self._template.may_suspend:
            error = ctypes.c_void_p()
            future = native.instance_pre_instantiate_async(*into, byref(error))
            self._finish_now(future, error)
        else:
            self._check(native.instance_pre_instantiate(*into))

    def export(self, name: bytes) -> Any:
        """Return the export ``name`` as an opaque handle for the calls below, or None."""
        extern = _Extern()
        found = native.instance_export_get(
            self.context, byref(self._instance), name, len(name), byref(extern)
        )
        return extern if found else None

    # Calls

    def call_short(self, function: Any, *arguments: int) -> int:
        """Call an exported function of i32 parameters that returns an i32; see the module.

        Raises GuestTrap, GuestExit.
        """
        if self._template.may_suspend:
            result, error = _Val(), ctypes.c_void_p()
            future = self._start_call(function, arguments, result, 1, error)
            self._finish_now(future, error)
            return ctypes.c_uint32.from_buffer(result, native.VAL_PAYLOAD).value
        self._ticker.note_call()
        raws = self._raws
        index = 0
        for value in arguments:
            raws[index] = value
            index += _RAW_WORDS
        failure = native.func_call(
            self.context,
            byref(function, native.EXTERN_PAYLOAD),
            raws,
            _MAX_ARGUMENTS,
            byref(self._trap),
        )
        if failure or self._trap.value:
            self._check(failure)
        return raws[0] & _U32_MASK

    def allocate(self, realloc: Any, requests: Iterable[tuple[int, int]]) -> list[int]:
        """Return a pointer for each (alignment, size) from ``realloc(0, 0, alignment, size)``.

        What ``call_short`` would do, without its cost for each of many: a request has some twenty.
        Raises GuestTrap, GuestExit.
        """
        if self._template.may_suspend:
            return [self.call_short(realloc, 0, 0, align, size) for align, size in requests]
        self._ticker.note_call()
        func_call, context, raws = native.func_call, self.context, self._raws
        function, trap = byref(realloc, native.EXTERN_PAYLOAD), byref(self._trap)
        pointers = []
        raws[_RAW_WORDS] = 0
        for align, size in requests:
            raws[0] = 0  # the result of the call before
            raws[_RAW_WORDS * 2] = align
            raws[_RAW_WORDS * 3] = size
            failure = func_call(context, function, raws, _MAX_ARGUMENTS, trap)
            if failure or self._trap.value:
                self._check(failure)
            pointers.append(raws[0] & _U32_MASK)
        return pointers

    async def call(self, function: Any, *arguments: int, results: int = 1) -> int:
        """Call an exported function of i32 parameters and zero or one i32 ``results``.

        Raises GuestTrap, GuestExit.
        """
        native.yield_at_epoch(self.context, 1)
        native.set_epoch_deadline(self.context, 1)
        result, error = _Val(), ctypes.c_void_p()
        future = self._start_call(function, arguments, result, results, error)
        try:
            while True:
                self._ticker.note_call()
                if native.future_poll(future):
                    break
                await self._resumable()
        finally:
            native.future_delete(future)
        if error.value or self._trap.value:
            self._check(error.value)
        return ctypes.c_uint32.from_buffer(result, native.VAL_PAYLOAD).value if results else 0

    def _start_call(
        self,
        function: Any,
        arguments: tuple[int, ...],
        result: Any,
        results: int,
        error: ctypes.c_void_p,
    ) -> int:
        """Return a future of the call. wasmtime copies the arguments, keeps the other pointers."""
        values = _packer(len(arguments)).pack(*arguments)
        return native.func_call_async(  # type: ignore[no-any-return]
            self.context,
            byref(function, native.EXTERN_PAYLOAD),
            *(values, len(arguments), result, results, byref(self._trap), byref(error)),
        )

    def _finish_now(self, future: int, error: ctypes.c_void_p) -> None:
        """Run a future that has no business waiting."""
        done = native.future_poll(future)
        native.future_delete(future)
        if not done:
            self._waiting = None
            raise GuestTrap("the guest waits where it must not: in its allocator or start", None)
        self._check(error.value)

    async def _resumable(self) -> None:
        """Return when it makes sense to run the guest again."""
        waiting = self._waiting
        if waiting is None:  # its time slice is over
            await asyncio.sleep(0)
            return
        self._waiting = None
        try:
            await asyncio.wait((waiting,))
        except asyncio.CancelledError:
            waiting.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await waiting
            raise

    def suspend_until(self, waiting: asyncio.Future[Any]) -> None:
        """Called by an import, during a poll: the guest goes on when ``waiting`` is done."""
        self._waiting = waiting

    def _check(self, error: int | None) -> None:
        trap, self._trap.value = self._trap.value, None
        native.raise_failure(error, trap)

    # Memory. The guest's pointers and lengths are hostile: every access is checked against the
    # present size.

    def use_memory(self, memory: Any) -> None:
        """Set which exported memory ``memory``, ``read`` and ``write`` mean."""
        self._memory = memory

    def memory(self) -> memoryview:
        """Return the guest's memory as it is now. Not to be used once the guest has run again."""
        memory = byref(self._memory, native.EXTERN_PAYLOAD)
        size = native.memory_data_size(self.context, memory)
        whole = _WholeMemory.from_address(native.memory_data(self.context, memory))
        return memoryview(whole).cast("B")[:size]

    def read(self, pointer: int, length: int) -> bytes:
        """Copy ``length`` bytes out. Raises GuestMemoryError beyond the end."""
        return take(self.memory(), pointer, length)

    def write(self, pointer: int, data: bytes) -> None:
        """Copy ``data`` in. Raises GuestMemoryError beyond the end."""
        put(self.memory(), pointer, data)


def take(memory: memoryview, pointer: int, length: int) -> bytes:
    """Copy ``length`` bytes out of a guest's memory. Raises GuestMemoryError beyond its end."""
    data = memory[pointer : pointer + length].tobytes() if pointer >= 0 else b""
    if len(data) != length:
        raise _beyond(memory, pointer, length)
    return data


def put(memory: memoryview, pointer: int, data: bytes) -> None:
    """Copy ``data`` into a guest's memory. Raises GuestMemoryError beyond its end."""
    end = pointer + len(data)
    if pointer < 0 or end > len(memory):
        raise _beyond(memory, pointer, len(data))
    memory[pointer:end] = data


def _beyond(memory: memoryview, pointer: int, length: int) -> GuestMemoryError:
    return GuestMemoryError(
        f"the guest named {length} bytes at {pointer:#x}; its memory ends at {len(memory):#x}"
    )


@cache
def _packer(count: int) -> struct.Struct:
    """Return what makes ``count`` wasmtime_val_t of u32 values; kind 0 is i32."""
    assert native.VAL_I32 == 0
    rest = native.VAL_SIZE - native.VAL_PAYLOAD - 4
    return struct.Struct("<" + f"{native.VAL_PAYLOAD}xI{rest}x" * count)


# Asynchronous imports

AsyncImport = Callable[..., Coroutine[Any, Any, int]]
"""``async def f(guest, *arguments) -> int``: arguments as unsigned integers, one i32 result."""


class _PendingImport:
    """A host call under way: what wasmtime's continuation asks for."""

    __slots__ = ("results", "task", "trap_return")

    def __init__(self, task: asyncio.Task[int], results: int, trap_return: int) -> None:
        self.task = task
        self.results = results
        self.trap_return = trap_return


_pending: dict[int, _PendingImport] = {}


def _set_trap(trap_return: int, message: str) -> None:
    data = message.encode(errors="replace")
    ctypes.c_void_p.from_address(trap_return).value = native.trap_new(data, len(data))


def _poll_import(token: int) -> bool:
    """wasmtime asks, on the guest's fiber: is the host call done? Then its result is stored."""
    pending = _pending[token]
    if not pending.task.done():
        return False
    try:
        value = pending.task.result() & _U32_MASK
    except asyncio.CancelledError:
        _set_trap(pending.trap_return, "the host call was cancelled")
    except Exception as exc:
        _set_trap(pending.trap_return, f"the host call failed: {exc}")
    else:
        ctypes.c_uint8.from_address(pending.results).value = native.VAL_I32
        payload = ctypes.c_uint32.from_address(pending.results + native.VAL_PAYLOAD)
        payload.value = value
    return True


def _finish_import(token: int) -> None:
    pending = _pending.pop(token)
    if not pending.task.done():
        pending.task.cancel()


_poll_callback = native.ContinuationCallback(_poll_import)
_finish_callback = native.Finalizer(_finish_import)


class AsyncImports:
    """Defines asynchronous imports in a linker and keeps their C callbacks alive."""

    def __init__(self, linker: wasmtime.Linker) -> None:
        self._linker = linker
        self._keep: list[Any] = []
        self.names: set[tuple[str, str | None]] = set()
        """Module and name of every import defined here."""

    def define(self, module: str, name: str, parameters: str, implementation: AsyncImport) -> None:
        """Define an import; ``parameters``: a letter each, ``i`` i32, ``l`` i64; result i32."""
        kinds = {"i": wasmtime.ValType.i32, "l": wasmtime.ValType.i64}
        type_ = wasmtime.FuncType([kinds[p]() for p in parameters], [wasmtime.ValType.i32()])
        callback = native.AsyncCallback(_entry(implementation, parameters))
        self._keep.append(callback)
        self.names.add((module, name))
        native.define_async_func(self._linker, module, name, type_, callback)


def _entry(implementation: AsyncImport, parameters: str) -> Callable[..., None]:
    """Return what wasmtime calls on the guest's fiber when it calls the import."""
    types = [ctypes.c_uint32 if p == "i" else ctypes.c_uint64 for p in parameters]

    def enter(
        _env: int,
        caller: int,
        arguments: int,
        _argument_count: int,
        results: int,
        _result_count: int,
        trap_return: int,
        continuation_return: int,
    ) -> None:
        guest = _guests[native.caller_context(caller)]
        values = [
            kind.from_address(arguments + index * native.VAL_SIZE + native.VAL_PAYLOAD).value
            for index, kind in enumerate(types)
        ]
        task = asyncio.get_running_loop().create_task(implementation(guest, *values))
        guest.suspend_until(task)
        # The task lives as long as the entry, so its address is a token nobody else has.
        token = id(task)
        _pending[token] = _PendingImport(task, results, trap_return)
        continuation = native.Continuation.from_address(continuation_return)
        continuation.callback = _poll_callback
        continuation.env = token
        continuation.finalizer = _finish_callback

    return enter


__all__ = ["AsyncImports", "Guest", "GuestMemoryError", "GuestTemplate", "GuestTrap"]
