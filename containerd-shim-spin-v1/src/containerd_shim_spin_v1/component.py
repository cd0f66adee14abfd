"""A component ready to serve: its module linked, and one instance for each request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import wasmtime

from containerd_shim_spin_v1.abi import http as abi
from containerd_shim_spin_v1.abi.http import HttpResponse
from containerd_shim_spin_v1.abi.wagi import CgiResponse, WagiError, parse_cgi_response
from containerd_shim_spin_v1.manifest.model import Executor
from containerd_shimkit.errors import ModuleError
from containerd_shimkit.output import OutputWriter
from containerd_shimkit.wasm.engine import Ticker
from containerd_shimkit.wasm.guest import Guest, GuestTemplate
from containerd_shimkit.wasm.imports import AsyncImports
from containerd_shimkit.wasm.module import check_imports
from containerd_shimkit.wasm.native import GuestExit
from containerd_shimkit.wasm.preview1 import WasiTemplate, define_preview1, output_callback

_MAX_WAGI_OUTPUT_BYTES: Final = 128 << 20


@dataclass(frozen=True, slots=True)
class Host:
    """What the components of an app share."""

    engine: wasmtime.Engine
    linker: wasmtime.Linker
    imports: AsyncImports
    ticker: Ticker

    @classmethod
    def create(cls, engine: wasmtime.Engine) -> Host:
        """Define every host interface once for all components."""
        linker = wasmtime.Linker(engine)
        return cls(engine, linker, define_preview1(linker), Ticker(engine))


@dataclass(slots=True)
class HttpComponent:
    """A component of the HTTP trigger."""

    id: str
    executor: Executor
    template: GuestTemplate
    wasi: WasiTemplate
    ticker: Ticker
    max_memory_bytes: int
    stdout: Any
    stderr: Any

    @classmethod
    def link(
        cls,
        host: Host,
        component_id: str,
        module: wasmtime.Module,
        executor: Executor,
        wasi: WasiTemplate,
        *,
        name: str,
        max_memory_bytes: int,
        stdout: OutputWriter,
        stderr: OutputWriter,
    ) -> HttpComponent:
        """Check that the module fits its executor and link it.

        name: what messages call the module. Raises ModuleError.
        """
        check_imports(module, host.linker, wasmtime.Store(host.engine), name)
        exports = {export.name: _function_type(export.type) for export in module.exports}
        # Whatever else had this name would be read as a memory, which ends the process.
        if not any(
            export.name == "memory" and isinstance(export.type, wasmtime.MemoryType)
            for export in module.exports
        ):
            exports.pop("memory", None)
        if executor.type == "wagi":
            _check_entrypoint(exports, executor.entrypoint, name)
        else:
            abi.check_exports(exports, name)
        return cls(
            id=component_id,
            executor=executor,
            template=GuestTemplate(host.engine, host.linker, module, host.imports),
            wasi=wasi,
            ticker=host.ticker,
            max_memory_bytes=max_memory_bytes,
            stdout=output_callback(stdout.write),
            stderr=output_callback(stderr.write),
        )

    async def handle(
        self, method: int, uri: bytes, headers: list[bytes], body: bytes
    ) -> HttpResponse:
        """Answer a request by the Spin executor; see ``abi.handle_request``. Raises GuestError."""
        config = self.wasi.config(self.stdout, self.stderr)
        with self._instantiate(config) as guest:
            return await abi.handle_request(guest, method, uri, headers, body)

    async def run_wagi(
        self, arguments: Sequence[str], environment: Sequence[tuple[str, str]], body: bytes
    ) -> CgiResponse:
        """Answer a request by the WAGI executor. Raises GuestError, WagiError."""
        output = bytearray()
        overflow = False

        def collect(data: bytes) -> None:
            nonlocal overflow
            if len(output) + len(data) > _MAX_WAGI_OUTPUT_BYTES:
                overflow = True
            else:
                output.extend(data)

        stdout = output_callback(collect)
        config = self.wasi.config(
            stdout, self.stderr, stdin=body, arguments=arguments, environment=environment
        )
        with self._instantiate(config) as guest:
            guest.use_memory(guest.export(abi.MEMORY))
            try:
                entrypoint = guest.export(self.executor.entrypoint.encode())
                await guest.call(entrypoint, results=0)
            except GuestExit as exc:
                if exc.status != 0:
                    raise
        if overflow:
            raise WagiError(f"the output exceeds {_MAX_WAGI_OUTPUT_BYTES} bytes")
        return parse_cgi_response(bytes(output))

    def _instantiate(self, wasi_config: Any) -> Guest:
        return Guest(
            self.template,
            self.ticker,
            wasi_config=wasi_config,
            max_memory_bytes=self.max_memory_bytes,
        )


def _function_type(type_: Any) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    if not isinstance(type_, wasmtime.FuncType):
        return None
    return tuple(map(str, type_.params)), tuple(map(str, type_.results))


def _check_entrypoint(exports: dict[str, Any], entrypoint: str, name: str) -> None:
    if entrypoint not in exports:
        raise ModuleError(f"{name}: exports no function {entrypoint!r}, the wagi entrypoint")
    if exports[entrypoint] != ((), ()):
        raise ModuleError(f"{name}: the wagi entrypoint {entrypoint!r} takes or returns values")
    if "memory" not in exports:
        raise ModuleError(f"{name}: exports no memory named 'memory'")
