"""The host interfaces of an app.

``ServiceSources`` is what they are made of, read when the app is prepared; ``Services`` are they
themselves, made in the event loop that serves, in each process that does, and closed at its end.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from containerd_shim_spin_v1.host.http import HttpHost
from containerd_shim_spin_v1.host.key_value import KeyValueHost, check_store_addresses
from containerd_shim_spin_v1.host.llm import LlmHost
from containerd_shim_spin_v1.host.mqtt import MqttHost
from containerd_shim_spin_v1.host.mysql import MysqlHost
from containerd_shim_spin_v1.host.postgres import PostgresHost
from containerd_shim_spin_v1.host.redis import RedisHost
from containerd_shim_spin_v1.host.sqlite import SqliteHost
from containerd_shim_spin_v1.host.tls import TlsContexts
from containerd_shim_spin_v1.manifest.model import AppManifest
from containerd_shim_spin_v1.runtime_config.model import RuntimeConfig
from containerd_shim_spin_v1.runtime_config.reader import config_directory
from containerd_shim_spin_v1.variables.sources import make_providers
from containerd_shim_spin_v1.variables.values import Provider, Variables
from containerd_shimkit.engine import RuntimeContext
from containerd_shimkit.http_client.networks import Networks

log = logging.getLogger(__name__)


class Closable(Protocol):
    """What has connections."""

    async def close(self) -> None:
        """End them."""


@dataclass(frozen=True, slots=True)
class ServiceSources:
    """What the manifest, the runtime configuration and the environment say."""

    manifest: AppManifest
    config: RuntimeConfig
    providers: list[Provider]
    tls: TlsContexts
    root: Path
    """Of the container's files."""
    directory: Path
    """In the container: what paths of the runtime configuration are relative to."""

    @classmethod
    def read(
        cls, root: Path, context: RuntimeContext, manifest: AppManifest, config: RuntimeConfig
    ) -> ServiceSources:
        """Read the files that are named.

        root: of the container's files.  Raises ManifestError, MissingFileError.
        """
        check_store_addresses(config)
        directory = config_directory(context.env)
        tls = TlsContexts(
            config,
            context.env,
            directory=directory,
            root=root,
            ca_bundle=context.ca_bundle,
        )
        tls.check()
        version = manifest.manifest_version
        providers = make_providers(root, context.env, config, version, tls.default)
        return cls(manifest, config, providers, tls, root, directory)


def networks_of(config: RuntimeConfig) -> Networks:
    """Return the networks that ``[outbound_networking]`` blocks."""
    return Networks(config.blocked_networks, config.block_private_networks)


class Services:
    """Everything that components of the app share."""

    def __init__(self, sources: ServiceSources) -> None:
        self._providers = sources.providers
        self.tls = sources.tls
        self.variables = Variables(sources.manifest, sources.providers)
        config = sources.config
        networks = networks_of(config)
        self.http = HttpHost(config, networks, sources.tls)
        self.llm = LlmHost(config.llm_compute, sources.tls)
        self.mqtt = MqttHost(
            networks,
            sources.tls.default,
            max_connections=config.max_connections.get("mqtt"),
            max_payload_bytes=config.max_payload_size_bytes,
        )
        self.mysql = MysqlHost(networks, sources.tls.default, config.max_connections.get("mysql"))
        self.postgres = PostgresHost(
            networks, sources.tls.default, config.max_connections.get("pg")
        )
        self.redis = RedisHost(sources.tls.default, networks, config.max_connections.get("redis"))
        self.key_value = KeyValueHost.of(
            config, sources.tls.default, root=sources.root, directory=sources.directory
        )
        self.sqlite = SqliteHost.of(config, root=sources.root, directory=sources.directory)

    @classmethod
    async def open(cls, sources: ServiceSources) -> Services:
        """Return the services. Raises ProviderError for variables that have no value."""
        services = cls(sources)
        try:
            await services.variables.check_required()
        except BaseException:
            await services.close()
            raise
        return services

    async def close(self) -> None:
        """End every connection. One that cannot be ended well does not keep others."""
        services: list[Closable] = [self.http, self.llm, self.mqtt, self.mysql, self.postgres]
        services += [self.redis, self.key_value, self.sqlite, *self._providers]
        ends = await asyncio.gather(
            *(service.close() for service in services), return_exceptions=True
        )
        for service, end in zip(services, ends, strict=True):
            if isinstance(end, Exception):
                log.error("%s cannot be closed: %s", type(service).__name__, end)
