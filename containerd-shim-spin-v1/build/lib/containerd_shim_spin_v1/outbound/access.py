"""Permission to connect: asked by every host interface before it looks up a name."""

from __future__ import annotations

from containerd_shim_spin_v1.manifest.model import Component
from containerd_shim_spin_v1.outbound.allowed_hosts import AllowedHosts, denial
from containerd_shim_spin_v1.variables.values import Variables


class DestinationNotAllowedError(Exception):
    """A component may not connect there; the message names the entry its manifest lacks."""


class OutboundAccess:
    """Where one component may connect to."""

    def __init__(self, component: Component, variables: Variables) -> None:
        self.component_id = component.id
        self._component = component
        self._variables = variables
        self._hosts: AllowedHosts | None = None

    async def check(self, scheme: str, host: str, port: int | None = None) -> None:
        """Return if a connection may be made.

        host: as a URL has it.  port: None is the scheme's own.  Raises DestinationNotAllowedError,
        and VariableError if the entries hold variables whose values cannot be had.
        """
        if not (await self._allowed()).allows(scheme, host, port):
            raise DestinationNotAllowedError(
                denial(self.component_id, self._component.hosts_field, scheme, host, port)
            )

    async def check_self(self, *schemes: str) -> None:
        """Return if the component may call its own app; raises as ``check``."""
        if not (await self._allowed()).allows_self(*schemes):
            raise DestinationNotAllowedError(
                denial(self.component_id, self._component.hosts_field, schemes[0], "self", None)
            )

    async def _allowed(self) -> AllowedHosts:
        # Variables are asked for once: who runs an app restarts it to let it connect elsewhere.
        if self._hosts is None:
            self._hosts = await self._variables.allowed_hosts(self._component)
        return self._hosts
