"""A component ready to serve: its module linked, and one instance for each call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import wasmtime

from containerd_shim_spin_v1.abi.interfaces import INTERFACES
from containerd_shim_spin_v1.component_logs import Output
from containerd_shim_spin_v1.host.instance import Instance
from containerd_shim_spin_v1.host.services import Services
from containerd_shim_spin_v1.manifest.model import Component
from containerd_shim_spin_v1.outbound.access import OutboundAccess
from containerd_shimkit.wasm.engine import Ticker
from containerd_shimkit.wasm.exports import Exports, read_exports
from containerd_shimkit.wasm.guest import Guest, GuestTemplate
from containerd_shimkit.wasm.imports import AsyncImports
from containerd_shimkit.wasm.module import check_imports
from containerd_shimkit.wasm.preview1 import WasiTemplate, define_preview1, output_callback
from containerd_shimkit.wasm.running import RunningGuest


@dataclass(frozen=True, slots=True)
class Host:
    """What the components of an app share."""

    engine: wasmtime.Engine
    linker: wasmtime.Linker
    imports: AsyncImports
    ticker: Ticker

    @classmethod
    def create(cls, engine: wasmtime.Engine) -> Host:
        """Define WASI once for all components."""
        linker = wasmtime.Linker(engine)
        return cls(engine, linker, define_preview1(linker), Ticker(engine))

    def provide(self, module: wasmtime.Module, name: str) -> None:
        """Define what ``module`` imports of the host's interfaces; most import few functions.

        name: what messages call the module.  Raises ModuleError for what there is nothing of.
        """
        for wanted in module.imports:
            interface = INTERFACES.get(wanted.module)
            if interface is not None and (wanted.module, wanted.name) not in self.imports.names:
                interface.define(self.imports, wanted.name or "")
        check_imports(module, self.linker, wasmtime.Store(self.engine), name)


@dataclass(slots=True)
class LinkedComponent:
    """A component whose module is linked; triggers call it in their own ways."""

    component: Component
    name: str
    """What messages call its module."""
    exports: Exports
    template: GuestTemplate
    wasi: WasiTemplate
    ticker: Ticker
    max_memory_bytes: int
    stdout: Any
    stderr: Any
    _used: tuple[OutboundAccess, Services] | None = field(default=None, init=False)

    @classmethod
    def link(
        cls,
        host: Host,
        component: Component,
        module: wasmtime.Module,
        wasi: WasiTemplate,
        *,
        name: str,
        max_memory_bytes: int,
        stdout: Output,
        stderr: Output,
    ) -> LinkedComponent:
        """Link a module. Raises ModuleError."""
        host.provide(module, name)
        return cls(
            component=component,
            name=name,
            exports=read_exports(module),
            template=GuestTemplate(host.engine, host.linker, module, host.imports, name),
            wasi=wasi,
            ticker=host.ticker,
            max_memory_bytes=max_memory_bytes,
            stdout=output_callback(stdout.write),
            stderr=output_callback(stderr.write),
        )

    @property
    def id(self) -> str:
        return self.component.id

    def use(self, services: Services) -> None:
        """Set what guests may ask of, before the first is called."""
        self._used = OutboundAccess(self.component, services.variables), services

    def start(self, wasi_config: Any, depth: int = 0) -> RunningGuest:
        """Return a new guest, for ``async with``; it owns ``wasi_config``. Raises GuestTrap.

        depth: see ``Instance``.
        """
        assert self._used is not None, "use comes first"
        instance = Instance(self.component, *self._used, depth)
        guest = Guest(
            self.template,
            self.ticker,
            wasi_config=wasi_config,
            max_memory_bytes=self.max_memory_bytes,
            state=instance,
        )
        return RunningGuest(guest, instance)
