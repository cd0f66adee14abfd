"""``configs``. The error of SpiderLightning 0.2 has one case, which here is ``not-found``.

Source: SpiderLightning 0.5 wit/configs.wit.
"""

from __future__ import annotations

from typing import Final

from containerd_shim_slight_v1.abi.imports import Function, Interface, error_of
from containerd_shim_slight_v1.capabilities.configs.base import ConfigsError, OpenConfigs
from containerd_shim_slight_v1.capabilities.instance import Instance
from containerd_shim_slight_v1.slightfile.resources import CONFIGS
from containerd_shimkit.wasm.canonical import BYTES, STRING, U32, Result, Variant

_ERROR: Final = Variant(
    not_found=STRING,
    invalid_value=STRING,
    permission_denied=STRING,
    io_error=STRING,
    unexpected_error=STRING,
)


async def _open(instance: Instance, name: str) -> int:
    return instance.handles.add(OpenConfigs(instance.services.backend(CONFIGS, name)))


async def _get(instance: Instance, handle: int, key: str) -> bytes:
    return await instance.handles.get(handle, OpenConfigs).backend.get(key)


async def _set(instance: Instance, handle: int, key: str, value: bytes) -> None:
    await instance.handles.get(handle, OpenConfigs).backend.set(key, value)


RESOURCES: Final = ("configs",)
INTERFACES: Final = (
    Interface(
        "configs",
        [
            Function("configs::open", [STRING], Result(U32, _ERROR), _open),
            Function("configs::get", [U32, STRING], Result(BYTES, _ERROR), _get),
            Function("configs::set", [U32, STRING, BYTES], Result(None, _ERROR), _set),
        ],
        error_of(ConfigsError),
    ),
)
