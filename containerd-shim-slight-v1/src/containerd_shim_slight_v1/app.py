"""The app's module, linked: one instance for each request, and one that sets the app up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import wasmtime

from containerd_shim_slight_v1.abi.exports import REALLOC_TYPE, HandlerError
from containerd_shim_slight_v1.abi.interfaces import INTERFACES
from containerd_shim_slight_v1.capabilities.instance import Instance
from containerd_shim_slight_v1.capabilities.services import Services
from containerd_shim_slight_v1.http.servers import Servers
from containerd_shimkit.errors import ModuleError
from containerd_shimkit.output import OutputWriter
from containerd_shimkit.wasm.engine import Ticker
from containerd_shimkit.wasm.exports import Exports, check_memory, export_fault, read_exports
from containerd_shimkit.wasm.guest import Guest, GuestTemplate
from containerd_shimkit.wasm.interfaces import REALLOC
from containerd_shimkit.wasm.module import check_imports
from containerd_shimkit.wasm.native import GuestExit
from containerd_shimkit.wasm.preview1 import WasiTemplate, define_preview1, output_callback
from containerd_shimkit.wasm.running import RunningGuest


class _Running(RunningGuest):
    """Of a guest that fails, or is cut off, objects stay as they were and messages come again."""

    __slots__ = ("_own",)

    def __init__(self, guest: Guest, instance: Instance) -> None:
        super().__init__(guest, instance)
        self._own = instance

    async def __aexit__(self, *raised: object) -> None:
        failure = raised[1]
        if failure is not None and not isinstance(failure, HandlerError | GuestExit):
            self._own.give_up()
        await super().__aexit__(*raised)


@dataclass(slots=True)
class LinkedApp:
    """The module, ready to be called."""

    name: str
    """What messages call it."""
    exports: Exports
    template: GuestTemplate
    wasi: WasiTemplate
    ticker: Ticker
    max_memory_bytes: int
    stdout: Any
    stderr: Any

    @classmethod
    def link(
        cls,
        engine: wasmtime.Engine,
        module: wasmtime.Module,
        wasi: WasiTemplate,
        *,
        name: str,
        max_memory_bytes: int,
        stdout: OutputWriter,
        stderr: OutputWriter,
    ) -> LinkedApp:
        """Link a module. Raises ModuleError."""
        linker = wasmtime.Linker(engine)
        imports = define_preview1(linker)
        # All there are, whatever the slightfile says: opening what it does not name is an error
        # that a guest is told.
        for wanted in module.imports:
            interface = INTERFACES.get(wanted.module)
            if interface is not None and (wanted.module, wanted.name) not in imports.names:
                interface.define(imports, wanted.name or "")
        check_imports(module, linker, wasmtime.Store(engine), name)
        exports = read_exports(module)
        check_memory(exports, name)
        return cls(
            name=name,
            exports=exports,
            template=GuestTemplate(engine, linker, module, imports, name),
            wasi=wasi,
            ticker=Ticker(engine),
            max_memory_bytes=max_memory_bytes,
            stdout=output_callback(stdout.write),
            stderr=output_callback(stderr.write),
        )

    def check_allocator(self) -> None:
        """Raise ModuleError unless the module can be handed requests."""
        fault = export_fault(self.exports, REALLOC.decode(), REALLOC_TYPE)
        if fault is not None:
            raise ModuleError(f"{self.name}: {fault}")

    def start(self, services: Services, servers: Servers | None = None) -> RunningGuest:
        """Return a new guest, for ``async with``. servers: see ``Instance``. Raises GuestTrap."""
        instance = Instance(services, servers)
        guest = Guest(
            self.template,
            self.ticker,
            wasi_config=self.wasi.config(self.stdout, self.stderr, stdin=b""),
            max_memory_bytes=self.max_memory_bytes,
            state=instance,
        )
        return _Running(guest, instance)
