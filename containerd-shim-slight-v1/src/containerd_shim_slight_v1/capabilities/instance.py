"""What one guest has of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from containerd_shim_slight_v1.capabilities.blobstore.streams import WriteStream
from containerd_shim_slight_v1.capabilities.handles import HandleTable
from containerd_shim_slight_v1.capabilities.messaging.base import Holder
from containerd_shim_slight_v1.capabilities.services import Services

if TYPE_CHECKING:
    from containerd_shim_slight_v1.http.servers import Servers


class Instance:
    """Made for each guest, and closed after it."""

    __slots__ = ("handles", "servers", "services")

    def __init__(self, services: Services, servers: Servers | None = None) -> None:
        """servers: only of the guest that sets an app with HTTP up."""
        self.services = services
        self.servers = servers
        self.handles = HandleTable()

    @property
    def has_open(self) -> bool:
        """Whether there is anything to close."""
        return len(self.handles) > 0

    def give_up(self) -> None:
        """Be told that the guest has failed, or is cut off: it has not done what it was about."""
        for stream in self.handles.each(WriteStream):
            stream.give_up()
        for holder in self.handles.each(Holder):
            holder.give_up()

    async def close(self) -> None:
        """Close what the guest left open."""
        await self.handles.close()
