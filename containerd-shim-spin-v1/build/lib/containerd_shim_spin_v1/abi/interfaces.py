"""Every interface that guests may import, by the name of its module."""

from __future__ import annotations

from typing import Final

from containerd_shim_spin_v1.abi import (
    key_value,
    llm,
    mqtt,
    mysql,
    outbound_http,
    postgres,
    redis,
    sqlite,
    variables,
)
from containerd_shim_spin_v1.abi.imports import Interface

_KINDS: Final = (
    *(key_value, llm, mqtt, mysql, outbound_http),
    *(postgres, redis, sqlite, variables),
)

INTERFACES: Final[dict[str, Interface]] = {
    interface.module: interface for kind in _KINDS for interface in kind.INTERFACES
}
