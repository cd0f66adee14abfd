"""Where a component may connect to.

An entry of ``allowed_outbound_hosts`` is ``scheme://host[:port]``:

- scheme: letters, or ``*`` for any.
- host: a name, an IP address (IPv6 in brackets), ``*`` for any host, ``*.example.com`` for every
  name below one but not itself, a network ``10.0.0.0/8``, or ``self`` for the app's own routes,
  which is for requests without a host. A single ``/`` may follow, a path may not.
- port: a number, ``8000..8100`` without the end, or ``*``. Without one it is the scheme's own.

``*.spin.internal`` stands for the components of the app. Names are compared in lower case and in
their ASCII form, addresses by value; a network allows addresses only, not names that lead there.

Source: Spin 3.6 crates/outbound-networking-config/src/allowed_hosts.rs; WHATWG URL, hosts.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from containerd_shim_spin_v1.manifest.model import HostsField
from containerd_shimkit.hosts import HostError, parse_host

DEFAULT_PORTS: Final = {
    "http": 80,
    "https": 443,
    "mqtt": 1883,
    "mysql": 3306,
    "postgres": 5432,
    "redis": 6379,
}
CHAINING_SUFFIX: Final = ".spin.internal"
ALLOW_ALL: Final = "insecure:allow-all"
SKIPPED: Final = frozenset({"", "http://", "https://"})
"""What an entry with an empty variable may come to; it allows nothing."""

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Anywhere:
    """``*``."""


@dataclass(frozen=True, slots=True)
class Itself:
    """``self``."""


@dataclass(frozen=True, slots=True)
class Below:
    """``*.example.com``."""

    suffix: str
    """With the dot before it."""


HostRule: TypeAlias = Anywhere | Itself | Below | _Network | _Address | str


@dataclass(frozen=True, slots=True)
class AllowedHost:
    """One entry."""

    scheme: str | None
    """None is any."""
    host: HostRule
    ports: range | None
    """None is any."""

    def allows(self, scheme: str, host: _Address | str, port: int | None) -> bool:
        """Return whether this entry allows a connection; host: see ``parse_host``."""
        if self.scheme not in (None, scheme) or not _matches(self.host, host):
            return False
        if self.ports is None:
            return True
        port = DEFAULT_PORTS.get(scheme) if port is None else port
        return port is not None and port in self.ports


class AllowedHosts:
    """All entries of a component."""

    def __init__(self, entries: Iterable[AllowedHost]) -> None:
        self.entries = tuple(entries)

    @classmethod
    def parse(cls, entries: Iterable[str], component_ids: Iterable[str] = ()) -> AllowedHosts:
        """Read entries that hold no templates any more. Raises HostError.

        component_ids: all of the app, for ``*.spin.internal``.
        """
        ids = tuple(component_ids)
        found: list[AllowedHost] = []
        for entry in map(parse_entry, entries):
            if entry.host == Below(CHAINING_SUFFIX):
                found += (replace(entry, host=id_.lower() + CHAINING_SUFFIX) for id_ in ids)
            else:
                found.append(entry)
        return cls(found)

    def allows(self, scheme: str, host: str, port: int | None = None) -> bool:
        """Return whether a connection may be made.

        host: as a URL has it, IPv6 addresses with or without brackets.  port: None is the scheme's.
        """
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        try:
            parsed = parse_host(host)
        except HostError:
            return False
        return any(entry.allows(scheme.lower(), parsed, port) for entry in self.entries)

    def allows_self(self, *schemes: str) -> bool:
        """Return whether requests without a host, by any of ``schemes``, may be made."""
        return any(
            (entry.scheme is None or entry.scheme in schemes)
            and isinstance(entry.host, Anywhere | Itself)
            for entry in self.entries
        )


def denial(component_id: str, field: HostsField, scheme: str, host: str, port: int | None) -> str:
    """Return the message for a connection that is not allowed: it names the entry to add."""
    entry = entry_for(field, scheme, host, port)
    where = "its own app" if host == "self" else f"{scheme}://{authority(scheme, host, port)}"
    if field == "allowed_http_hosts" and scheme not in ("http", "https"):
        field = "allowed_outbound_hosts"
    return (
        f"component {component_id!r} may not connect to {where}: "
        f'it needs {field} = ["{entry}"] in the manifest'
    )


def entry_for(field: HostsField, scheme: str, host: str, port: int | None) -> str:
    """Return the entry that would allow a connection, as ``field`` writes it."""
    entry = authority(scheme, host, port)
    if field == "allowed_http_hosts" and scheme in ("http", "https"):
        return entry
    return f"{scheme}://{entry}"


def authority(scheme: str, host: str, port: int | None) -> str:
    """Return host and port, the port only where it is not the scheme's own."""
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    # A scheme without a port of its own needs one said.
    default = DEFAULT_PORTS.get(scheme)
    if host == "self" or (default is not None and port in (None, default)):
        return host
    return f"{host}:{'*' if port is None else port}"


