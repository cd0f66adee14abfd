"""What all guests of an app share: made in the event loop that serves, closed at its end."""

from __future__ import annotations

from dataclasses import dataclass

from containerd_shim_wws_v1.kv.base import Store
from containerd_shim_wws_v1.outbound.http import OutboundHttp


@dataclass(frozen=True, slots=True)
class Services:
    """See the module."""

    store: Store
    http: OutboundHttp

    async def close(self) -> None:
        """End every connection."""
        await self.http.close()
        await self.store.close()
