"""``keyvalue``, in SpiderLightning 0.1 and 0.2 called ``kv``.

Source: SpiderLightning 0.5 wit/keyvalue.wit, 0.2 wit/kv.wit.
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
from containerd_shim_slight_v1.capabilities.instance import Instance
from containerd_shim_slight_v1.capabilities.keyvalue.base import (
    KeyValueBackend,
    KeyValueError,
    OpenStore,
)
from containerd_shim_slight_v1.slightfile.resources import KEYVALUE
from containerd_shimkit.wasm.canonical import BYTES, STRING, U32, List, Result, Variant

_ERROR: Final = Variant(
    key_not_found=STRING,
    invalid_key=STRING,
    invalid_value=STRING,
    connection_error=STRING,
    authentication_error=STRING,
    timeout_error=STRING,
    io_error=STRING,
    unexpected_error=STRING,
)


async def _open(instance: Instance, name: str) -> int:
    backend: KeyValueBackend = instance.services.backend(KEYVALUE, name)
    await backend.open(name)
    return instance.handles.add(OpenStore(backend, name), name)


async def _get(instance: Instance, handle: int, key: str) -> bytes | bytearray:
    store = instance.handles.get(handle, OpenStore)
    return await store.backend.get(store.name, key)


async def _set(instance: Instance, handle: int, key: str, value: bytes) -> None:
    store = instance.handles.get(handle, OpenStore)
    await store.backend.set(store.name, key, value)


async def _keys(instance: Instance, handle: int) -> list[str]:
    store = instance.handles.get(handle, OpenStore)
    return await store.backend.keys(store.name)


async def _delete(instance: Instance, handle: int, key: str) -> None:
    store = instance.handles.get(handle, OpenStore)
    await store.backend.delete(store.name, key)


def _functions(resource: str, error: Variant) -> list[Function]:
    return [
        Function(f"{resource}::open", [STRING], Result(U32, error), _open),
        Function(f"{resource}::get", [U32, STRING], Result(BYTES, error), _get),
        Function(f"{resource}::set", [U32, STRING, BYTES], Result(None, error), _set),
        Function(f"{resource}::keys", [U32], Result(List(STRING), error), _keys),
        Function(f"{resource}::delete", [U32, STRING], Result(None, error), _delete),
    ]


RESOURCES: Final = ("keyvalue", "kv")
INTERFACES: Final = (
    Interface("keyvalue", _functions("keyvalue", _ERROR), error_of(KeyValueError)),
    Interface("kv", _functions("kv", OLD_ERROR), old_error),
)