# Reading entries


def entry_fault(text: str) -> str | None:
    """Return what is wrong with an entry of ``allowed_outbound_hosts``, or None."""
    try:
        parse_entry(text)
    except HostError as exc:
        return str(exc)
    return None


def parse_entry(text: str) -> AllowedHost:
    """Read one entry. Raises HostError."""
    text = text.strip()
    if text == ALLOW_ALL:
        raise HostError(f"`{ALLOW_ALL}` is for allowed_http_hosts; here all networks are `*://*:*`")
    scheme, separator, rest = text.partition("://")
    if not separator:
        hint = f"; did you mean `https://{text}`?" if re.match(r"[\w*]", text) else ""
        if text == "*":
            hint = "; did you mean `*://*:*`, which allows everything?"
        raise HostError(f"must be scheme://host[:port]{hint}")
    scheme = _parse_scheme(scheme)
    rule: HostRule
    port = ""
    try:
        rule = parse_rule(rest)
    except HostError:
        host, colon, tail = rest.rpartition(":")
        if not colon or "]" in tail:
            raise
        port, _, path = tail.partition("/")
        if path:
            raise HostError("must not have a path") from None
        rule = parse_rule(host)
    return AllowedHost(None if scheme == "*" else scheme, rule, _parse_port(port, scheme))


def _parse_scheme(scheme: str) -> str:
    if scheme.startswith("{"):
        raise HostError("lists of schemes are not supported: write one entry for each")
    if scheme != "*" and not (scheme.isascii() and scheme.isalpha()):
        raise HostError(f"the scheme `{scheme}` must be letters only, or `*`")
    return scheme.lower()


def _parse_port(port: str, scheme: str) -> range | None:
    if port == "*":
        return None
    if not port:
        if scheme not in DEFAULT_PORTS:
            raise HostError(f"needs a port: scheme `{scheme}` has none of its own")
        return range(DEFAULT_PORTS[scheme], DEFAULT_PORTS[scheme] + 1)
    if port.startswith("{"):
        raise HostError("lists of ports are not supported: write one entry for each")
    start, dots, end = port.partition("..")
    numbers = [_port_number(number) for number in ((start, end) if dots else (start,))]
    if None in numbers:
        raise HostError(f"the port `{port}` must be 0 to 65535, `first..end` or `*`")
    first, *last = (number for number in numbers if number is not None)
    return range(first, last[0] if last else first + 1)


def _port_number(text: str) -> int | None:
    number = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else -1
    return number if 0 <= number <= 65535 else None


def parse_rule(host: str) -> HostRule:
    """Read the host of an entry. Raises HostError."""
    host = host.strip()
    if host.startswith("{"):
        raise HostError("lists of hosts are not supported: write one entry for each")
    if re.fullmatch(r"[0-9A-Fa-f.:]+/[0-9]{1,3}", host):
        try:
            return ipaddress.ip_network(host, strict=False)
        except ValueError:
            raise HostError(f"`{host}` is no network") from None
    host = host.removesuffix("/")
    if "/" in host:
        raise HostError("must not have a path")
    if host == "*":
        return Anywhere()
    if host in ("self", "self.alt"):
        return Itself()
    if host.startswith("*."):
        suffix = parse_host(host.removeprefix("*."))
        if not isinstance(suffix, str) or "*" in suffix:
            raise HostError("`*.` must be followed by a domain, without another wildcard")
        return Below("." + suffix)
    if "*" in host:
        raise HostError("`*` must be the whole host or its first label, as in `*.example.com`")
    return parse_host(host)


def _matches(rule: HostRule, host: _Address | str) -> bool:
    match rule:
        case Anywhere():
            return True
        case Itself():
            return False
        case Below():
            return isinstance(host, str) and host.endswith(rule.suffix)
        case ipaddress.IPv4Network() | ipaddress.IPv6Network():
            return not isinstance(host, str) and host in rule
    return host == rule
