"""What one guest has of the host: who it is, where it may connect to, and what it has open."""

from __future__ import annotations

from containerd_shim_spin_v1.host.mqtt import MqttSession
from containerd_shim_spin_v1.host.services import Services
from containerd_shim_spin_v1.manifest.model import Component
from containerd_shim_spin_v1.outbound.access import OutboundAccess


class Instance:
    """Made for each guest, and closed after it."""

    __slots__ = ("_mqtt", "access", "component", "depth", "services")

    def __init__(
        self, component: Component, access: OutboundAccess, services: Services, depth: int = 0
    ) -> None:
        """depth: how many guests wait for this one, by requests that stay in the app."""
        self.component = component
        self.access = access
        self.services = services
        self.depth = depth
        self._mqtt: MqttSession | None = None

    @property
    def component_id(self) -> str:
        return self.component.id

    @property
    def mqtt(self) -> MqttSession:
        if self._mqtt is None:
            self._mqtt = MqttSession(self.services.mqtt, self.access)
        return self._mqtt

    @property
    def has_open(self) -> bool:
        """Whether there is anything to close."""
        return False

    async def close(self) -> None:
        """Close what the guest left open."""
