"""Imports whose host side may wait, as coroutines of the event loop.

A call of one begins on the guest's fiber: its arguments are read, and a coroutine is made of them.
While that waits the fiber is suspended, and the loop serves others. Once it is done the guest is
polled again, and what it returned is handed over on the fiber, where the guest's allocator may be
called for it.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import sys
from collections.abc import Callable, Coroutine, Generator
from ctypes import c_void_p
from typing import Any, Final

import wasmtime

from containerd_shimkit.wasm import native
from containerd_shimkit.wasm.guest import Guest, guest_of

_U32_MASK: Final = 0xFFFF_FFFF
_KINDS: Final[dict[str, tuple[Callable[[], Any], Any]]] = {
    "i": (wasmtime.ValType.i32, ctypes.c_uint32),
    "l": (wasmtime.ValType.i64, ctypes.c_uint64),
    "f": (wasmtime.ValType.f32, ctypes.c_float),
    "d": (wasmtime.ValType.f64, ctypes.c_double),
}

AsyncImport = Callable[..., Coroutine[Any, Any, Any]]
"""``f(guest, *arguments)`` reads the arguments and returns what waits: called on the fiber.

Integers are unsigned. What it raises becomes a trap; so does what the coroutine raises.
"""

Finish = Callable[[Guest, Any, tuple[Any, ...]], Generator[None, None, int]]
"""``f(guest, value, arguments)`` gets what the coroutine returned, and the arguments once more.

Run on the fiber, within ``Guest.within_import``. Where it yields, others are served: the guest's
memory may have moved afterwards. Returns the import's i32 result, if it has one.
"""

log = logging.getLogger(__name__)


class _NotFinished(Exception):
    """There is more to hand over."""


class _PendingImport:
    """A host call under way: what wasmtime's continuation asks for."""

    __slots__ = ("arguments", "finish", "finishing", "guest", "results", "task", "trap_return")

    def __init__(
        self,
        guest: Guest,
        task: asyncio.Task[Any],
        arguments: tuple[Any, ...],
        finish: Finish | None,
        results: int,
        trap_return: int,
    ) -> None:
        self.guest = guest
        self.task = task
        self.arguments = arguments
        self.finish = finish
        self.finishing: Generator[None, None, int] | None = None
        self.results = results
        """Address of the result; 0 if there is none."""
        self.trap_return = trap_return

    def hand_over(self) -> bool:
        """Store the result, or a trap in its place. Returns whether that is done."""
        try:
            value = self.task.result()
            if self.finish is not None:
                value = self._finished(self.finish, value)
            if self.results:
                _set_i32(self.results, value)
        except _NotFinished:
            return False
        except asyncio.CancelledError:
            _set_trap(self.trap_return, "the host call was cancelled")
        except native.GuestError as exc:
            _set_trap(self.trap_return, str(exc))
        except Exception as exc:
            log.exception("a host call failed")
            _set_trap(self.trap_return, f"the host call failed: {exc}")
        return True

    def _finished(self, finish: Finish, value: Any) -> Any:
        if self.finishing is None:
            self.finishing = finish(self.guest, value, self.arguments)
        with self.guest.within_import():
            try:
                next(self.finishing)
            except StopIteration as end:
                return end.value
        raise _NotFinished


_pending: dict[int, _PendingImport] = {}


def _set_trap(trap_return: int, message: str) -> None:
    data = message.encode(errors="replace")
    c_void_p.from_address(trap_return).value = native.trap_new(data, len(data))


def _set_i32(results: int, value: int) -> None:
    masked = value & _U32_MASK
    ctypes.c_uint8.from_address(results).value = native.VAL_I32
    ctypes.c_uint32.from_address(results + native.VAL_PAYLOAD).value = masked


def _poll_import(token: int) -> bool:
    """wasmtime asks, on the guest's fiber: is the host call done? Then its result is stored."""
    pending = _pending[token]
    return pending.task.done() and pending.hand_over()


def _finish_import(token: int) -> None:
    pending = _pending.pop(token)
    if not pending.task.done():
        pending.task.cancel()


def _be_done(_token: int) -> bool:
    return True


_poll_callback = native.ContinuationCallback(_poll_import)
_finish_callback = native.Finalizer(_finish_import)
_done_callback = native.ContinuationCallback(_be_done)
_no_finalizer = native.Finalizer()


class AsyncImports:
    """Defines asynchronous imports in a linker and keeps their C callbacks alive."""

    def __init__(self, linker: wasmtime.Linker) -> None:
        self._linker = linker
        self._keep: list[Any] = []
        self.names: set[tuple[str, str | None]] = set()
        """Module and name of every import defined here."""

    def define(
        self,
        module: str,
        name: str,
        parameters: str,
        implementation: AsyncImport,
        finish: Finish | None = None,
        *,
        result: bool = True,
    ) -> None:
        """Define an import.

        parameters: a letter each, ``i`` i32, ``l`` i64, ``f`` f32, ``d`` f64.  finish: without it
        the coroutine returns the result.  result: whether the import returns an i32, or nothing.
        """
        results = [wasmtime.ValType.i32()] if result else []
        type_ = wasmtime.FuncType([_KINDS[p][0]() for p in parameters], results)
        callback = native.AsyncCallback(_entry(implementation, finish, parameters, result))
        self._keep.append(callback)
        self.names.add((module, name))
        native.define_async_func(self._linker, module, name, type_, callback)


def _entry(
    implementation: AsyncImport, finish: Finish | None, parameters: str, has_result: bool
) -> Callable[..., None]:
    """Return what wasmtime calls on the guest's fiber when it calls the import."""
    arguments_at = [
        (_KINDS[p][1], index * native.VAL_SIZE + native.VAL_PAYLOAD)
        for index, p in enumerate(parameters)
    ]

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
        continuation = native.Continuation.from_address(continuation_return)
        continuation.callback = _done_callback
        continuation.env = None
        continuation.finalizer = _no_finalizer
        guest = guest_of(native.caller_context(caller))
        if not guest.may_call_imports:
            _set_trap(trap_return, "the guest calls an import where it must not: in its allocator")
            return
        values = tuple(kind.from_address(arguments + at).value for kind, at in arguments_at)
        try:
            task = _start(implementation(guest, *values))
        except native.GuestError as exc:
            _set_trap(trap_return, str(exc))
            return
        except Exception as exc:
            log.exception("a host call failed")
            _set_trap(trap_return, f"the host call failed: {exc}")
            return
        pending = _PendingImport(
            guest, task, values, finish, results if has_result else 0, trap_return
        )
        # Many have nothing to wait for.
        if not task.done():
            guest.suspend_until(task)
        elif pending.hand_over():
            return
        # The task lives as long as the entry, so its address is a token nobody else has.
        token = id(task)
        _pending[token] = pending
        continuation.callback = _poll_callback
        continuation.env = token
        continuation.finalizer = _finish_callback

    return enter


if sys.version_info >= (3, 12):

    def _start(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Return the task of a coroutine that runs already, up to where it first waits."""
        return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), eager_start=True)

else:

    def _start(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(coroutine)
