"""Which servers guests may ask: all, unless slightfile or environment name some.

``ALLOWED_HOSTS`` among the configs of the capability, and ``SLIGHT_HTTP_CLIENT_ALLOWED_HOSTS`` in
the container's environment: entries with commas between, of the form ``[scheme://]host[:port]``.
``*`` as host is any, ``*.host`` all below it; without scheme or port any is meant. Where both are
there, both have to allow a server.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from containerd_shimkit.hosts import HostError, parse_host

_ENTRY: Final = re.compile(
    r"(?:(https?)://)?(\*|\[[^\]]*\]|(?:\*\.)?[^:/*\[\]]+)(?::([0-9]{1,5}))?/?"
)


class AllowedHostsError(ValueError):
    """An entry that is none; the message names it."""


@dataclass(frozen=True, slots=True)
class _Entry:
    scheme: str | None
    host: str | None
    """None is any; with a dot in front those below it."""
    port: int | None

    def allows(self, scheme: str, host: str, port: int) -> bool:
        return (
            self.scheme in (None, scheme)
            and self.port in (None, port)
            and (
                self.host is None
                or (host.endswith(self.host) if self.host.startswith(".") else host == self.host)
            )
        )


class AllowedHosts:
    """One list."""

    def __init__(self, text: str) -> None:
        """Raises AllowedHostsError."""
        self._entries = [_parse(entry.strip()) for entry in text.split(",") if entry.strip()]

    def allows(self, scheme: str, host: str, port: int) -> bool:
        """host: as ``normal_host`` returns it."""
        return any(entry.allows(scheme, host, port) for entry in self._entries)


def normal_host(host: str) -> str:
    """Return a host as two that are the same are written. Raises HostError."""
    found = parse_host(host)
    return found.rstrip(".") if isinstance(found, str) else _address(found)


def _address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _parse(text: str) -> _Entry:
    found = _ENTRY.fullmatch(text)
    if found is None:
        raise AllowedHostsError(f"{text[:80]!r} is not like https://example.com:8443")
    scheme, host, port = found.groups()
    try:
        if host == "*":
            normal = None
        elif host.startswith("*."):
            normal = f".{normal_host(host[2:])}"
        else:
            normal = normal_host(host)
    except HostError:
        raise AllowedHostsError(f"{text[:80]!r} has a host that is none") from None
    return _Entry(scheme, normal, int(port) if port else None)
