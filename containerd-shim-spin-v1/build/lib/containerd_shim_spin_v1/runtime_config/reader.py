"""Reading ``runtime-config.toml``: what whoever runs the app says of its surroundings.

It is in the image or in a volume, at ``/runtime-config.toml`` or where ``RUNTIME_CONFIG_FILE``
says. Whatever is not known is refused, and no message shows a token or a key.

Source: Spin 4.0 crates/runtime-config/src/lib.rs, crates/factor-*/src/runtime_config/spin.rs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from containerd_shim_spin_v1.manifest.rules import not_empty
from containerd_shim_spin_v1.runtime_config.backends import (
    DATABASES,
    LLMS,
    STORES,
    path_fault,
    read_labelled,
    read_of_type,
    read_providers,
)
from containerd_shim_spin_v1.runtime_config.model import ClientTls, Network, RuntimeConfig
from containerd_shimkit.errors import MissingFileError
from containerd_shimkit.hosts import HostError, parse_host
from containerd_shimkit.text.image_files import read_text
from containerd_shimkit.text.toml_reader import Problems, Table
from containerd_shimkit.text.toml_source import load_toml

FILE: Final = "runtime-config.toml"
SETTING: Final = "RUNTIME_CONFIG_FILE"

_LIMITED = ("http", "redis", "pg", "mysql", "mqtt")
_NO_TOTAL = (
    "there is no limit over all interfaces; set `max_connections` of [outbound_http], "
    "[outbound_redis], [outbound_pg], [outbound_mysql] and [outbound_mqtt]"
)


def load_runtime_config(root: Path, env: Mapping[str, str]) -> RuntimeConfig:
    """Return the configuration of the container whose files are in ``root``.

    env: of the container.  Without a file it is the default.  Raises ManifestError with a line for
    each fault, MissingFileError if the file that ``env`` names is not there.
    """
    named = env.get(SETTING)
    name = str(_path(env))
    text = read_text(root / name.lstrip("/"), name)
    if text is not None:
        return parse_runtime_config(text, name)
    if named:
        raise MissingFileError(f"{name}: no such file: {SETTING} names it")
    return RuntimeConfig()


def config_directory(env: Mapping[str, str]) -> Path:
    """Return the directory in the container that the configuration's relative paths start from."""
    return _path(env).parent


def _path(env: Mapping[str, str]) -> Path:
    return Path("/", (env.get(SETTING) or FILE).lstrip("/"))


def parse_runtime_config(text: str, file: str = FILE) -> RuntimeConfig:
    """Parse a configuration; raises ManifestError as ``parse_manifest`` does."""
    problems = Problems(load_toml(text, file))
    top = Table(problems, problems.source.data)
    limits, pooling, payload = _interfaces(top)
    networking = top.optional_table("outbound_networking") or _absent(problems)
    networks, private = _blocked(networking)
    config = RuntimeConfig(
        state_dir=top.optional_string("state_dir", path_fault),
        log_dir=top.optional_string("log_dir", path_fault),
        max_instance_memory=top.integer("max_instance_memory", 64 << 10, 4 << 30),
        variables_providers=read_providers(top),
        key_value_stores=read_labelled(top, "key_value_store", STORES),
        sqlite_databases=read_labelled(top, "sqlite_database", DATABASES),
        llm_compute=read_of_type(llm, LLMS) if (llm := top.optional_table("llm_compute")) else None,
        client_tls=tuple(map(_client_tls, top.tables("client_tls", required=False))),
        connection_pooling=pooling,
        max_connections=limits,
        max_payload_size_bytes=payload,
        blocked_networks=networks,
        block_private_networks=private,
        max_socket_connections=networking.integer("max_socket_connections"),
    )
    if networking.integer("max_total_connections") is not None:
        networking.fault("max_total_connections", _NO_TOTAL)
    networking.done()
    top.done()
    problems.raise_if_any()
    return config


def _absent(problems: Problems) -> Table:
    return Table(problems, {})


# Connections


def _interfaces(top: Table) -> tuple[dict[str, int], bool, int | None]:
    """Read ``[outbound_*]`` of single interfaces: limits, pooling, size of MQTT messages."""
    limits: dict[str, int] = {}
    pooling, payload = True, None
    for name in _LIMITED:
        table = top.optional_table(f"outbound_{name}")
        if table is None:
            continue
        limit = table.integer("max_connections", 1)
        if name == "http":
            pooling = table.optional_boolean("connection_pooling") is not False
            older = table.integer("max_concurrent_requests")
            if older is not None and limit is not None:
                table.fault("max_concurrent_requests", "is the old name of `max_connections`")
            limit = older + 1 if limit is None and older is not None else limit  # as it was counted
        if name == "mqtt":
            payload = table.integer("max_payload_size_bytes")
        if limit is not None:
            limits[name] = limit
        table.done()
    return limits, pooling, payload


def _blocked(networking: Table) -> tuple[tuple[Network, ...], bool]:
    def fault(text: str) -> str | None:
        if text == "private" or _network(text) is not None:
            return None
        return "must be a network, as 10.0.0.0/8, or `private`"

    names = networking.strings("block_networks", fault)
    networks = [network for name in names if (network := _network(name)) is not None]
    return tuple(networks), "private" in names


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False) if "/" in text else None
    except ValueError:
        return None


def _client_tls(table: Table) -> ClientTls:
    platform = table.optional_boolean("ca_use_platform_roots")
    webpki = table.optional_boolean("ca_use_webpki_roots")
    roots = table.optional_string("ca_roots_file", not_empty)
    if platform is None:  # unless others are named
        platform = webpki is None and roots is None
    config = ClientTls(
        component_ids=table.strings("component_ids", not_empty),
        hosts=table.strings("hosts", _tls_host_fault),
        use_platform_roots=platform,
        use_webpki_roots=bool(webpki),
        roots_file=roots,
        cert_file=table.optional_string("client_cert_file", not_empty),
        key_file=table.optional_string("client_private_key_file", not_empty),
    )
    for key in ("component_ids", "hosts"):
        if not table.raw(key):
            table.complain(f"needs `{key}`")
    if (config.cert_file is None) != (config.key_file is None):
        table.complain("needs `client_cert_file` and `client_private_key_file`, or neither")
    table.done()
    return config


def _tls_host_fault(text: str) -> str | None:
    try:
        parse_host(text.removeprefix("*."))
    except HostError as exc:
        return str(exc)
    return None
