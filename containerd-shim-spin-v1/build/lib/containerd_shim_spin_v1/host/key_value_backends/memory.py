"""Stores in memory: each process that serves the app has its own, and it is gone with that."""

from __future__ import annotations

from typing import Final

from containerd_shim_spin_v1.host.key_value_backends.base import (
    KEY_BYTES,
    MAX_RESULT_BYTES,
    StoreError,
    too_large,
)

MAX_BYTES: Final = 128 << 20
"""Of all keys and values: a guest must not fill the container's memory, which others share."""
_ENTRY_BYTES: Final = 256  # what Python needs beside them, about


class MemoryStore:
    """See ``base.Store``."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._values: dict[str, bytes] = {}
        self._bytes = 0

    async def get(self, key: str) -> bytes | None:
        """See ``Store``."""
        return self._values.get(key)

    async def set(self, key: str, value: bytes) -> None:
        """See ``Store``."""
        more = _size(key, value)
        if (old := self._values.get(key)) is not None:
            more -= _size(key, old)
        if self._bytes + more > MAX_BYTES:
            raise StoreError(
                f"key-value store {self._label!r} is full: in memory it holds {MAX_BYTES} bytes"
            )
        self._values[key] = value
        self._bytes += more

    async def delete(self, key: str) -> None:
        """See ``Store``."""
        if (old := self._values.pop(key, None)) is not None:
            self._bytes -= _size(key, old)

    async def exists(self, key: str) -> bool:
        """See ``Store``."""
        return key in self._values

    async def get_keys(self) -> list[str]:
        """See ``Store``."""
        if sum(len(key.encode()) + KEY_BYTES for key in self._values) > MAX_RESULT_BYTES:
            raise too_large(self._label)
        return list(self._values)

    async def close(self) -> None:
        """See ``Store``."""
        self._values.clear()
        self._bytes = 0


def _size(key: str, value: bytes) -> int:
    return len(key.encode()) + len(value) + _ENTRY_BYTES
