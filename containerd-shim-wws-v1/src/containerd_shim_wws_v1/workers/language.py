"""A worker that is a source, run by the engine of its language.

The source is evaluated once, when the app starts, and what has become of the engine's memory is
kept. Each request gets a new instance of the engine with that memory: so it begins where evaluating
ended, and nothing of it is there for the next.

The engine itself is started once for all workers that have the same environment and directories.
That saves each the time, and most of the memory: in Python each start draws another seed of hashes,
and whatever holds a name is different then.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Final

from containerd_shim_wws_v1.contract import MAX_RESPONSE_BYTES, ResponseError
from containerd_shim_wws_v1.services import Services
from containerd_shim_wws_v1.snapshot import Snapshot, SnapshotPages
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


class LanguageEngine:
    """The engine of a language, for workers of the same environment and directories."""

    def __init__(self, linked: LinkedModule, wasi: WasiTemplate, pages: SnapshotPages) -> None:
        """Raises ModuleError unless the module is an engine."""
        for name, type_ in _TYPES.items():
            if (fault := export_fault(linked.exports, name, type_)) is not None:
                raise ModuleError(f"{linked.name}: {fault}: it is no engine")
        self._linked = linked
        self._wasi = wasi
        self._pages = pages
        self._started: Snapshot | None = None
        self._starting = asyncio.Lock()

    def new(self, identity: Identity, services: Services) -> RunningGuest:
        """Return an instance of the module as it is. Raises GuestTrap."""
        config = self._wasi.config(identity.stdout, identity.stderr, stdin=b"")
        return self._linked.start(config, identity.instance(services))

    async def load(self, identity: Identity, services: Services, source: bytes) -> Snapshot:
        """Evaluate a source, return what has become of the memory. Raises GuestError."""
        started = await self._start(identity, services)
        async with self.new(identity, services) as guest:
            await started.restore(guest)
            name = await _give(guest, identity.file.encode())
            given = await _give(guest, source)
            if await guest.call(guest.export(LOAD.encode()), *name, *given):
                raise WorkerFailedError("it cannot be evaluated; why is said above")
            return await self._snapshot(guest, identity, services)

    async def _start(self, identity: Identity, services: Services) -> Snapshot:
        async with self._starting:
            if self._started is None:
                async with self.new(identity, services) as guest:
                    await guest.call(guest.export(INITIALIZE.encode()), results=0)
                    self._started = await self._snapshot(guest, identity, services)
            return self._started

    async def _snapshot(self, guest: Guest, identity: Identity, services: Services) -> Snapshot:
        async with self.new(identity, services) as fresh:
            return await Snapshot.take(guest.memory(), fresh.memory(), self._pages)


class LanguageWorker:
    """See the module."""

    def __init__(self, identity: Identity, engine: LanguageEngine, source: str) -> None:
        self.identity = identity
        self._engine = engine
        self._source = source.encode()
        self._snapshot: Snapshot | None = None

    async def load(self, services: Services) -> None:
        """Evaluate the source. Raises GuestError."""
        self._snapshot = await self._engine.load(self.identity, services, self._source)

    async def run(self, services: Services, request: bytes) -> bytes:
        """See ``Worker``."""
        if self._snapshot is None:
            raise NotLoadedError("it could not be loaded; why was said then")
        async with self._engine.new(self.identity, services) as guest:
            await self._snapshot.restore(guest)
            given = await _give(guest, request)
            at = await guest.call(guest.export(HANDLE.encode()), *given)
            if not at:
                raise WorkerFailedError("the worker failed; why is said above")
            pointer, length = _POINTER_AND_LENGTH.unpack(guest.read(at, _POINTER_AND_LENGTH.size))
            if length > MAX_RESPONSE_BYTES:
                raise ResponseError(f"the worker gives more than {MAX_RESPONSE_BYTES} bytes")
            return guest.read(pointer, length)


async def _give(guest: Guest, data: bytes) -> tuple[int, int]:
    """Put ``data`` where the guest makes room for it; return place and length."""
    at = await guest.call(guest.export(ALLOCATE.encode()), len(data))
    if not at:
        raise GuestError(f"the engine has no memory for {len(data)} bytes")
    guest.write(at, data)
    return at, len(data)
