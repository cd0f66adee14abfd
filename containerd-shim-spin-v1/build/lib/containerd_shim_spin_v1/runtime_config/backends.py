"""Tables of the runtime configuration whose ``type`` says what else is in them.

Source: Spin 4.0 crates/{key-value,variables,sqlite}-*/src/lib.rs, crates/factor-llm/src/spin.rs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeVar, cast
from urllib.parse import urlsplit

from containerd_shim_spin_v1.manifest.rules import label_v2_fault, not_empty
from containerd_shim_spin_v1.manifest.templates import name_fault
from containerd_shim_spin_v1.runtime_config.model import (
    AzureKeyVaultConfig,
    CosmosStore,
    DatabaseConfig,
    DynamoStore,
    EnvConfig,
    FileDatabase,
    FileStore,
    LibsqlDatabase,
    LocalLlm,
    ProviderConfig,
    RedisStore,
    RemoteLlm,
    StaticConfig,
    StoreConfig,
    VaultConfig,
)
from containerd_shimkit.text.toml_reader import Rule, Table, nearest

_AUTHORITIES = ("AzurePublicCloud", "AzureChina", "AzureGermany", "AzureGovernment")

_T = TypeVar("_T")


# Rules


def path_fault(path: str) -> str | None:
    return "must not contain a NUL" if "\0" in path else None


def _url_rule(*schemes: str) -> Rule:
    """The value is never part of the message: it may hold a password."""

    def fault(url: str) -> str | None:
        try:
            parts = urlsplit(url)
            valid = parts.scheme in schemes and bool(parts.hostname)
        except ValueError:
            valid = False
        return None if valid else f"must be a URL with {' or '.join(f'{s}://' for s in schemes)}"

    return fault


_http_url = _url_rule("http", "https")


def _choice(*known: str) -> Rule:
    return lambda text: None if text in known else nearest(text, known, "values")


# Readers


def read_of_type(table: Table, readers: Mapping[str, Callable[[Table], _T]]) -> _T | None:
    """Read a table by the reader of its type; None, with the fault reported, without one."""

    def type_fault(text: str) -> str | None:
        return None if text in readers else f"unknown type; {nearest(text, readers, 'types')}"

    kind = table.required_string("type", type_fault)
    reader = readers.get(kind)
    if reader is None:
        return None
    found = reader(table)
    table.done()
    return found


def read_labelled(
    top: Table, key: str, readers: Mapping[str, Callable[[Table], _T]]
) -> dict[str, _T]:
    """Read ``[key.label]`` tables."""
    tables = top.optional_table(key)
    found = {}
    for label, table in tables.child_tables() if tables else ():
        if (fault := label_v2_fault(label)) is not None:
            cast(Table, tables).problem(label, fault)
        if (value := read_of_type(table, readers)) is not None:
            found[label] = value
    return found


def read_providers(top: Table) -> tuple[ProviderConfig, ...]:
    """Read ``[[variables_provider]]``, which was called ``[[config_provider]]``."""
    key = "variables_provider"
    if "config_provider" in top.names():
        if key in top.names():
            top.problem("config_provider", f"is the old name of `{key}`, which is given, too")
        else:
            key = "config_provider"
    top.raw("config_provider")
    found = (read_of_type(table, _PROVIDERS) for table in top.tables(key, required=False))
    return tuple(provider for provider in found if provider is not None)


def _secret(table: Table, key: str) -> str:
    value = table.optional_string(key, secret=True)
    if key not in table.names():
        table.missing(key)
    return value or ""


def _url(table: Table, key: str, rule: Rule) -> str:
    url = _secret(table, key)
    if url and (fault := rule(url)) is not None:
        table.problem(key, fault)
    return url


def _vault(table: Table) -> VaultConfig:
    return VaultConfig(
        url=_url(table, "url", _http_url),
        token=_secret(table, "token"),
        mount=table.required_string("mount", not_empty),
        prefix=table.optional_string("prefix"),
    )


def _azure_key_vault(table: Table) -> AzureKeyVaultConfig:
    config = AzureKeyVaultConfig(
        vault_url=_url(table, "vault_url", _url_rule("https")),
        client_id=table.optional_string("client_id"),
        tenant_id=table.optional_string("tenant_id"),
        client_secret=table.optional_string("client_secret", secret=True),
        authority_host=table.optional_string("authority_host", _choice(*_AUTHORITIES))
        or _AUTHORITIES[0],
    )
    given = [config.client_id, config.tenant_id, config.client_secret]
    if None in given and any(value is not None for value in given):
        table.complain("needs `client_id`, `tenant_id` and `client_secret`, or none of them")
    return config


def _static(table: Table) -> StaticConfig:
    values = table.required_table("values")
    found = {}
    for name in values.names() if values else ():
        if (fault := name_fault(name)) is not None:
            cast(Table, values).problem(name, fault)
        found[name] = _secret(cast(Table, values), name)
    return StaticConfig(found)


def _env(table: Table) -> EnvConfig:
    return EnvConfig(
        prefix=table.optional_string("prefix"),
        dotenv_path=table.optional_string("dotenv_path", path_fault),
    )


_PROVIDERS: Mapping[str, Callable[[Table], ProviderConfig]] = {
    "vault": _vault,
    "azure_key_vault": _azure_key_vault,
    "static": _static,
    "env": _env,
}


def _cosmos(table: Table) -> CosmosStore:
    return CosmosStore(
        key=table.optional_string("key", secret=True),
        account=table.required_string("account", not_empty),
        database=table.required_string("database", not_empty),
        container=table.required_string("container", not_empty),
    )


def _dynamo(table: Table) -> DynamoStore:
    return DynamoStore(
        region=table.required_string("region", not_empty),
        table=table.required_string("table", not_empty),
        consistent_read=table.boolean("consistent_read"),
        access_key=table.optional_string("access_key", secret=True),
        secret_key=table.optional_string("secret_key", secret=True),
        token=table.optional_string("token", secret=True),
    )


STORES: Mapping[str, Callable[[Table], StoreConfig]] = {
    "spin": lambda table: FileStore(table.optional_string("path", path_fault)),
    "redis": lambda table: RedisStore(_url(table, "url", _url_rule("redis", "rediss"))),
    "azure_cosmos": _cosmos,
    "aws_dynamo": _dynamo,
}

DATABASES: Mapping[str, Callable[[Table], DatabaseConfig]] = {
    "spin": lambda table: FileDatabase(
        table.optional_string("path", path_fault), table.boolean("allow_attach_file")
    ),
    "libsql": lambda table: LibsqlDatabase(
        url=_url(table, "url", _http_url), token=_secret(table, "token")
    ),
}


def _remote_llm(table: Table) -> RemoteLlm:
    kinds = ("default", "open_ai")
    return RemoteLlm(
        url=_url(table, "url", _http_url),
        auth_token=_secret(table, "auth_token"),
        api_type=cast(
            Literal["default", "open_ai"],
            table.optional_string("api_type", _choice(*kinds)) or "default",
        ),
    )


LLMS: Mapping[str, Callable[[Table], LocalLlm | RemoteLlm]] = {
    "spin": lambda _table: LocalLlm(),
    "remote_http": _remote_llm,
}
