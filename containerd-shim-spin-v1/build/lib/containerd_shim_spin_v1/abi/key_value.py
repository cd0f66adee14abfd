"""``key-value``: stores of keys and values.

Source: Spin 1.5 wit/ephemeral/key-value.wit, wit/preview2/key-value.wit; Spin 3.6
wit/deps/spin@2.0.0/key-value.wit, crates/factor-key-value/src/host.rs.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from containerd_shim_spin_v1.abi.imports import Function, Interface
from containerd_shim_spin_v1.host.instance import Instance
from containerd_shim_spin_v1.host.key_value import (
    AccessDeniedError,
    InvalidStoreError,
    NoSuchStoreError,
    StoreTableFullError,
)
from containerd_shim_spin_v1.host.key_value_backends.base import StoreError
from containerd_shimkit.wasm.canonical import (
    BOOL,
    BYTES,
    STRING,
    U32,
    AbiError,
    List,
    Option,
    Result,
    Type,
    Variant,
)
from containerd_shimkit.wasm.interfaces import CURRENT_REALLOC

_ERROR_V1: Final = Variant(
    store_table_full=None,
    no_such_store=None,
    access_denied=None,
    invalid_store=None,
    no_such_key=None,
    io=STRING,
)
_ERROR: Final = Variant(store_table_full=None, no_such_store=None, access_denied=None, other=STRING)

log = logging.getLogger(__name__)


class NoSuchKeyError(Exception):
    """A key has no value, which is an error for guests of Spin 1.x."""


async def _open(instance: Instance, label: str) -> int:
    try:
        return await instance.key_value.open(label)
    except AccessDeniedError as exc:
        # The guest's error has no room for it, and whoever runs the app is to see it.
        log.warning("component %r: key-value.open: %s", instance.component_id, exc)
        raise


async def _get_v1(instance: Instance, handle: int, key: str) -> bytes:
    value = await instance.key_value.get(handle, key)
    if value is None:
        raise NoSuchKeyError
    return value


async def _get(instance: Instance, handle: int, key: str) -> bytes | None:
    return await instance.key_value.get(handle, key)


async def _set(instance: Instance, handle: int, key: str, value: bytes) -> None:
    await instance.key_value.set(handle, key, value)


async def _delete(instance: Instance, handle: int, key: str) -> None:
    await instance.key_value.delete(handle, key)


async def _exists(instance: Instance, handle: int, key: str) -> bool:
    return await instance.key_value.exists(handle, key)


async def _get_keys(instance: Instance, handle: int) -> list[str]:
    return await instance.key_value.get_keys(handle)


async def _close(instance: Instance, handle: int) -> None:
    instance.key_value.close(handle)


def _error_v1(exc: Exception) -> tuple[str, str | None] | None:
    match exc:
        case StoreTableFullError():
            return "store-table-full", None
        case NoSuchStoreError():
            return "no-such-store", None
        case AccessDeniedError():
            return "access-denied", None
        case InvalidStoreError():
            return "invalid-store", None
        case NoSuchKeyError():
            return "no-such-key", None
        case StoreError():
            return "io", str(exc)
    return None


def _error(exc: Exception) -> tuple[str, str | None] | None:
    match exc:
        case StoreTableFullError():
            return "store-table-full", None
        case NoSuchStoreError():
            return "no-such-store", None
        case AccessDeniedError():
            return "access-denied", None
        case StoreError():
            return "other", str(exc)
        case InvalidStoreError():
            # The handle of a resource, which the guest's own code never makes up.
            raise AbiError(str(exc)) from exc
    return None


_Call = Callable[..., Awaitable[Any]]


def _functions_v1() -> list[Function]:
    def function(name: str, call: _Call, parameters: Sequence[Type], ok: Type | None) -> Function:
        return Function(name, [U32, *parameters], Result(ok, _ERROR_V1), call)

    return [
        Function("open", [STRING], Result(U32, _ERROR_V1), _open),
        function("get", _get_v1, [STRING], BYTES),
        function("set", _set, [STRING, BYTES], None),
        function("delete", _delete, [STRING], None),
        function("exists", _exists, [STRING], BOOL),
        function("get-keys", _get_keys, [], List(STRING)),
        Function("close", [U32], None, _close),
    ]


def _functions() -> list[Function]:
    def method(name: str, call: _Call, parameters: Sequence[Type], ok: Type | None) -> Function:
        return Function(f"[method]store.{name}", [U32, *parameters], Result(ok, _ERROR), call)

    return [
        Function("[static]store.open", [STRING], Result(U32, _ERROR), _open),
        method("get", _get, [STRING], Option(BYTES)),
        method("set", _set, [STRING, BYTES], None),
        method("delete", _delete, [STRING], None),
        method("exists", _exists, [STRING], BOOL),
        method("get-keys", _get_keys, [], List(STRING)),
        Function("[resource-drop]store", [U32], None, _close),
    ]


INTERFACES: Final = (
    Interface("key-value", _functions_v1(), _error_v1),
    Interface("fermyon:spin/key-value", _functions_v1(), _error_v1, CURRENT_REALLOC),
    Interface("fermyon:spin/key-value@2.0.0", _functions(), _error, CURRENT_REALLOC),
)
