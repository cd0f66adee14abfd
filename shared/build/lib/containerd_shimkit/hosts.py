"""Hosts as URLs have them: names, and IP addresses however they are written.

Source: WHATWG URL, hosts.
"""

from __future__ import annotations

import encodings.idna
import encodings.punycode  # codecs are found by name, which is too late in a container  # noqa: F401
import ipaddress
import re
import socket
from typing import Final, TypeAlias

from containerd_shimkit.errors import ManifestError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_FORBIDDEN: Final = re.compile(r"[\x00-\x20\"#%/:<>?@\[\\\]^`{|}\x7f]")


class HostError(ManifestError):
    """A host, or what holds one, is not of the form; the message is what is wrong with it."""


def parse_host(host: str) -> Address | str:
    """Return an address, or a name in lower case and ASCII. Raises HostError."""
    if host.startswith("["):
        try:
            # A zone, which Python would take, is no part of a URL.
            valid = host.endswith("]") and "%" not in host
            return ipaddress.IPv6Address(host[1:-1] if valid else "")
        except ValueError:
            raise HostError(f"`{host}` is no IPv6 address") from None
    if not host or (invalid := _FORBIDDEN.search(host)) is not None:
        shown = f": `{invalid.group()}` is not allowed in it" if host and invalid else ""
        raise HostError(f"`{host}` is no host{shown}")
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            raise HostError(f"`{host}` is no host name") from None
        # Its characters may stand for several: one of them is "a/c".
        return parse_host(host)
    host = host.lower()
    last = host.removesuffix(".").rpartition(".")[2]
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last):  # then it is an address, however it is written
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host.removesuffix(".")))
        except OSError:
            raise HostError(f"`{host}` is no IPv4 address") from None
    return host
