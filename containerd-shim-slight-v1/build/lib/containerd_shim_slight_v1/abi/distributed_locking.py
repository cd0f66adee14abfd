"""``distributed-locking``, in SpiderLightning 0.1 and 0.2 called ``lockd``.

Source: SpiderLightning 0.5 wit/distributed-locking.wit, 0.2 wit/lockd.wit.
"""

from __future__ import annotations

from typing import Final

from containerd_shim_slight_v1.abi.imports import (
    OLD_ERROR,
    Function,
    Interface,
    error_of,
    old_error,
)
from containerd_shim_slight_v1.capabilities.distributed_locking.base import (
    LockingError,
    OpenLocks,
)
from containerd_shim_slight_v1.capabilities.instance import Instance
from containerd_shim_slight_v1.slightfile.resources import DISTRIBUTED_LOCKING
from containerd_shimkit.wasm.canonical import BYTES, S64, STRING, U32, Result, Variant

_ERROR: Final = Variant(
    lock_acquire_error=STRING,
    lock_release_error=STRING,
    lock_timeout_error=STRING,
    connection_error=STRING,
    protocol_error=STRING,
    invalid_lock_id=STRING,
    unexpected_error=STRING,
)


async def _open(instance: Instance, name: str) -> int:
    return instance.handles.add(OpenLocks(instance.services.backend(DISTRIBUTED_LOCKING, name)))


async def _lock(instance: Instance, handle: int, name: bytes) -> bytes:
    return await instance.handles.get(handle, OpenLocks).backend.lock(name)


async def _lock_for(instance: Instance, handle: int, name: bytes, seconds: int) -> bytes:
    return await instance.handles.get(handle, OpenLocks).backend.lock(name, seconds)


async def _unlock(instance: Instance, handle: int, key: bytes) -> None:
    await instance.handles.get(handle, OpenLocks).backend.unlock(key)


def _functions(resource: str, error: Variant) -> list[Function]:
    key = Result(BYTES, error)
    return [
        Function(f"{resource}::open", [STRING], Result(U32, error), _open),
        Function(f"{resource}::lock", [U32, BYTES], key, _lock),
        Function(f"{resource}::lock-with-time-to-live", [U32, BYTES, S64], key, _lock_for),
        Function(f"{resource}::unlock", [U32, BYTES], Result(None, error), _unlock),
    ]


RESOURCES: Final = ("distributed-locking", "lockd")
INTERFACES: Final = (
    Interface(
        "distributed-locking", _functions("distributed-locking", _ERROR), error_of(LockingError)
    ),
    Interface("lockd", _functions("lockd", OLD_ERROR), old_error),
)
