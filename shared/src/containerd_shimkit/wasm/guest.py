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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from ctypes import byref, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from typing import Any, Final, Protocol

import wasmtime

from containerd_shimkit.errors import ModuleError
from containerd_shimkit.wasm import native
from containerd_shimkit.wasm.engine import Ticker
from containerd_shimkit.wasm.native import GuestTrap

SHORT_CALL_TICKS: Final = 20  # 0.2 s
_MAX_ARGUMENTS: Final = 16
_WASM_PAGE_BYTES: Final = 64 << 10
_NO_LIMIT_BYTES: Final = 4 << 30  # no memory, 32-bit and of the pool, is ever larger

_Extern = ctypes.c_uint8 * native.EXTERN_SIZE
_Val = ctypes.c_uint8 * native.VAL_SIZE
_Instance = ctypes.c_uint8 * native.INSTANCE_SIZE
# A raw value is 16 bytes: as 64-bit words, argument n is word 2n.
_RAW_WORDS: Final = native.RAW_VAL_SIZE // 8
_Raws = ctypes.c_int64 * (_RAW_WORDS * _MAX_ARGUMENTS)

_U32_MASK: Final = 0xFFFF_FFFF

# Arguments of bare functions.
_RAW_COUNT: Final = c_size_t(_MAX_ARGUMENTS)
_ONE_TICK: Final = c_uint64(1)
_SHORT_TICKS: Final = c_uint64(SHORT_CALL_TICKS)
_UNLIMITED: Final = c_int64(-1)

# As large as a 32-bit memory can be. A view of it is made without asking how large the memory is,
# which every access through it therefore checks first.
_WholeMemory = ctypes.c_uint8 * (1 << 32)

_whole_memories: dict[int, memoryview] = {}
"""By address. A pool's slots lie where they lie, so there are no more than it has slots."""

_guests: dict[int, Guest] = {}
"""Running guests by the address of their store's context."""


def guest_of(context: int) -> Guest:
    """Return the running guest of a store's context: how an import finds its caller."""
    return _guests[context]


class GuestMemoryError(native.GuestError):
    """The guest named memory that it does not have."""


class _Frame:
    """What C reads and writes for one guest at a time.

    Used again by later guests: making ctypes objects costs as much as the calls they are for.
    """

    __slots__ = (
        "context",
        "error",
        "error_ref",
        "exports",
        "instance",
        "raws",
        "result",
        "store",
        "trap",
        "trap_ref",
    )

    def __init__(self) -> None:
        self.store, self.context = c_void_p(), c_void_p()
        self.instance, self.raws, self.result = _Instance(), _Raws(), _Val()
        self.trap, self.error = c_void_p(), c_void_p()
        self.trap_ref, self.error_ref = byref(self.trap), byref(self.error)
        self.exports: dict[bytes, tuple[Any, ...]] = {}
        """By name: arguments that look an export up, and the handle of what was found."""

    def export(self, name: bytes) -> tuple[Any, ...]:
        extern = _Extern()
        lookup = (self.context, self.instance, name, c_size_t(len(name)), extern)
        entry = self.exports[name] = (*lookup, byref(extern, native.EXTERN_PAYLOAD))
        return entry

    def kind(self, name: bytes) -> int:
        """Return what an export is that has just been looked up."""
        *_, extern, _handle = self.exports[name]
        return extern[0]  # type: ignore[no-any-return]


class Waiting(Protocol):
    """The imports of a linker that may wait; see ``imports.AsyncImports``."""

    names: set[tuple[str, str | None]]
    """Module and name of each."""


class GuestTemplate:
    """A module linked and ready to be instantiated; shared by all requests of a component."""

    def __init__(
        self,
        engine: wasmtime.Engine,
        linker: wasmtime.Linker,
        module: wasmtime.Module,
        imports: Waiting,
        name: str = "the module",
    ) -> None:
        """name: what messages call it.  Raises ModuleError for imports of another type."""
        self._keep = (engine, linker, module, imports)
        try:
            self._pre = linker.instantiate_pre(module)
        except wasmtime.WasmtimeError as exc:
            raise ModuleError(f"{name}: {exc}") from None
        self.engine = c_void_p(native.address(engine))
        self.pre = c_void_p(native.address(self._pre))
        self.frames: list[_Frame] = []
        """Those of ended guests."""
        # An asynchronous import called from outside a fiber aborts the whole process. Guests that
        # have one get a fiber for each call; the others are spared its cost.
        self.may_suspend = any((i.module, i.name) in imports.names for i in module.imports)


