"""``outbound-redis``: commands of Redis servers.

Guests for Spin 1.x name the server's address in each call, those for 2.0 and later have a
connection, which here is a handle.

Source: Spin 1.5 wit/ephemeral/outbound-redis.wit, wit/preview2/redis.wit; Spin 3.6
wit/deps/spin@2.0.0/redis.wit, crates/factor-outbound-redis/src/host.rs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from containerd_shim_spin_v1.abi.imports import Function, Interface
from containerd_shim_spin_v1.host.instance import Instance
from containerd_shim_spin_v1.host.redis import (
    InvalidAddressError,
    RedisCallError,
    RedisResult,
    TooManyConnectionsError,
    Where,
    WrongTypeError,
)
from containerd_shim_spin_v1.outbound.access import DestinationNotAllowedError
from containerd_shim_spin_v1.variables.values import VariableError
from containerd_shimkit.http_client.networks import BlockedNetworkError
from containerd_shimkit.redis_client.protocol import Status
from containerd_shimkit.turns import map_in_turns
from containerd_shimkit.wasm.canonical import (
    BYTES,
    S64,
    STRING,
    U32,
    Enum,
    List,
    Option,
    Result,
    Type,
    Variant,
)
from containerd_shimkit.wasm.interfaces import CURRENT_REALLOC

_ERROR_V1: Final = Enum("success", "error")
_ERROR: Final = Variant(
    invalid_address=None, too_many_connections=None, type_error=None, other=STRING
)
_PARAMETER: Final = Variant(int64=S64, binary=BYTES)
_RESULT: Final = Variant(nil=None, status=STRING, int64=S64, binary=BYTES)


async def _publish(instance: Instance, where: Where, channel: str, payload: bytes) -> None:
    await instance.redis.publish(where, channel, payload)


async def _get(instance: Instance, where: Where, key: str) -> bytes | None:
    return await instance.redis.get(where, key)


async def _get_v1(instance: Instance, where: Where, key: str) -> bytes:
    return await instance.redis.get(where, key) or b""


async def _set(instance: Instance, where: Where, key: str, value: bytes) -> None:
    await instance.redis.set(where, key, value)


async def _incr(instance: Instance, where: Where, key: str) -> int:
    return await instance.redis.incr(where, key)


async def _del(instance: Instance, where: Where, keys: list[str]) -> int:
    return await instance.redis.delete(where, keys)


async def _sadd(instance: Instance, where: Where, key: str, values: list[str]) -> int:
    return await instance.redis.sadd(where, key, values)


async def _smembers(instance: Instance, where: Where, key: str) -> list[str]:
    return await instance.redis.smembers(where, key)


async def _srem(instance: Instance, where: Where, key: str, values: list[str]) -> int:
    return await instance.redis.srem(where, key, values)


async def _execute(
    instance: Instance, where: Where, command: str, arguments: Sequence[tuple[str, Any]]
) -> list[tuple[str, Any]]:
    words = [value for _, value in arguments]
    return await map_in_turns(_result, await instance.redis.execute(where, command, words))


def _result(value: RedisResult) -> tuple[str, Any]:
    match value:
        case None:
            return "nil", None
        case Status(text):
            return "status", text.decode(errors="replace")
        case int():
            return "int64", value
    return "binary", value


async def _open(instance: Instance, address: str) -> int:
    return await instance.redis.open(address)


async def _drop(instance: Instance, handle: int) -> None:
    instance.redis.drop(handle)


def _error_v1(exc: Exception) -> str | None:
    match exc:
        case (
            RedisCallError()
            | DestinationNotAllowedError()
            | BlockedNetworkError()
            | VariableError()
        ):
            return "error"
    return None


def _error(exc: Exception) -> tuple[str, str | None] | None:
    match exc:
        case InvalidAddressError() | DestinationNotAllowedError():
            return "invalid-address", None
        case TooManyConnectionsError():
            return "too-many-connections", None
        case WrongTypeError():
            return "type-error", None
        case RedisCallError() | BlockedNetworkError() | VariableError():
            return "other", str(exc)
    return None


_Call = Callable[..., Awaitable[Any]]


def _functions_v1() -> list[Function]:
    strings = List(STRING)

    def function(name: str, call: _Call, parameters: Sequence[Type], ok: Type | None) -> Function:
        return Function(name, [STRING, *parameters], Result(ok, _ERROR_V1), call)

    return [
        function("publish", _publish, [STRING, BYTES], None),
        function("get", _get_v1, [STRING], BYTES),
        function("set", _set, [STRING, BYTES], None),
        function("incr", _incr, [STRING], S64),
        function("del", _del, [strings], S64),
        function("sadd", _sadd, [STRING, strings], S64),
        function("smembers", _smembers, [STRING], strings),
        function("srem", _srem, [STRING, strings], S64),
        function("execute", _execute, [STRING, List(_PARAMETER)], List(_RESULT)),
    ]


def _functions() -> list[Function]:
    strings = List(STRING)

    def method(name: str, call: _Call, parameters: Sequence[Type], ok: Type | None) -> Function:
        full_name = f"[method]connection.{name}"
        return Function(full_name, [U32, *parameters], Result(ok, _ERROR), call)

    return [
        Function("[static]connection.open", [STRING], Result(U32, _ERROR), _open),
        method("publish", _publish, [STRING, BYTES], None),
        method("get", _get, [STRING], Option(BYTES)),
        method("set", _set, [STRING, BYTES], None),
        method("incr", _incr, [STRING], S64),
        method("del", _del, [strings], U32),
        method("sadd", _sadd, [STRING, strings], U32),
        method("smembers", _smembers, [STRING], strings),
        method("srem", _srem, [STRING, strings], U32),
        method("execute", _execute, [STRING, List(_PARAMETER)], List(_RESULT)),
        Function("[resource-drop]connection", [U32], None, _drop),
    ]


INTERFACES: Final = (
    Interface("outbound-redis", _functions_v1(), _error_v1),
    Interface("fermyon:spin/redis", _functions_v1(), _error_v1, CURRENT_REALLOC),
    Interface("fermyon:spin/redis@2.0.0", _functions(), _error, CURRENT_REALLOC),
)
