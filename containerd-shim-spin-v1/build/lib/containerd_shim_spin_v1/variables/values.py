"""Values of an app's variables: who may know them, and templates filled with them.

Providers are asked one after another, and the first that knows a variable has the say; then comes
the default of the manifest. A variable that neither gives a value is an error where it is used,
and ``check_required`` tells before anything is.

Source: Spin 3.6 crates/expressions/src/lib.rs, crates/variables-env/src/lib.rs;
containerd-shim-spin 0.16 and later src/utils.rs (variables named as the container's own).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from containerd_shim_spin_v1.manifest.model import AppManifest, Component, Variable
from containerd_shim_spin_v1.manifest.templates import Template, name_fault
from containerd_shim_spin_v1.outbound.allowed_hosts import SKIPPED, AllowedHosts
from containerd_shimkit.errors import ManifestError
from containerd_shimkit.hosts import HostError

PREFIX: Final = "SPIN_VARIABLE"
PREFIX_V1: Final = "SPIN_CONFIG"


class VariableError(ManifestError):
    """A value cannot be had."""


class InvalidNameError(VariableError):
    """Nothing can have this name."""


class UndefinedVariableError(VariableError):
    """The component has nothing of this name."""


class ProviderError(VariableError):
    """No provider knows a variable without default, or one of them failed."""


class Provider(Protocol):
    """Somebody who may know variables."""

    async def get(self, name: str) -> str | None:
        """Return the value of an app's variable, None if it is not known here.

        name: as the manifest has it.  Raises ProviderError if that cannot be found out.
        """

    async def close(self) -> None:
        """End every connection."""


class EnvironmentProvider:
    """Variables of an environment, in capitals and after a prefix."""

    def __init__(self, env: Mapping[str, str], prefix: str = PREFIX) -> None:
        """prefix: joined with ``_``, unless it is empty."""
        self._env = env
        self._prefix = f"{prefix}_" if prefix else ""

    async def get(self, name: str) -> str | None:
        """See ``Provider``."""
        return self._env.get(self._prefix + name.upper())

    async def close(self) -> None:
        """See ``Provider``."""


def environment_providers(
    manifest_version: int, env: Mapping[str, str], dotenv: Mapping[str, str]
) -> list[Provider]:
    """Return the providers that every app has.

    env: of the container; its ``TOKEN`` is the variable ``token``, too, if nothing with a prefix
    is.  dotenv: of the ``.env`` file, which comes last and needs the prefix.
    """
    prefixes = (PREFIX, PREFIX_V1) if manifest_version == 1 else (PREFIX,)
    sources = [*((env, prefix) for prefix in prefixes), (env, "")]
    sources += ((dotenv, prefix) for prefix in prefixes)
    return [EnvironmentProvider(values, prefix) for values, prefix in sources]


class Variables:
    """What the components of an app may ask for."""

    def __init__(self, app: AppManifest, providers: Sequence[Provider]) -> None:
        self._declared: Mapping[str, Variable] = app.variables
        self._components = {component.id: component.variables for component in app.components}
        self._ids = tuple(self._components)
        self._providers = providers

    async def get(self, component_id: str, name: str) -> str:
        """Return a value for a component.

        name: as the component asks.  Raises InvalidNameError, UndefinedVariableError,
        ProviderError.
        """
        if (fault := name_fault(name)) is not None:
            raise InvalidNameError(f"bad variable name {name[:80]!r}: {fault}")
        template = self._components.get(component_id, {}).get(name)
        if template is None:
            raise UndefinedVariableError(f"component {component_id!r} has no variable {name!r}")
        return await self.render(template)

    async def render(self, template: Template) -> str:
        """Return the text of a template. Raises ProviderError."""
        return template.render({name: await self._value(name) for name in template.variables})

    async def allowed_hosts(self, component: Component) -> AllowedHosts:
        """Return where a component may connect to.

        Raises ProviderError, and VariableError for an entry that is none with these values.
        """
        entries = []
        for template in component.allowed_outbound_hosts:
            text = await self.render(template)
            # An optional host: its variable is empty.
            if template.variables and text in SKIPPED:
                continue
            try:
                AllowedHosts.parse([text])
            except HostError as exc:
                raise VariableError(
                    f"{component.where}.allowed_outbound_hosts: with the values of "
                    f"{', '.join(template.variables)} an entry is of the wrong form: {exc}"
                ) from None
            entries.append(text)
        return AllowedHosts.parse(entries, self._ids)

    async def check_required(self) -> None:
        """Raise ProviderError naming every variable that has no value.

        Only those without a default are asked for.
        """
        required = [name for name, declared in self._declared.items() if declared.default is None]
        missing = [name for name in required if await self._find(name) is None]
        if missing:
            wanted = ", ".join(f"{PREFIX}_{name.upper()}" for name in missing)
            raise ProviderError(
                f"no value for required variable {', '.join(missing)}: set {wanted} in the "
                "container's environment"
            )

    async def close(self) -> None:
        """End the providers' connections."""
        for provider in self._providers:
            await provider.close()

    async def _value(self, name: str) -> str:
        value = await self._find(name)
        if value is None:
            raise ProviderError(f"no provider has a value for required variable {name!r}")
        return value

    async def _find(self, name: str) -> str | None:
        for provider in self._providers:
            if (value := await provider.get(name)) is not None:
                return value
        return self._declared[name].default
