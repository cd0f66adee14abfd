"""The app: a component for each interface."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from spin_load.servers import REDIS_PASSWORD, Servers

GUESTS: Final = Path(__file__).parents[2] / "guests"

# Most guests choose an interface by the whole path: those that are asked by several have routes
# of their own beside ``/<component>/...``.
_ROUTES: Final = {
    "redis": ["/v2"],
    "key-value": ["/v1.5"],
    "mqtt": ["/dropped"],
    "databases": ["/pg/...", "/mysql/..."],
}
_COMPONENTS: Final = {
    "probe": ("probe", ""),
    "http": ("outbound_http", ""),
    "redis": ("redis", ""),
    "redis-wait": ("redis_wait", ""),
    "key-value": ("key_value", 'key_value_stores = ["default", "memory", "cache", "away", "mute"]'),
    "databases": ("databases", ""),
    "sqlite": ("sqlite", 'sqlite_databases = ["default", "memory"]'),
    "variables": ("variables", ""),
    "mqtt": ("mqtt", ""),
    "llm": ("llm", 'ai_models = ["model"]'),
}
_CONFIG: Final = """\
[sqlite_database.memory]
type = "spin"
[key_value_store.memory]
type = "spin"
[key_value_store.cache]
type = "redis"
url = "{redis}"
[key_value_store.away]
type = "redis"
url = "redis://{down[0]}:{down[1]}"
[key_value_store.mute]
type = "redis"
url = "redis://{mute[0]}:{mute[1]}"
[llm_compute]
type = "remote_http"
url = "{http}"
auth_token = "llm-secret"
"""


def files(servers: Servers) -> dict[str, bytes]:
    """Return the image's files."""
    config = _CONFIG.format(
        redis=redis_url(servers),
        http=servers.http.url,
        down=servers.down,
        mute=servers.mute,
    )
    found = {"spin.toml": _manifest(servers).encode(), "runtime-config.toml": config.encode()}
    found["etc/ssl/certs/ca-certificates.crt"] = servers.authority.cert.read_bytes()
    for guest, _ in _COMPONENTS.values():
        found[f"{guest}.wasm"] = (GUESTS / f"{guest}.wasm").read_bytes()
    return found


def redis_url(servers: Servers, password: str = REDIS_PASSWORD) -> str:
    return f"redis://:{password}@{servers.redis.address}"


def _manifest(servers: Servers) -> str:
    hosts = [
        servers.redis.address,
        servers.postgres.address,
        servers.mariadb.address,
        servers.mosquitto.address,
        f"{servers.http.host}:{servers.http.port}",
        f"{servers.https.host}:{servers.https.port}",
        f"{servers.forged.host}:{servers.forged.port}",
        *("{}:{}".format(*where) for where in (servers.mute, servers.rude, servers.down)),
    ]
    allowed = [f"*://{host}" for host in hosts] + ["http://*.spin.internal"]
    parts = [
        'spin_manifest_version = 2\n[application]\nname = "load"\n'
        '[variables]\nknown = { default = "value" }\n'
    ]
    for name, (guest, more) in _COMPONENTS.items():
        parts += [
            f'[[trigger.http]]\nroute = "{route}"\ncomponent = "{name}"\n'
            for route in (f"/{name}/...", *_ROUTES.get(name, ()))
        ]
        parts.append(
            f'[component.{name}]\nsource = "{guest}.wasm"\n{more}\n'
            f"allowed_outbound_hosts = {allowed}\n"
            f'environment = {{ REDIS_ADDRESS = "{redis_url(servers)}" }}\n'
            f'[component.{name}.variables]\nknown = "{{{{ known }}}}"\n'
        )
    return "".join(parts)
