"""The providers of an app's variables: those that the runtime configuration names, then the usual.

Files are read when the providers are made; those that ask a server connect when they are asked,
in the event loop, and so may be made before there is one.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import assert_never

from containerd_shim_spin_v1.runtime_config.model import (
    AzureKeyVaultConfig,
    EnvConfig,
    ProviderConfig,
    RuntimeConfig,
    StaticConfig,
    VaultConfig,
)
from containerd_shim_spin_v1.variables.azure_key_vault import AzureKeyVaultProvider, find_client
from containerd_shim_spin_v1.variables.cached import CachedProvider
from containerd_shim_spin_v1.variables.dotenv_file import NAME, parse_dotenv
from containerd_shim_spin_v1.variables.values import (
    PREFIX,
    EnvironmentProvider,
    Provider,
    environment_providers,
)
from containerd_shim_spin_v1.variables.vault import VaultProvider
from containerd_shimkit.errors import MissingFileError
from containerd_shimkit.text.image_files import read_text


class StaticProvider:
    """Variables whose values are written down."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    async def get(self, name: str) -> str | None:
        """See ``Provider``."""
        return self._values.get(name)

    async def close(self) -> None:
        """See ``Provider``."""


def make_providers(
    root: Path,
    env: Mapping[str, str],
    config: RuntimeConfig,
    manifest_version: int,
    tls: Callable[[], ssl.SSLContext],
) -> list[Provider]:
    """Return all providers of an app in the order in which they are asked.

    root: of the container's files.  env: of the container.  tls: makes the context for servers,
    when one is asked.  Raises ManifestError for a provider that lacks something and for a bad
    ``.env`` file, MissingFileError for one that is not there and that the configuration names.
    """
    providers: list[Provider] = []
    for entry in config.variables_providers:
        providers += _configured(root, env, entry, tls)
    text = read_text(root / NAME, f"/{NAME}")
    dotenv = {} if text is None else parse_dotenv(text, env, f"/{NAME}")
    return [*providers, *environment_providers(manifest_version, env, dotenv)]


def _configured(
    root: Path, env: Mapping[str, str], entry: ProviderConfig, tls: Callable[[], ssl.SSLContext]
) -> list[Provider]:
    match entry:
        case StaticConfig(values):
            return [StaticProvider(values)]
        case EnvConfig(prefix, dotenv_path):
            found: list[Provider] = []
            given = PREFIX if prefix is None else prefix
            found.append(EnvironmentProvider(env, given))
            if dotenv_path is not None:
                name = f"/{dotenv_path.lstrip('/')}"
                text = read_text(root / name.lstrip("/"), name)
                if text is None:
                    raise MissingFileError(f"{name}: no such file: a variables provider names it")
                found.append(EnvironmentProvider(parse_dotenv(text, env, name), given))
            return found
        case VaultConfig():
            return [CachedProvider(VaultProvider(entry, tls))]
        case AzureKeyVaultConfig():
            client = find_client(entry, root, env)
            return [CachedProvider(AzureKeyVaultProvider(entry.vault_url, client, tls))]
    assert_never(entry)
