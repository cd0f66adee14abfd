"""How guests call the host: a table of functions for each interface, and what makes imports of it.

A call's arguments are lifted at once, as the guest only lends them. Its result, or the error in its
place, is lowered when there is one: the guest's allocator is called for each string and list, in
slices of time, so that others are served while a large result is handed over.

Source: wit-bindgen 0.2 for Spin 1.x (``guests.md`` of the reference, checked with real guests);
component-model design/mvp/CanonicalABI.md for the interfaces of 1.4 and later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from containerd_shim_spin_v1.abi.canonical import AbiError, Blocks, Enum, Lifting, Result, Type
from containerd_shim_spin_v1.abi.exports import REALLOC
from containerd_shim_spin_v1.host.instance import Instance
from containerd_shim_spin_v1.outbound.access import DestinationNotAllowedError
from containerd_shimkit.wasm.guest import Guest, put_all
from containerd_shimkit.wasm.imports import AsyncImports

_SLICE_SECONDS: Final = 0.005
_BATCH: Final = 64  # blocks allocated between two looks at the clock

ErrorOf = Callable[[Exception], Any]
"""Returns the interface's error value for what the host raised, None for what is none of its."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Function:
    """A function of an interface."""

    name: str
    parameters: Sequence[Type]
    result: Result | None
    """None is nothing: such a function cannot fail."""
    call: Callable[..., Awaitable[Any]]
    """``call(instance, *arguments)``; returns the value of ``ok``."""


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface as one generation of guests imports it."""

    module: str
    functions: Sequence[Function]
    error: ErrorOf
    realloc: bytes = REALLOC

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
        self._error = None if result is None else result.error

    def define(self, imports: AsyncImports) -> None:
        function = self._function
        flat = "".join(parameter.flat for parameter in function.parameters)
        assert len(flat) <= 16, "more would be passed in memory"
        if function.result is None:
            imports.define(self._interface.module, function.name, flat, self._begin, result=False)
        else:
            imports.define(
                *(self._interface.module, function.name, flat + "i"),
                *(self._begin, self._finish),
                result=False,
            )

    def _begin(self, guest: Guest, *values: Any) -> Coroutine[Any, Any, Any]:
        lifting, flat = Lifting(guest.memory()), iter(values)
        arguments = [parameter.lift(lifting, flat) for parameter in self._function.parameters]
        return self._run(guest.state, arguments)

    async def _run(self, instance: Instance, arguments: list[Any]) -> tuple[bool, Any]:
        try:
            return True, await self._function.call(instance, *arguments)
        except Exception as exc:
            if self._function.result is None:
                raise
            error = self._interface.error(exc)
            if error is None:
                raise
            # An enum has no room for the reason, and whoever runs the app is to see what the
            # manifest lacks.
            if isinstance(self._error, Enum) or isinstance(exc, DestinationNotAllowedError):
                log.warning("component %r: %s: %s", instance.component_id, self._name, exc)
            return False, error

    def _finish(
        self, guest: Guest, outcome: tuple[bool, Any], values: tuple[Any, ...]
    ) -> Generator[None, None, int]:
        result = self._function.result
        assert result is not None
        area, blocks = bytearray(result.size), Blocks()
        result.lower(blocks, area, 0, outcome)
        yield from hand_over(guest, self._interface.realloc, blocks, area, values[-1])
        return 0


def hand_over(
    guest: Guest, realloc: bytes, blocks: Blocks, area: bytearray, area_at: int
) -> Generator[None, None, None]:
    """Put blocks into memory that the guest allocates, and ``area`` at ``area_at``.

    Yields when its slice of time is over.  Raises GuestTrap, GuestExit, GuestMemoryError.
    """
    allocate = guest.export(realloc)
    if allocate is None and blocks.contents:
        raise AbiError(f"the guest exports no function {realloc.decode()!r}")
    addresses: list[int] = []
    end = time.monotonic() + _SLICE_SECONDS
    for first in range(0, len(blocks.contents), _BATCH):
        batch = slice(first, first + _BATCH)
        sizes = map(len, blocks.contents[batch])
        addresses += guest.allocate(allocate, zip(blocks.aligns[batch], sizes, strict=True))
        if time.monotonic() > end:
            yield
            end = time.monotonic() + _SLICE_SECONDS
    blocks.resolve(addresses)
    put_all(guest.memory(), (*addresses, area_at), (*blocks.contents, area))
