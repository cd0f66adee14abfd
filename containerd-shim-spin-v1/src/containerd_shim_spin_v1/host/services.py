"""The host interfaces of an app: made in the event loop that serves, closed when it ends."""

from __future__ import annotations

from containerd_shim_spin_v1.variables.values import Variables


class Services:
    """Everything that components of the app share."""

    def __init__(self, variables: Variables) -> None:
        self.variables = variables

    async def close(self) -> None:
        """End every connection."""
