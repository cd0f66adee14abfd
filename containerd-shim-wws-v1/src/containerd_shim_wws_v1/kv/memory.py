"""Stores in the memory of the process: as upstream, what is kept ends with the container."""

from __future__ import annotations

from collections.abc import Mapping

from containerd_shim_wws_v1.kv.base import Changes, Store, check_size


class MemoryStore(Store):
    """See the module."""

    def __init__(self) -> None:
        self._namespaces: dict[str, dict[str, str]] = {}

    async def read(self, namespace: str) -> Mapping[str, str]:
        return self._namespaces.get(namespace, {})

    async def change(self, namespace: str, changes: Changes) -> None:
        # A new mapping: requests under way compare with the one that they were given.
        values = changes.apply(self._namespaces.get(namespace, {}))
        check_size(namespace, values)
        self._namespaces[namespace] = values

    async def close(self) -> None:
        """Nothing is open."""
