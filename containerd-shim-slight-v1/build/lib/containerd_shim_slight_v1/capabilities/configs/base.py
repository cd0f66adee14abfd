"""What a store of configs does, and how it fails.

Source: SpiderLightning 0.5 wit/configs.wit, crates/runtime-configs/src/lib.rs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from containerd_shim_slight_v1.capabilities.context import AppContext
from containerd_shim_slight_v1.capabilities.errors import CapabilityError


class ConfigsError(CapabilityError):
    """A store could not do what it was asked for: ``unexpected-error``."""


class ConfigNotFoundError(ConfigsError):
    """There is no such config."""

    case = "not-found"

    def __init__(self, key: str) -> None:
        super().__init__(f"there is no config {key!r}")


class InvalidConfigError(ConfigsError):
    """A key or value that the store cannot have."""

    case = "invalid-value"


class PermissionDeniedError(ConfigsError):
    """The store refuses it."""

    case = "permission-denied"


class ConfigsIoError(ConfigsError):
    """The store is away, or a file cannot be read."""

    case = "io-error"


class ConfigsBackend(ABC):
    """A store of configs; its module has it under the name ``Backend``.

    An app has at most one of a kind, which serves guests and the configs of other capabilities.
    """

    def __init__(self, app: AppContext) -> None:
        self.app = app

    @abstractmethod
    async def get(self, key: str) -> bytes:
        """Return a value. Raises ConfigNotFoundError, ConfigsError."""

    @abstractmethod
    async def set(self, key: str, value: bytes) -> None:
        """Create or replace a value. Raises ConfigsError."""

    async def close(self) -> None:
        """End every connection."""
        return


@dataclass(frozen=True, slots=True)
class OpenConfigs:
    """What a guest has opened."""

    backend: ConfigsBackend
