"""Networks that no guest may connect to, whatever it is allowed.

Some are listed, or every network that is not for the whole internet. What is blocked is the address
connected to, not its name: so names are looked up here, and the connection is made to the addresses
that are left.

An IPv6 address that holds an IPv4 address is blocked, too, where the IPv4 address is: a gateway,
or the kernel, takes the packet there.

Sources: Spin 3.6 crates/outbound-networking-config/src/blocked_networks.rs; IANA's registries of
special-purpose addresses.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from typing import Final, TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_LOOKUP_SECONDS: Final = 10.0
_MOST_ADDRESSES: Final = 16

# Written out, as ``is_global`` of Python is not the same in every version. Multicast is here since
# it reaches hosts of the own network.
_PRIVATE_4: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
            *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16"),
            *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        ),
    )
)
_PRIVATE_6: Final = tuple(
    map(
        ipaddress.IPv6Network,
        (
            *("::/128", "::1/128", "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:2::/48"),
            *("2001:10::/28", "2001:db8::/32", "3fff::/20", "5f00::/16", "fc00::/7"),
            *("fe80::/10", "fec0::/10", "ff00::/8"),
        ),
    )
)
# The last 32 bits are an IPv4 address: compatible, mapped, translated (RFC 4291, 2765, 6052).
_HOLDS_IPV4: Final = tuple(
    map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96"))
)


class BlockedNetworkError(Exception):
    """Every address of a host is in a blocked network."""


class NameLookupError(OSError):
    """A name that leads nowhere, or whose lookup took too long."""


class Networks:
    """The blocked networks of an app."""

    def __init__(
        self,
        blocked: Iterable[Network] = (),
        block_private: bool = False,
        setting: str = "block_networks of the runtime configuration",
    ) -> None:
        """block_private: every network that is not for the whole internet, as well.

        setting: what says so, for messages.
        """
        self._setting = setting
        private: tuple[Network, ...] = (*_PRIVATE_4, *_PRIVATE_6) if block_private else ()
        self._blocked = (*blocked, *private)

    @property
    def active(self) -> bool:
        """Whether anything is blocked; if not, nobody needs to look up names beforehand."""
        return bool(self._blocked)

    def blocks(self, address: Address) -> bool:
        """Return whether no connection may be made to ``address``."""
        if any(address in network for network in self._blocked):
            return True
        inner = _inner_ipv4(address)
        return inner is not None and self.blocks(inner)

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of ``host`` that a connection may be made to, the best first.

        host: a name or an address, IPv6 with or without brackets.
        Raises BlockedNetworkError if none is left, NameLookupError.
        """
        found = await look_up(host, port)
        allowed = [text for text in found if not self.blocks(ipaddress.ip_address(text))]
        if not allowed:
            raise self.refusal(host)
        return allowed

    def refusal(self, host: str) -> BlockedNetworkError:
        """Return the error for a host of which no address is left."""
        return BlockedNetworkError(f"{host} is in a network that {self._setting} blocks")


async def look_up(host: str, port: int) -> list[str]:
    """Return the addresses of ``host``, by a thread of the event loop. Raises NameLookupError."""
    name = host.removeprefix("[").removesuffix("]")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_LOOKUP_SECONDS):
            found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise NameLookupError(
            f"cannot find the address of {host}: no answer within {_LOOKUP_SECONDS:g} s"
        ) from None
    except (socket.gaierror, UnicodeError) as exc:  # Python refuses labels that are too long
        reason = exc.strerror if isinstance(exc, OSError) else "it is no host name"
        raise NameLookupError(f"cannot find the address of {host}: {reason}") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))[:_MOST_ADDRESSES]


def _inner_ipv4(address: Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if any(address in network for network in _HOLDS_IPV4):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.sixtofour
