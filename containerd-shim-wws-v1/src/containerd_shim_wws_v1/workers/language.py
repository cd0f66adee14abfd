"""A worker that is a source, run by the engine of its language.

The source is evaluated once, when the app starts, and what has become of the engine's memory is
kept. Each request gets a new instance of the engine with that memory: so it begins where evaluating
ended, and nothing of it is there for the next.
"""

from __future__ import annotations

import struct
from typing import Final

from containerd_shim_wws_v1.contract import MAX_RESPONSE_BYTES, ResponseError
from containerd_shim_wws_v1.services import Services
from containerd_shim_wws_v1.snapshot import Snapshot, SnapshotBudget
from containerd_shim_wws_v1.workers.base import Identity, WorkerFailedError
from containerd_shim_wws_v1.workers.linked import LinkedModule
from containerd_shimkit.errors import ModuleError
from containerd_shimkit.wasm.exports import FunctionType, export_fault
from containerd_shimkit.wasm.guest import Guest
from containerd_shimkit.wasm.native import GuestError
from containerd_shimkit.wasm.preview1 import WasiTemplate
from containerd_shimkit.wasm.running import RunningGuest

INITIALIZE: Final = "_initialize"
ALLOCATE: Final = "allocate"
LOAD: Final = "load"
HANDLE: Final = "handle"
_TYPES: Final[dict[str, FunctionType]] = {
    INITIALIZE: ((), ()),
    ALLOCATE: (("i32",), ("i32",)),
    LOAD: (("i32",) * 4, ("i32",)),
    HANDLE: (("i32",) * 2, ("i32",)),
}
_POINTER_AND_LENGTH: Final = struct.Struct("<II")


class NotLoadedError(GuestError):
    """The worker's source could not be evaluated when the app started."""


class LanguageWorker:
    """See the module."""

    def __init__(
        self,
        identity: Identity,
        engine: LinkedModule,
        wasi: WasiTemplate,
        source: str,
        budget: SnapshotBudget,
    ) -> None:
        """Raises ModuleError unless the module is an engine."""
        for name, type_ in _TYPES.items():
            if (fault := export_fault(engine.exports, name, type_)) is not None:
                raise ModuleError(f"{engine.name}: {fault}: it is no engine")
        self.identity = identity
        self._engine = engine
        self._wasi = wasi
        self._source = source.encode()
        self._budget = budget
        self._snapshot: Snapshot | None = None

    async def load(self, services: Services) -> None:
        """Evaluate the source. Raises GuestError."""
        async with self._start(services) as guest:
            await guest.call(guest.export(INITIALIZE.encode()), results=0)
            name = await _give(guest, self.identity.file.encode())
            source = await _give(guest, self._source)
            if await guest.call(guest.export(LOAD.encode()), *name, *source):
                raise WorkerFailedError("it cannot be evaluated; why is said above")
            async with self._start(services) as fresh:
                self._snapshot = await Snapshot.take(guest.memory(), fresh.memory(), self._budget)

    async def run(self, services: Services, request: bytes) -> bytes:
        """See ``Worker``."""
        if self._snapshot is None:
            raise NotLoadedError("it could not be loaded when the app started")
        async with self._start(services) as guest:
            await self._snapshot.restore(guest)
            given = await _give(guest, request)
            at = await guest.call(guest.export(HANDLE.encode()), *given)
            if not at:
                raise WorkerFailedError("the worker failed; why is said above")
            pointer, length = _POINTER_AND_LENGTH.unpack(guest.read(at, _POINTER_AND_LENGTH.size))
            if length > MAX_RESPONSE_BYTES:
                raise ResponseError(f"the worker gives more than {MAX_RESPONSE_BYTES} bytes")
            return guest.read(pointer, length)

    def _start(self, services: Services) -> RunningGuest:
        identity = self.identity
        config = self._wasi.config(identity.stdout, identity.stderr, stdin=b"")
        return self._engine.start(config, identity.instance(services))


async def _give(guest: Guest, data: bytes) -> tuple[int, int]:
    """Put ``data`` where the guest makes room for it; return place and length."""
    at = await guest.call(guest.export(ALLOCATE.encode()), len(data))
    if not at:
        raise GuestError(f"the engine has no memory for {len(data)} bytes")
    guest.write(at, data)
    return at, len(data)
