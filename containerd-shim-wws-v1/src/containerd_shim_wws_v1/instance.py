"""What one guest has of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from containerd_shim_wws_v1.project.worker_config import HttpRequests

if TYPE_CHECKING:
    from containerd_shim_wws_v1.services import Services


class Instance:
    """Made for each guest."""

    __slots__ = ("http", "services", "worker")

    has_open: ClassVar[bool] = False

    def __init__(self, services: Services, worker: str, http: HttpRequests) -> None:
        """worker: what messages call it.  http: the requests that it may make."""
        self.services = services
        self.worker = worker
        self.http = http

    async def close(self) -> None:
        """A guest leaves nothing open."""
