"""A component as the HTTP trigger calls it, by the Spin or the WAGI executor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from containerd_shim_spin_v1.abi import http
from containerd_shim_spin_v1.abi.exports import Handler, check_command, find_handler
from containerd_shim_spin_v1.abi.http import HttpResponse
from containerd_shim_spin_v1.abi.wagi import CgiResponse, WagiError, parse_cgi_response
from containerd_shim_spin_v1.component import LinkedComponent
from containerd_shim_spin_v1.manifest.model import Executor
from containerd_shimkit.wasm.native import GuestExit
from containerd_shimkit.wasm.preview1 import output_callback

_MAX_WAGI_OUTPUT_BYTES: Final = 128 << 20


class HttpComponent:
    """A component and the executor of a trigger."""

    def __init__(self, linked: LinkedComponent, executor: Executor) -> None:
        """Raises ModuleError unless the module fits its executor."""
        self.id = linked.id
        self.executor = executor
        self._linked = linked
        self._handler: Handler | None = None
        if executor.type == "wagi":
            what = "the wagi entrypoint"
            check_command(linked.exports, executor.entrypoint, what, linked.name)
        else:
            self._handler = find_handler(linked.exports, http.HANDLERS, "HTTP", linked.name)

    async def handle(
        self, method: int, uri: bytes, headers: list[bytes], body: bytes, depth: int = 0
    ) -> HttpResponse:
        """Answer a request by the Spin executor; see ``http.handle_request``. Raises GuestError.

        depth: see ``Instance``.
        """
        assert self._handler is not None, "not for the WAGI executor"
        linked = self._linked
        config = linked.wasi.config(linked.stdout, linked.stderr)
        async with linked.start(config, depth) as guest:
            return await http.handle_request(guest, self._handler, method, uri, headers, body)

    async def run_wagi(
        self,
        arguments: Sequence[str],
        environment: Sequence[tuple[str, str]],
        body: bytes,
        depth: int = 0,
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

        linked = self._linked
        stdout = output_callback(collect)
        config = linked.wasi.config(
            stdout, linked.stderr, stdin=body, arguments=arguments, environment=environment
        )
        async with linked.start(config, depth) as guest:
            guest.use_memory(guest.export(http.MEMORY))
            try:
                entrypoint = guest.export(self.executor.entrypoint.encode())
                await guest.call(entrypoint, results=0)
            except GuestExit as exc:
                if exc.status != 0:
                    raise
        if overflow:
            raise WagiError(f"the output exceeds {_MAX_WAGI_OUTPUT_BYTES} bytes")
        return parse_cgi_response(bytes(output))
