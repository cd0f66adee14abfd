"""``spin-config``: values of the component's variables.

Source: Spin 1.5 wit/ephemeral/spin-config.wit, wit/preview2/config.wit,
crates/config/src/{host_component,lib}.rs; Spin 3.6
wit/deps/spin@2.0.0/variables.wit, crates/factor-variables/src/host.rs.
"""

from __future__ import annotations

from typing import Final

from containerd_shim_spin_v1.abi.imports import Function, Interface
from containerd_shim_spin_v1.host.instance import Instance
from containerd_shim_spin_v1.variables.values import (
    InvalidNameError,
    ProviderError,
    UndefinedVariableError,
    VariableError,
)
from containerd_shimkit.wasm.canonical import STRING, Result, Variant
from containerd_shimkit.wasm.interfaces import CURRENT_REALLOC

_ERROR_V1: Final = Variant(provider=STRING, invalid_key=STRING, invalid_schema=STRING, other=STRING)
_ERROR: Final = Variant(invalid_name=STRING, undefined=STRING, provider=STRING, other=STRING)


async def _get(instance: Instance, name: str) -> str:
    return await instance.services.variables.get(instance.component_id, name)


def _error_v1(exc: Exception) -> tuple[str, str] | None:
    match exc:
        case InvalidNameError():
            return "invalid-key", str(exc)
        case ProviderError():
            return "provider", str(exc)
        case VariableError():  # one that is not there, too; Spin 3 says "provider" for it
            return "other", str(exc)
    return None


def _error(exc: Exception) -> tuple[str, str] | None:
    match exc:
        case InvalidNameError():
            return "invalid-name", str(exc)
        case UndefinedVariableError():
            return "undefined", str(exc)
        case ProviderError():
            return "provider", str(exc)
        case VariableError():
            return "other", str(exc)
    return None


INTERFACES: Final = (
    Interface(
        "spin-config",
        [Function("get-config", [STRING], Result(STRING, _ERROR_V1), _get)],
        _error_v1,
    ),
    Interface(
        "fermyon:spin/config",
        [Function("get-config", [STRING], Result(STRING, _ERROR_V1), _get)],
        _error_v1,
        CURRENT_REALLOC,
    ),
    Interface(
        "fermyon:spin/variables@2.0.0",
        [Function("get", [STRING], Result(STRING, _ERROR), _get)],
        _error,
        CURRENT_REALLOC,
    ),
)
