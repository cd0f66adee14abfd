"""Addresses of MySQL servers, as guests write them: ``mysql://user:password@host:port/database``.

``?ssl-mode=REQUIRED`` has the connection made by TLS, and the server's certificate verified: so do
all of MySQL's words but ``DISABLED``, which is the default. Options for Spin's own client, its pool
for one, are taken and mean nothing here; any other is refused.

Source: Spin 3.6 crates/factor-outbound-mysql/src/client.rs; mysql_async 0.35, Opts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from containerd_shim_spin_v1.host.database import AddressError

_DEFAULT_PORT: Final = 3306
_MAX_LENGTH: Final = 16 << 10
_IGNORED: Final = frozenset(
    {
        *("pool_min", "pool_max", "inactive_connection_ttl", "ttl_check_interval", "conn_ttl"),
        *("abs_conn_ttl", "abs_conn_ttl_jitter", "tcp_keepalive", "tcp_nodelay", "wait_timeout"),
        *("max_allowed_packet", "stmt_cache_size", "prefer_socket", "client_found_rows"),
        *("reset_connection", "secure_auth", "verify_ca", "verify_identity", "built_in_roots"),
    }
)


@dataclass(frozen=True, slots=True)
class MysqlAddress:
    """Where to connect to, and as whom."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str | None
    tls: bool

    @property
    def shown(self) -> str:
        """What messages call it: ``mysql://host:port``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mysql://{host}:{self.port}"


@functools.lru_cache(maxsize=64)
def parse_address(text: str) -> MysqlAddress:
    """Read an address. Raises AddressError."""
    if len(text) > _MAX_LENGTH or not text.isprintable():
        raise AddressError(f"must be a URL of up to {_MAX_LENGTH} characters")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise AddressError("must be a URL: its host or port is none") from None
    if parts.scheme != "mysql":
        raise AddressError("must be a URL with mysql://")
    if not host or port == 0:
        raise AddressError("names no host")
    if not parts.username:
        raise AddressError("names no user")
    address = MysqlAddress(
        host=unquote(host),
        port=_DEFAULT_PORT if port is None else port,
        user=_decode(parts.username),
        password=_decode(parts.password or ""),
        database=_decode(parts.path.removeprefix("/")) or None,
        tls=_tls(parts),
    )
    if "\0" in f"{address.host}{address.user}{address.database}":
        raise AddressError("holds a NUL")
    return address


def _decode(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise AddressError("is not UTF-8 when decoded") from None


def _tls(parts: SplitResult) -> bool:
    tls = False
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name.lower() in ("ssl-mode", "sslmode"):
            tls = value.lower() != "disabled"
        elif name == "require_ssl":
            tls = tls or value.lower() == "true"
        elif name not in _IGNORED:
            raise AddressError(f"has the option {name[:64]!r}, which is not supported")
    return tls
