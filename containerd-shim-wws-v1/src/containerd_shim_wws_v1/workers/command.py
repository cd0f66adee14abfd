"""A worker that is a program: the request on its standard input, the response on its output."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from containerd_shim_wws_v1.contract import MAX_RESPONSE_BYTES, ResponseError
from containerd_shim_wws_v1.services import Services
from containerd_shim_wws_v1.workers.base import Identity
from containerd_shim_wws_v1.workers.linked import LinkedModule
from containerd_shimkit.errors import ModuleError
from containerd_shimkit.wasm.exports import FunctionType, export_fault
from containerd_shimkit.wasm.guest import Guest
from containerd_shimkit.wasm.native import GuestExit
from containerd_shimkit.wasm.preview1 import WasiTemplate, output_callback

ENTRYPOINT: Final = "_start"
_TYPE: Final[FunctionType] = ((), ())


class CommandWorker:
    """See the module."""

    def __init__(self, identity: Identity, linked: LinkedModule, wasi: WasiTemplate) -> None:
        """Raises ModuleError unless the module is a program."""
        fault = export_fault(linked.exports, ENTRYPOINT, _TYPE)
        if fault is not None:
            raise ModuleError(f"{linked.name}: {fault}: a worker is a WASI command")
        self.identity = identity
        self._linked = linked
        self._wasi = wasi

    async def load(self, services: Services) -> None:
        """Nothing is to be done."""

    async def run(self, services: Services, request: bytes) -> bytes:
        """See ``Worker``."""
        output = _Output()
        stdout = output_callback(output.write)
        config = self._wasi.config(stdout, self.identity.stderr, stdin=request)
        running = self._linked.start(config, self.identity.instance(services))
        async with running as guest, output:
            await _call(guest)
        return bytes(output.data)


async def _call(guest: Guest) -> None:
    try:
        await guest.call(guest.export(ENTRYPOINT.encode()), results=0)
    except GuestExit as exc:
        if exc.status != 0:
            raise


class _Output:
    """What a guest writes; one that writes too much is ended at its next turn."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._task = asyncio.current_task()
        self._overflow = False

    def write(self, data: bytes) -> None:
        if self._overflow:
            return
        if len(self.data) + len(data) > MAX_RESPONSE_BYTES:
            self._overflow = True
            assert self._task is not None, "outside of a task"
            self._task.cancel()
            return
        self.data += data

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._overflow:
            return
        assert self._task is not None, "outside of a task"
        if kind is None:  # the guest has ended before it could be
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        # Somebody else may have cancelled the task as well: then that is what happens.
        if self._task.uncancel():
            raise asyncio.CancelledError
        raise ResponseError(f"the worker writes more than {MAX_RESPONSE_BYTES} bytes") from None
