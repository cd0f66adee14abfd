"""What a backend of blobs does, and how it fails: always with ``unexpected-error``.

Objects are read by ranges, each its own request, and all of the same version of the object. What is
written is kept until there is a part's worth of it. A small object is a single request.

Source: SpiderLightning 0.5 wit/{blob-store,blob-types}.wit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.errors import CapabilityError

PART_BYTES: Final = 8 << 20
MAX_PARTS: Final = 10_000
MAX_READ_BYTES: Final = 64 << 20
"""Of one read; whoever asks for more gets so much."""


class BlobError(CapabilityError):
    """A backend could not do what it was asked for."""


class NoContainerError(BlobError):
    """There is no such container."""


class NoObjectError(BlobError):
    """There is no such object."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no object {name!r}")


@dataclass(frozen=True, slots=True)
class ContainerInfo:
    """What is known of a container."""

    name: str
    created_at: int
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is known of an object."""

    name: str
    container: str
    created_at: int
    """Seconds since 1970."""
    size: int
    version: str
    """Changes with the object's content; a header's value."""


class Upload(ABC):
    """An object under way in parts; nobody sees it before ``finish``."""

    @abstractmethod
    async def add(self, part: bytes) -> None:
        """Send the next part; all but the last have ``PART_BYTES``. Raises BlobError."""

    @abstractmethod
    async def finish(self) -> None:
        """Have the parts be the object. Raises BlobError."""

    @abstractmethod
    async def abandon(self) -> None:
        """Leave nothing of it. Raises BlobError."""


class BlobBackend(ABC):
    """All containers of one capability; its module has it under the name ``Backend``.

    Made in the event loop that serves, without any waiting: connections are made when they are
    first needed.
    """

    def __init__(self, context: BackendContext) -> None:
        self.context = context

    @abstractmethod
    async def open(self, container: str) -> None:
        """Check that a container is there. Raises NoContainerError, BlobError."""

    @abstractmethod
    async def container_info(self, container: str) -> ContainerInfo:
        """Raises NoContainerError, BlobError."""

    @abstractmethod
    async def object_info(self, container: str, name: str) -> ObjectInfo:
        """Raises NoObjectError, BlobError."""

    @abstractmethod
    async def list_objects(self, container: str) -> list[str]:
        """Return all names, in no order. Raises BlobError."""

    @abstractmethod
    async def read(self, info: ObjectInfo, start: int, size: int) -> bytes:
        """Return a range that is within the object ``info`` is of. Raises BlobError."""

    @abstractmethod
    async def write(self, container: str, name: str, content: bytes) -> None:
        """Create or replace an object. Raises BlobError."""

    @abstractmethod
    async def begin(self, container: str, name: str) -> Upload:
        """Begin to create or replace an object. Raises BlobError."""

    @abstractmethod
    async def delete(self, container: str, names: Sequence[str]) -> None:
        """Delete objects; one that is not there is no error. Raises BlobError."""

    async def close(self) -> None:
        """End every connection."""
        return
