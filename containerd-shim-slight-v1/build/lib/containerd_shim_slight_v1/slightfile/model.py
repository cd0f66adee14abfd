"""What a slightfile says, whichever version it is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from containerd_shim_slight_v1.slightfile.resources import HTTP, Resource


@dataclass(frozen=True, slots=True)
class ConfigReference:
    """Where the value of a config is: in a store, or in the slightfile itself."""

    store: str
    """``envvars``, ``usersecrets``, ``azapp``; ``local`` for a value that is written there."""
    key: str
    """In that store; of ``local`` the value."""


@dataclass(frozen=True, slots=True)
class Capability:
    """One of the things an app may use."""

    resource: Resource
    name: str | None
    """What guests open it by; None is any name. In version 0.1 it is the resource's."""
    configs: Mapping[str, ConfigReference] | None
    """None without such a table."""
    where: str
    """``file:line:column: label``, for messages."""


@dataclass(frozen=True, slots=True)
class SlightFile:
    """A slightfile."""

    version: str
    """``0.1`` or ``0.2``."""
    secret_store: str | None
    """Of version 0.1: where all configs are, as ``ConfigReference.store``."""
    secrets: Mapping[str, str]
    """Those of ``secret_settings``, encrypted."""
    capabilities: tuple[Capability, ...]
    warnings: tuple[str, ...] = ()
    """What is of no effect, with its place."""

    @property
    def serves_http(self) -> bool:
        return any(capability.resource.family == HTTP for capability in self.capabilities)

    def find(self, family: str, name: str) -> Capability | None:
        """Return what a guest opens by ``name``, None if the slightfile has no such thing."""
        found = [c for c in self.capabilities if c.resource.family == family]
        for wanted in (name, None):
            for capability in found:
                if capability.name == wanted:
                    return capability
        # In version 0.1 there are no names, and the last of a family is the family's.
        return found[-1] if found and self.version == "0.1" else None

    def config(self, capability: Capability, key: str) -> ConfigReference | None:
        """Return where the value of a capability's config is; None if nothing says it."""
        if self.version == "0.1":
            return None if self.secret_store is None else ConfigReference(self.secret_store, key)
        return (capability.configs or {}).get(key)