class Guest:
    """One instance; a context manager that frees it."""

    __slots__ = (
        "_context",
        "_frame",
        "_memory",
        "_template",
        "_ticker",
        "_waiting",
        "clock_origin_ns",
        "may_call_imports",
        "state",
    )

    def __init__(
        self,
        template: GuestTemplate,
        ticker: Ticker,
        *,
        wasi_config: Any,
        max_memory_bytes: int,
        state: Any = None,
    ) -> None:
        """Instantiate. ``wasi_config`` is owned by the guest from here on.

        state: whatever imports need to know of who calls them.
        Raises GuestTrap if the start function traps or the pool has no slot left.
        """
        self._template = template
        self._ticker = ticker
        self.state = state
        self.may_call_imports = True
        """Not while an import calls its allocator."""
        self._waiting: asyncio.Future[Any] | None = None
        self._memory: Any = None
        self._frame: _Frame | None
        self._frame = frame = template.frames.pop() if template.frames else _Frame()
        frame.store.value = native.store_new(template.engine, None, None)
        self._context: int = native.store_context(frame.store)
        context = frame.context
        context.value = self._context
        _guests[self._context] = self
        try:
            if max_memory_bytes < _NO_LIMIT_BYTES:
                limit = c_int64(max_memory_bytes)
                native.store_limiter(frame.store, limit, *(_UNLIMITED,) * 4)
            native.set_epoch_deadline(context, _SHORT_TICKS)
            if failure := native.context_set_wasi(context, wasi_config):
                native.raise_failure(failure, None)
            # wasmtime counts the guest's monotonic clock from about here.
            self.clock_origin_ns = time.monotonic_ns()
            ticker.note_call()
            into = (template.pre, context, frame.instance, frame.trap_ref)
            if template.may_suspend:
                future = native.instance_pre_instantiate_async(*into, frame.error_ref)
                self._finish_now(frame, future)
            elif (failure := native.instance_pre_instantiate(*into)) or frame.trap:
                self._check(frame, failure)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the store and everything in it."""
        frame = self._frame
        if frame is not None:
            self._frame = None
            _guests.pop(self._context, None)
            native.store_delete(frame.store)
            self._template.frames.append(frame)

    def _open_frame(self) -> _Frame:
        frame = self._frame
        assert frame is not None, "the guest is closed"
        return frame

    def export(self, name: bytes) -> Any:
        """Return the export ``name`` as an opaque handle for the calls below, or None.

        Valid until the guest is closed. What it is an export of is for the caller to know.
        """
        frame = self._open_frame()
        *lookup, handle = frame.exports.get(name) or frame.export(name)
        return handle if native.instance_export_get(*lookup) else None

    def function(self, name: bytes) -> Any:
        """Return the exported function ``name`` as ``export`` does, None for any other export.

        For what nobody has checked: calling a memory as if it were a function ends the process.
        """
        handle = self.export(name)
        if handle is None or self._open_frame().kind(name) != native.EXTERN_FUNC:
            return None
        return handle

    # Calls

    def call_short(self, function: Any, *arguments: int) -> int:
        """Call an exported function of i32 parameters that returns an i32; see the module.

        Raises GuestTrap, GuestExit.
        """
        frame = self._open_frame()
        if self._template.may_suspend:
            self._finish_now(frame, self._start_call(frame, function, arguments, 1))
            return ctypes.c_uint32.from_buffer(frame.result, native.VAL_PAYLOAD).value
        self._ticker.note_call()
        raws = frame.raws
        index = 0
        for value in arguments:
            raws[index] = value
            index += _RAW_WORDS
        failure = native.func_call(frame.context, function, raws, _RAW_COUNT, frame.trap_ref)
        if failure or frame.trap:
            self._check(frame, failure)
        return raws[0] & _U32_MASK

    def allocate(self, realloc: Any, requests: Iterable[tuple[int, int]]) -> list[int]:
        """Return a pointer for each (alignment, size) from ``realloc(0, 0, alignment, size)``.

        What ``call_short`` would do, without its cost for each of many: a request has some twenty.
        Raises GuestTrap, GuestExit.
        """
        if self._template.may_suspend:
            return [self.call_short(realloc, 0, 0, align, size) for align, size in requests]
        self._ticker.note_call()
        frame = self._open_frame()
        func_call, context, raws, trap = native.func_call, frame.context, frame.raws, frame.trap
        trap_ref = frame.trap_ref
        pointers = []
        raws[_RAW_WORDS] = 0
        for align, size in requests:
            raws[0] = 0  # the result of the call before
            raws[_RAW_WORDS * 2] = align
            raws[_RAW_WORDS * 3] = size
            failure = func_call(context, realloc, raws, _RAW_COUNT, trap_ref)
            if failure or trap:
                self._check(frame, failure)
            pointers.append(raws[0] & _U32_MASK)
        return pointers

    @contextmanager
    def within_import(self) -> Iterator[None]:
        """Allow ``call_short`` and ``allocate`` while the guest waits for an import.

        They run on a fiber of their own, nested in the one that waits, and what they raise is for
        the import to turn into a trap.
        """
        context = self._open_frame().context
        native.set_epoch_deadline(context, _SHORT_TICKS)
        self.may_call_imports = False
        try:
            yield
        finally:
            self.may_call_imports = True
            native.set_epoch_deadline(context, _ONE_TICK)

    async def call(self, function: Any, *arguments: int, results: int = 1) -> int:
        """Call an exported function of i32 parameters and zero or one i32 ``results``.

        Raises GuestTrap, GuestExit.
        """
        frame = self._open_frame()
        native.yield_at_epoch(frame.context, _ONE_TICK)
        native.set_epoch_deadline(frame.context, _ONE_TICK)
        future = self._start_call(frame, function, arguments, results)
        try:
            while True:
                self._ticker.note_call()
                if native.future_poll(future):
                    break
                await self._resumable()
        finally:
            native.future_delete(future)
        if frame.error or frame.trap:
            self._check(frame, frame.error.value)
        if not results:
            return 0
        return ctypes.c_uint32.from_buffer(frame.result, native.VAL_PAYLOAD).value

    def _start_call(
        self, frame: _Frame, function: Any, arguments: tuple[int, ...], results: int
    ) -> int:
        """Return a future of the call. wasmtime copies the arguments, keeps the other pointers."""
        values = _packer(len(arguments)).pack(*arguments)
        return native.func_call_async(  # type: ignore[no-any-return]
            *(frame.context, function, values, c_size_t(len(arguments))),
            *(frame.result, c_size_t(results), frame.trap_ref, frame.error_ref),
        )

    def _finish_now(self, frame: _Frame, future: int) -> None:
        """Run a future that has no business waiting."""
        done = native.future_poll(future)
        native.future_delete(future)
        if not done:
            self._waiting = None
            raise GuestTrap("the guest waits where it must not: in its allocator or start", None)
        self._check(frame, frame.error.value)

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
            # It may still use what belongs to the guest, also if this is cancelled once more.
            waiting.cancel()
            while not waiting.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((waiting,))
            if not waiting.cancelled():
                waiting.exception()  # nobody else asks
            raise

    def suspend_until(self, waiting: asyncio.Future[Any]) -> None:
        """Called by an import, during a poll: the guest goes on when ``waiting`` is done."""
        self._waiting = waiting

    def _check(self, frame: _Frame, error: int | None) -> None:
        trap, frame.trap.value, frame.error.value = frame.trap.value, None, None
        native.raise_failure(error, trap)

    # Memory. The guest's pointers and lengths are hostile: every access is checked against the
    # present size.

    def use_memory(self, memory: Any) -> None:
        """Set which exported memory ``memory``, ``read`` and ``write`` mean."""
        self._memory = memory

    def memory(self) -> memoryview:
        """Return the guest's memory as it is now. Not to be used once the guest has run again.

        Raises GuestMemoryError while its start function runs: none is known yet then.
        """
        context = self._open_frame().context
        if self._memory is None:
            raise GuestMemoryError("the guest calls an import that needs its memory as it starts")
        address = native.memory_data(context, self._memory)
        whole = _whole_memories.get(address)
        if whole is None:
            whole = memoryview(_WholeMemory.from_address(address)).cast("B")
            _whole_memories[address] = whole
        return whole[: native.memory_data_size(context, self._memory)]

    def grow_memory(self, size: int) -> None:
        """Have the memory be at least ``size`` bytes. Raises GuestTrap where it may not be."""
        missing = size - len(self.memory())
        if missing > 0:
            context, before = self._open_frame().context, c_uint64()
            pages = c_uint64(-(-missing // _WASM_PAGE_BYTES))
            failure = native.memory_grow(context, self._memory, pages, byref(before))
            native.raise_failure(failure, None)

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


def put_all(
    memory: memoryview, pointers: Iterable[int], texts: Iterable[bytes | bytearray]
) -> None:
    """Do ``put`` for each pointer, none of them negative, and its text."""
    size = len(memory)
    for pointer, text in zip(pointers, texts, strict=True):
        end = pointer + len(text)
        if end > size:
            raise _beyond(memory, pointer, len(text))
        memory[pointer:end] = text


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
