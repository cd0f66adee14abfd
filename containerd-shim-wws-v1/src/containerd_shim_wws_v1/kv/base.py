"""What a store is, whatever keeps it.

A worker gets a copy of its namespace, and gives a new one with its response. What is different in
it is written, if the worker succeeds: so two workers at once lose nothing of each other unless they
change the same key, of which the later writes. Upstream has the later replace everything.

Source: wasm-workers-server 1.7 crates/data-kv/src, crates/server/src/handlers/worker.rs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from containerd_shimkit.errors import EngineError

MAX_NAMESPACE_BYTES: Final = 16 << 20
"""Of keys and values together, in UTF-8: all of them are given to each request."""
MAX_KEYS: Final = 100_000


class StoreError(EngineError):
    """A store cannot be read or written; the message names its namespace."""


class StoreFullError(StoreError):
    """A namespace would hold more than it may."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a worker does to its namespace."""

    written: dict[str, str] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.written or self.removed)

    def apply(self, values: Mapping[str, str]) -> dict[str, str]:
        """Return values with the changes made."""
        changed = dict(values)
        for key in self.removed:
            changed.pop(key, None)
        changed.update(self.written)
        return changed


class Store(ABC):
    """All namespaces. Made in the event loop that serves."""

    @abstractmethod
    async def read(self, namespace: str) -> Mapping[str, str]:
        """Return a namespace's values, which the caller does not change. Raises StoreError."""

    @abstractmethod
    async def change(self, namespace: str, changes: Changes) -> None:
        """Write and remove values. Raises StoreError, StoreFullError."""

    @abstractmethod
    async def close(self) -> None:
        """End every connection."""


def changes_between(before: Mapping[str, str], after: Mapping[str, str]) -> Changes:
    """Return what makes one of the other."""
    written = {key: value for key, value in after.items() if before.get(key) != value}
    return Changes(written, frozenset(before.keys() - after.keys()))


def check_size(namespace: str, values: Mapping[str, str], times: int = 1) -> None:
    """Raise StoreFullError if a namespace may not hold these values.

    times: what it may hold, where more is borne.
    """
    most_keys, most_bytes = MAX_KEYS * times, MAX_NAMESPACE_BYTES * times
    if len(values) > most_keys:
        raise StoreFullError(f"the store {namespace!r} would have more than {most_keys} keys")
    size = sum(
        len(text) if text.isascii() else len(text.encode(errors="replace"))
        for pair in values.items()
        for text in pair
    )
    if size > most_bytes:
        raise StoreFullError(f"the store {namespace!r} would have more than {most_bytes} bytes")
