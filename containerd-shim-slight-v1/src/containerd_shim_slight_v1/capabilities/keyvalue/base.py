"""What a backend of key-value stores does, and how it fails.

Source: SpiderLightning 0.5 wit/keyvalue.wit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.errors import CapabilityError

MAX_VALUE_BYTES: Final = 128 << 20
"""A backend refuses larger values before they are in memory."""


class KeyValueError(CapabilityError):
    """A store could not do what it was asked for: ``unexpected-error``."""


class KeyNotFoundError(KeyValueError):
    """There is no such key."""

    case = "key-not-found"

    def __init__(self, key: str) -> None:
        super().__init__(f"there is no key {key!r}")


class InvalidKeyError(KeyValueError):
    """No store of this backend can have such a key."""

    case = "invalid-key"


class InvalidValueError(KeyValueError):
    """No store of this backend can have such a value."""

    case = "invalid-value"


class StoreConnectionError(KeyValueError):
    """The server is away."""

    case = "connection-error"


class AuthenticationError(KeyValueError):
    """The server knows no such user, or refuses it."""

    case = "authentication-error"


class StoreTimeoutError(KeyValueError):
    """The server takes too long."""

    case = "timeout-error"


class StoreIoError(KeyValueError):
    """A file or connection fails."""

    case = "io-error"


class KeyValueBackend(ABC):
    """All stores of one capability; its module has it under the name ``Backend``.

    Made in the event loop that serves, without any waiting: connections are made when they are
    first needed.
    """

    def __init__(self, context: BackendContext) -> None:
        self.context = context

    @abstractmethod
    async def open(self, store: str) -> None:
        """Check that a store of this name can be used; it need not exist. Raises KeyValueError."""

    @abstractmethod
    async def get(self, store: str, key: str) -> bytes | bytearray:
        """Return a value. Raises KeyNotFoundError, KeyValueError."""

    @abstractmethod
    async def set(self, store: str, key: str, value: bytes) -> None:
        """Create or replace a value. Raises KeyValueError."""

    @abstractmethod
    async def keys(self, store: str) -> list[str]:
        """Return all keys, in no order. Raises KeyValueError."""

    @abstractmethod
    async def delete(self, store: str, key: str) -> None:
        """Remove a key. Raises KeyNotFoundError, KeyValueError."""

    async def close(self) -> None:
        """End every connection."""
        return


@dataclass(frozen=True, slots=True)
class OpenStore:
    """What a guest has opened."""

    backend: KeyValueBackend
    name: str
