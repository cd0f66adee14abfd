"""What a store does, whatever it is kept in.

Source: Spin 3.6 crates/factor-key-value/src/host.rs.
"""

from __future__ import annotations

from typing import Final, Protocol

MAX_RESULT_BYTES: Final = 128 << 20  # Spin: MAX_HOST_BUFFERED_BYTES
KEY_BYTES: Final = 24
"""What a key of a list counts beside its bytes, as in Spin."""


class StoreError(Exception):
    """A store could not do what it was asked; the message is for the guest and names the store.

    The interface calls it ``io``, or ``other`` in later versions.
    """


class Store(Protocol):
    """One store. Every function but ``close`` raises StoreError."""

    async def get(self, key: str) -> bytes | None:
        """Return the value of a key; None if it has none."""

    async def set(self, key: str, value: bytes) -> None:
        """Set the value of a key, whatever it was."""

    async def delete(self, key: str) -> None:
        """Remove a key; it need not be there."""

    async def exists(self, key: str) -> bool:
        """Return whether a key has a value."""

    async def get_keys(self) -> list[str]:
        """Return all keys, in no order."""

    async def close(self) -> None:
        """Give back what the store has open; it is used no more."""


def too_large(label: str) -> StoreError:
    """Return the error for a result that would be."""
    return StoreError(
        f"key-value store {label!r}: the result exceeds the limit of {MAX_RESULT_BYTES} bytes"
    )
