"""How guests call the host: a table of functions for each interface, and what makes imports of it.

A call's arguments are lifted at once, as the guest only lends them. Its result, or the error in its
place, is lowered when there is one: the guest's allocator is called for each string and list, in
slices of time, so that others are served while a large result is handed over.

Source: wit-bindgen 0.2, checked with real guests; component-model design/mvp/CanonicalABI.md.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from containerd_shimkit.wasm.canonical import AbiError, Blocks, Enum, Lifting, Result, Type
from containerd_shimkit.wasm.guest import Guest, put_all
from containerd_shimkit.wasm.imports import AsyncImports

_SLICE_SECONDS: Final = 0.005
_BATCH: Final = 64  # blocks handled between two looks at the clock

REALLOC: Final = b"canonical_abi_realloc"
CURRENT_REALLOC: Final = b"cabi_realloc"
"""Of the component model, and of core modules made for it."""

ErrorOf = Callable[[Exception], Any]
"""Returns the interface's error value for what the host raised, None for what is none of its."""

Report = Callable[[Any, str, Exception, bool], None]
"""``report(state, name, exception, has_text)``: a function gives a guest an error.

name: of module and function.  has_text: whether the guest is told more than that it failed.
"""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of an interface."""

    name: str
    parameters: Sequence[Type]
    result: Result | Type | None
    """None is nothing. Only ``Result`` has a way to say that a function failed; of other types only
    those are possible that are passed as one i32, a handle for instance."""
    call: Callable[..., Awaitable[Any]]
    """``call(state, *arguments)``, with the guest's state; returns the value of ``ok``."""


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface as one generation of guests imports it."""

    module: str
    functions: Sequence[Function]
    error: ErrorOf
    realloc: bytes = REALLOC
    report: Report | None = None

    def define(self, imports: AsyncImports, name: str) -> None:
        """Define a function in a linker, if there is one of this name."""
        for function in self.functions:
            if function.name == name:
                _Import(self, function).define(imports)


class _Import:
    def __init__(self, interface: Interface, function: Function) -> None:
        self._interface = interface
        self._function = function
        self._name = f"{interface.module}.{function.name}"
        result = function.result
        # An enum has no room for the reason.
        self._has_text = isinstance(result, Result) and not isinstance(result.error, Enum)

    def define(self, imports: AsyncImports) -> None:
        function, result = self._function, self._function.result
        flat = "".join(parameter.flat for parameter in function.parameters)
        assert len(flat) <= 16, "more would be passed in memory"
        names = self._interface.module, function.name
        if isinstance(result, Result):
            imports.define(*names, flat + "i", self._begin, self._finish, result=False)
        elif result is None:
            imports.define(*names, flat, self._begin, result=False)
        else:
            assert result.flat == "i", "anything else would be returned in another way"
            imports.define(*names, flat, self._begin, _value)

    def _begin(self, guest: Guest, *values: Any) -> Coroutine[Any, Any, Any]:
        lifting, flat = Lifting(guest.memory()), iter(values)
        arguments = [parameter.lift(lifting, flat) for parameter in self._function.parameters]
        return self._run(guest.state, arguments)

    async def _run(self, state: Any, arguments: list[Any]) -> tuple[bool, Any]:
        try:
            return True, await self._function.call(state, *arguments)
        except Exception as exc:
            fails = isinstance(self._function.result, Result)
            error = self._interface.error(exc) if fails else None
            if error is None:
                raise
            if self._interface.report is not None:
                self._interface.report(state, self._name, exc, self._has_text)
            return False, error

    def _finish(
        self, guest: Guest, outcome: tuple[bool, Any], values: tuple[Any, ...]
    ) -> Generator[None, None, int]:
        result = self._function.result
        assert isinstance(result, Result)
        area, blocks = bytearray(result.size), Blocks()
        yield from _paced(result.lower_in_steps(blocks, area, 0, outcome))
        yield from hand_over(guest, self._interface.realloc, blocks, area, values[-1])
        return 0


def _value(_guest: Guest, outcome: tuple[bool, Any], _values: Any) -> Generator[None, None, int]:
    yield from ()
    return int(outcome[1])


def hand_over(
    guest: Guest, realloc: bytes, blocks: Blocks, area: bytearray, area_at: int
) -> Generator[None, None, None]:
    """Put blocks into memory that the guest allocates, and ``area`` at ``area_at``.

    Yields when its slice of time is over.  Raises GuestTrap, GuestExit, GuestMemoryError.
    """
    allocate = guest.function(realloc)
    if allocate is None and blocks.contents:
        raise AbiError(f"the guest exports no function {realloc.decode()!r}")
    yield from _paced(_hand_over_in_steps(guest, allocate, blocks))
    guest.write(area_at, bytes(area))


def _hand_over_in_steps(guest: Guest, allocate: Any, blocks: Blocks) -> Iterator[None]:
    addresses: list[int] = []
    for batch in _batches(blocks.contents):
        sizes = map(len, blocks.contents[batch])
        addresses += guest.allocate(allocate, zip(blocks.aligns[batch], sizes, strict=True))
        yield
    for batch in _batches(blocks.pointers):
        blocks.resolve(addresses, batch)
        yield
    for batch in _batches(blocks.contents):
        put_all(guest.memory(), addresses[batch], blocks.contents[batch])
        yield


def _batches(things: Sequence[Any]) -> Iterator[slice]:
    return (slice(first, first + _BATCH) for first in range(0, len(things), _BATCH))


def _paced(steps: Iterator[None]) -> Iterator[None]:
    """Take steps; yield whenever a slice of time is over."""
    end = time.monotonic() + _SLICE_SECONDS
    for _ in steps:
        if time.monotonic() > end:
            yield
            end = time.monotonic() + _SLICE_SECONDS
