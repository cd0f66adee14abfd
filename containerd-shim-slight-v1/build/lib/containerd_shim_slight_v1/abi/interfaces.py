"""Every interface that guests may import, by the name of its module."""

from __future__ import annotations

from typing import Final

from containerd_shim_slight_v1.abi import (
    blobstore,
    configs,
    distributed_locking,
    http_client,
    http_server,
    keyvalue,
    messaging,
    sql,
)
from containerd_shim_slight_v1.abi.imports import Interface, handle_functions

_KINDS: Final = (
    *(blobstore, configs, distributed_locking, http_client, http_server),
    *(keyvalue, messaging, sql),
)

INTERFACES: Final[dict[str, Interface]] = {
    interface.module: interface for kind in _KINDS for interface in kind.INTERFACES
}
_HANDLES: Final = handle_functions(name for kind in _KINDS for name in kind.RESOURCES)
INTERFACES[_HANDLES.module] = _HANDLES
