"""What backends are made of: the app's files and settings, and the configs of one capability."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from containerd_shim_slight_v1.capabilities.errors import CapabilityError
from containerd_shim_slight_v1.slightfile.model import Capability, SlightFile
from containerd_shimkit.tls import TrustedCertificates

_URL: Final = re.compile(
    r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?(/[A-Za-z0-9._/-]*)?"
)


class ConfigValueError(CapabilityError):
    """A config has no value that can be used."""


class ConfigStore(Protocol):
    """What is asked of a store of configs here."""

    async def get(self, key: str) -> bytes:
        """Return a value. Raises CapabilityError."""


@dataclass(frozen=True, slots=True)
class AppContext:
    """What all backends of an app share."""

    slightfile: SlightFile
    environment: dict[str, str]
    """The container's, and what guests have set in it."""
    ca_bundle: int | None
    """See ``RuntimeContext``."""
    certificates: TrustedCertificates = field(init=False, repr=False)
    """Whom connections of backends trust; what guests set later does not change it."""

    def __post_init__(self) -> None:
        certificates = TrustedCertificates(dict(self.environment), ca_bundle=self.ca_bundle)
        object.__setattr__(self, "certificates", certificates)


class BackendContext:
    """What one backend gets."""

    def __init__(
        self, app: AppContext, capability: Capability, stores: Mapping[str, ConfigStore]
    ) -> None:
        """stores: where values of configs are, by ``ConfigReference.store``."""
        self.app = app
        self.capability = capability
        self._stores = stores

    async def value(self, key: str) -> str:
        """Return the value of a config. Raises ConfigValueError."""
        value = await self.optional_value(key)
        if value is None:
            raise ConfigValueError(f"{self.capability.resource.name}: no config named {key!r}")
        return value

    async def optional_value(self, key: str) -> str | None:
        """Return the value of a config, None if the slightfile has none of this name.

        Raises ConfigValueError for one that its store does not have.
        """
        reference = self.app.slightfile.config(self.capability, key)
        if reference is None:
            return None
        if reference.store == "local":
            return reference.key
        what = f"{self.capability.resource.name}: config {key!r} from configs.{reference.store}"
        try:
            data = await self._stores[reference.store].get(reference.key)
            return data.decode()
        except CapabilityError as exc:
            raise ConfigValueError(f"{what}: {exc}") from exc
        except UnicodeDecodeError:
            raise ConfigValueError(f"{what}: its value is not UTF-8") from None

    async def first_value(self, *keys: str) -> str:
        """Return the value of the first of these configs that has one. Raises ConfigValueError."""
        fault = None
        for key in keys:
            try:
                value = await self.optional_value(key)
            except ConfigValueError as exc:
                fault = fault or exc
            else:
                if value is not None:
                    return value
        names = " or ".join(keys)
        raise fault or ConfigValueError(f"{self.capability.resource.name}: no config named {names}")

    async def extra_value(self, key: str) -> str | None:
        """Return a config that upstream does not have: the slightfile's, or the environment's.

        Raises ConfigValueError.
        """
        configs = self.capability.configs or {}
        if key in configs:
            return await self.value(key)
        return self.app.environment.get(key) or None

    async def endpoint(self, key: str) -> str | None:
        """Return the URL that an extra config has, without a slash at the end.

        Raises ConfigValueError.
        """
        text = await self.extra_value(key)
        if text is None:
            return None
        if not _URL.fullmatch(text):
            raise ConfigValueError(
                f"config {key!r} is not of the form http[s]://host[:port][/path]"
            )
        return text.rstrip("/")
