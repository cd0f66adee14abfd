"""``mqtt``: publishing messages.

Source: Spin 3.6 wit/deps/spin@2.0.0/mqtt.wit, crates/factor-outbound-mqtt/src/host.rs.
"""

from __future__ import annotations

from typing import Final

from containerd_shim_spin_v1.abi.imports import Function, Interface
from containerd_shim_spin_v1.host.instance import Instance
from containerd_shim_spin_v1.host.mqtt import (
    ConnectionFailedError,
    InvalidAddressError,
    MqttError,
    TooManyConnectionsError,
)
from containerd_shim_spin_v1.outbound.access import DestinationNotAllowedError
from containerd_shim_spin_v1.variables.values import VariableError
from containerd_shimkit.mqtt.packets import Qos
from containerd_shimkit.wasm.canonical import (
    BYTES,
    STRING,
    U32,
    U64,
    Enum,
    Result,
    Variant,
)
from containerd_shimkit.wasm.interfaces import CURRENT_REALLOC

_QOS: Final = {
    "at-most-once": Qos.AT_MOST_ONCE,
    "at-least-once": Qos.AT_LEAST_ONCE,
    "exactly-once": Qos.EXACTLY_ONCE,
}
_ERROR: Final = Variant(
    invalid_address=None, too_many_connections=None, connection_failed=STRING, other=STRING
)


async def _open(
    instance: Instance, address: str, username: str, password: str, keep_alive_seconds: int
) -> int:
    return await instance.mqtt.open(address, username, password, keep_alive_seconds)


async def _publish(instance: Instance, handle: int, topic: str, payload: bytes, qos: str) -> None:
    await instance.mqtt.publish(handle, topic, payload, _QOS[qos])


async def _drop(instance: Instance, handle: int) -> None:
    instance.mqtt.drop(handle)


def _error(exc: Exception) -> tuple[str, str | None] | None:
    match exc:
        case InvalidAddressError():
            return "invalid-address", None
        case TooManyConnectionsError():
            return "too-many-connections", None
        case ConnectionFailedError() | DestinationNotAllowedError():
            return "connection-failed", str(exc)
        case MqttError() | VariableError():
            return "other", str(exc)
    return None


INTERFACES: Final = (
    Interface(
        "fermyon:spin/mqtt@2.0.0",
        [
            Function(
                "[static]connection.open", [STRING, STRING, STRING, U64], Result(U32, _ERROR), _open
            ),
            Function(
                "[method]connection.publish",
                [U32, STRING, BYTES, Enum(*_QOS)],
                Result(None, _ERROR),
                _publish,
            ),
            Function("[resource-drop]connection", [U32], None, _drop),
        ],
        _error,
        CURRENT_REALLOC,
    ),
)
