"""Modules linked, and what is needed to instantiate them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import wasmtime

from containerd_shim_wws_v1.abi.http import INTERFACE
from containerd_shim_wws_v1.instance import Instance
from containerd_shimkit.wasm.engine import Ticker
from containerd_shimkit.wasm.exports import Exports, check_memory, read_exports
from containerd_shimkit.wasm.guest import Guest, GuestTemplate
from containerd_shimkit.wasm.imports import AsyncImports
from containerd_shimkit.wasm.module import check_imports
from containerd_shimkit.wasm.preview1 import define_preview1
from containerd_shimkit.wasm.running import RunningGuest

MEMORY = b"memory"


@dataclass(frozen=True, slots=True)
class Host:
    """What all workers of an app share."""

    engine: wasmtime.Engine
    linker: wasmtime.Linker
    imports: AsyncImports
    ticker: Ticker
    max_memory_bytes: int

    @classmethod
    def create(cls, engine: wasmtime.Engine, max_memory_bytes: int) -> Host:
        """Define WASI and outbound HTTP once for all modules."""
        linker = wasmtime.Linker(engine)
        imports = define_preview1(linker)
        for function in INTERFACE.functions:
            INTERFACE.define(imports, function.name)
        return cls(engine, linker, imports, Ticker(engine), max_memory_bytes)

    def link(self, module: wasmtime.Module, name: str) -> LinkedModule:
        """Return a module, linked. name: what messages call it.  Raises ModuleError."""
        check_imports(module, self.linker, wasmtime.Store(self.engine), name)
        exports = read_exports(module)
        check_memory(exports, name)
        template = GuestTemplate(self.engine, self.linker, module, self.imports, name)
        return LinkedModule(name, exports, template, self)


@dataclass(frozen=True, slots=True)
class LinkedModule:
    """A module, ready to be instantiated."""

    name: str
    exports: Exports
    template: GuestTemplate
    host: Host

    def start(self, wasi_config: Any, instance: Instance) -> RunningGuest:
        """Return a new guest, for ``async with``. Raises GuestTrap.

        wasi_config: from ``WasiTemplate.config``.
        """
        guest = Guest(
            *(self.template, self.host.ticker),
            wasi_config=wasi_config,
            max_memory_bytes=self.host.max_memory_bytes,
            state=instance,
        )
        guest.use_memory(guest.export(MEMORY))
        return RunningGuest(guest, instance)
