"""``allowed_http_hosts``, which is older than ``allowed_outbound_hosts``, in terms of that.

An entry is ``host``, ``host:port`` or either with ``http://`` or ``https://`` before it, which does
not matter; ``insecure:allow-all`` allows all.
Source: Spin 3.6 crates/manifest/src/compat.rs, crates/manifest/src/compat/allowed_http_hosts.rs.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from containerd_shim_spin_v1.outbound.allowed_hosts import ALLOW_ALL, authority, parse_rule
from containerd_shimkit.hosts import HostError


def http_host_fault(text: str) -> str | None:
    """Return what is wrong with an entry of ``allowed_http_hosts``, or None."""
    try:
        _split_http_host(text)
    except HostError as exc:
        return str(exc)
    return None


def convert_http_hosts(entries: Iterable[str], *, databases: bool) -> tuple[str, ...]:
    """Return entries of ``allowed_outbound_hosts`` that allow what ``allowed_http_hosts`` does.

    databases: version 1 without ``allowed_outbound_hosts`` lets components connect to any.
    Raises HostError.
    """
    found = [f"{scheme}://*:*" for scheme in ("redis", "mysql", "postgres")] if databases else []
    entries = tuple(entries)
    if ALLOW_ALL in entries:
        return (*found, "http://*:*", "https://*:*", "http://self")
    for entry in entries:
        host = _split_http_host(entry)
        if host.partition(":")[0] == "self":
            found.append("http://self")
        else:
            found += (f"http://{host}", f"https://{host}")
    return tuple(found)


def _split_http_host(text: str) -> str:
    """Return host and port of an entry, the port only where it is not the scheme's own."""
    if text == ALLOW_ALL:
        return text
    try:
        parts = urlsplit(text if "//" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise HostError(f"must be a host, or host:port: {exc}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise HostError("must be a host, or host:port, after http:// or https:// or nothing")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise HostError("must be a host and perhaps a port, without a path")
    parse_rule(f"[{host}]" if ":" in host else host)
    return authority(parts.scheme, host, port)
