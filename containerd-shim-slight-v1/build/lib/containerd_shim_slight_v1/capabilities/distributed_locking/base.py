"""What a backend of distributed locks does, and how it fails.

Source: SpiderLightning 0.5 wit/distributed-locking.wit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.errors import CapabilityError


class LockingError(CapabilityError):
    """A lock could not be taken or given back: ``unexpected-error``."""


class LockAcquireError(LockingError):
    """The server does not give the lock."""

    case = "lock-acquire-error"


class LockReleaseError(LockingError):
    """The server does not take the lock back."""

    case = "lock-release-error"


class LockConnectionError(LockingError):
    """The server is away."""

    case = "connection-error"


class LockProtocolError(LockingError):
    """The server answers something else."""

    case = "protocol-error"


class InvalidLockError(LockingError):
    """There is no such lock, or not any more."""

    case = "invalid-lock-id"


class LockingBackend(ABC):
    """The locks of one capability; its module has it under the name ``Backend``.

    Made in the event loop that serves, without any waiting: connections are made when they are
    first needed.
    """

    def __init__(self, context: BackendContext) -> None:
        self.context = context

    @abstractmethod
    async def lock(self, name: bytes, seconds: int | None = None) -> bytes:
        """Wait for a lock and return its key. Cancelled, it leaves none.

        seconds: how long it is kept at most; None is the backend's choice.  Raises LockingError.
        """

    @abstractmethod
    async def unlock(self, key: bytes) -> None:
        """Give a lock back. Raises InvalidLockError, LockingError."""

    async def close(self) -> None:
        """End every connection. Locks are kept for their time."""
        return


@dataclass(frozen=True, slots=True)
class OpenLocks:
    """What a guest has opened."""

    backend: LockingBackend
