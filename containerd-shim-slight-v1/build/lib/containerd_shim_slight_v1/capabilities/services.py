"""The capabilities of an app: made in the event loop that serves, closed at its end."""

from __future__ import annotations

from typing import Any

from containerd_shim_slight_v1.capabilities.backends import BackendClasses
from containerd_shim_slight_v1.capabilities.configs.base import ConfigsBackend
from containerd_shim_slight_v1.capabilities.context import AppContext, BackendContext
from containerd_shim_slight_v1.capabilities.errors import NoCapabilityError
from containerd_shim_slight_v1.capabilities.http_client.client import HttpClient
from containerd_shim_slight_v1.slightfile.resources import CONFIGS


class Services:
    """Everything that guests of the app share."""

    def __init__(self, app: AppContext, classes: BackendClasses) -> None:
        self._app = app
        self._stores: dict[str, ConfigsBackend] = {
            resource.backend: class_(app)
            for resource, class_ in classes.items()
            if resource.family == CONFIGS
        }
        self._backends = [
            self._stores[capability.resource.backend]
            if capability.resource.family == CONFIGS
            else classes[capability.resource](BackendContext(app, capability, self._stores))
            if capability.resource.backend
            else None
            for capability in app.slightfile.capabilities
        ]

        self.http_client = HttpClient(app)

    def backend(self, family: str, name: str) -> Any:
        """Return what a guest opens by ``name``. Raises NoCapabilityError."""
        found = self._app.slightfile.find(family, name)
        if found is None:
            raise NoCapabilityError(f"slightfile.toml has no {family} capability named {name!r}")
        return self._backends[self._app.slightfile.capabilities.index(found)]

    async def close(self) -> None:
        """End every connection."""
        everything = [*self._stores.values(), *(b for b in self._backends if b is not None)]
        everything.append(self.http_client)
        for backend in {id(each): each for each in everything}.values():
            await backend.close()
