"""What the runtime configuration says: where variables, stores and models are, and limits."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def _secret() -> Any:
    """A field that is not shown when the object is."""
    return field(repr=False)


# Variables


@dataclass(frozen=True, slots=True)
class VaultConfig:
    """HashiCorp Vault, secrets engine KV version 2."""

    url: str
    mount: str
    prefix: str | None
    token: str = _secret()


@dataclass(frozen=True, slots=True)
class AzureKeyVaultConfig:
    """Azure Key Vault; without a client the identity of the machine is used."""

    vault_url: str
    client_id: str | None
    tenant_id: str | None
    authority_host: str
    client_secret: str | None = _secret()


@dataclass(frozen=True, slots=True)
class StaticConfig:
    """Values written down in the configuration."""

    values: Mapping[str, str] = _secret()


@dataclass(frozen=True, slots=True)
class EnvConfig:
    """The container's environment with another prefix or file."""

    prefix: str | None
    dotenv_path: str | None


ProviderConfig: TypeAlias = VaultConfig | AzureKeyVaultConfig | StaticConfig | EnvConfig


# Key-value stores


@dataclass(frozen=True, slots=True)
class FileStore:
    """``spin``: a SQLite file."""

    path: str | None
    """None is in memory."""


@dataclass(frozen=True, slots=True)
class RedisStore:
    url: str = _secret()  # it may hold a password


@dataclass(frozen=True, slots=True)
class CosmosStore:
    """Azure Cosmos DB."""

    account: str
    database: str
    container: str
    key: str | None = _secret()


@dataclass(frozen=True, slots=True)
class DynamoStore:
    """AWS DynamoDB."""

    region: str
    table: str
    consistent_read: bool
    access_key: str | None = _secret()
    secret_key: str | None = _secret()
    token: str | None = _secret()


StoreConfig: TypeAlias = FileStore | RedisStore | CosmosStore | DynamoStore


# Databases


@dataclass(frozen=True, slots=True)
class FileDatabase:
    """``spin``: a SQLite file."""

    path: str | None
    """None is in memory."""
    allow_attach_file: bool


@dataclass(frozen=True, slots=True)
class LibsqlDatabase:
    """A libSQL server."""

    url: str
    token: str = _secret()


DatabaseConfig: TypeAlias = FileDatabase | LibsqlDatabase


# Models


@dataclass(frozen=True, slots=True)
class LocalLlm:
    """``spin``: models in the engine itself, which this shim has not."""


@dataclass(frozen=True, slots=True)
class RemoteLlm:
    """``remote_http``: a server."""

    url: str
    api_type: Literal["default", "open_ai"]
    auth_token: str = _secret()


# Connections


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How some components make TLS connections to some hosts."""

    component_ids: tuple[str, ...]
    hosts: tuple[str, ...]
    use_platform_roots: bool
    use_webpki_roots: bool
    roots_file: str | None
    """PEM; relative to the configuration file, as the other two."""
    cert_file: str | None
    key_file: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """All of it; the defaults are those of no file."""

    state_dir: str | None = None
    """None is the default, ``.spin``; empty is none: then everything is kept in memory."""
    log_dir: str | None = None
    max_instance_memory: int | None = None
    """Linear memory of one instance, in bytes."""
    variables_providers: tuple[ProviderConfig, ...] = ()
    key_value_stores: Mapping[str, StoreConfig] = field(default_factory=dict)
    sqlite_databases: Mapping[str, DatabaseConfig] = field(default_factory=dict)
    llm_compute: LocalLlm | RemoteLlm | None = None
    client_tls: tuple[ClientTls, ...] = ()
    connection_pooling: bool = True
    """Whether HTTP connections are kept for the next request."""
    max_connections: Mapping[str, int] = field(default_factory=dict)
    """At once, by the interface's name: http, redis, pg, mysql, mqtt."""
    max_payload_size_bytes: int | None = None
    """Of one MQTT message."""
    blocked_networks: tuple[Network, ...] = ()
    block_private_networks: bool = False
    max_socket_connections: int | None = None
    """Holds by itself: guests have no sockets but through the host's interfaces."""
