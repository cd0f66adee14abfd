"""Addresses of Redis servers: ``redis://[user:password@]host[:port][/database]``.

``rediss://`` is TLS. The address is a guest's, so it says nothing else: a query is ignored, as
Spin does, and there are neither paths of sockets nor files of certificates.

Source: Spin 3.6 crates/factor-outbound-redis; redis-rs 0.32, ``parse_redis_url``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

from containerd_shimkit.hosts import HostError, parse_host

DEFAULT_PORT: Final = 6379
_MAX_CHARACTERS: Final = 4096
_FORM: Final = re.compile(
    r"(?P<scheme>rediss?)://"
    r"(?:(?P<user>[^/?#@:]*)(?::(?P<password>[^/?#]*))?@)?"
    r"(?P<host>\[[^\]/?#@]*\]|[^/?#@:\[\]]+)(?::(?P<port>[0-9]{0,5}))?"
    r"(?:/(?P<database>[0-9]{0,9})/?)?"
    r"(?:\?[^#]*)?(?P<fragment>#.*)?",
    re.IGNORECASE | re.DOTALL,
)


class AddressError(Exception):
    """An address is not of the form; the message does not hold it: it may hold a password."""


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a server is, and as whom to speak to it."""

    host: str
    """A name in lower case and ASCII, or an IP address, without brackets."""
    port: int
    database: int = 0
    tls: bool = False
    username: bytes | None = None
    password: bytes | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> RedisAddress:
        """Read an address. Raises AddressError."""
        found = _FORM.fullmatch(text) if len(text) <= _MAX_CHARACTERS else None
        if found is None or re.search(r"[\x00-\x20\x7f]", text):
            raise AddressError(
                "the Redis address is not of the form redis://[user:password@]host[:port][/database]"
            )
        if found["fragment"]:
            # redis-rs reads ``#insecure`` as: do not verify the certificate.
            raise AddressError("the Redis address has a fragment: certificates are always verified")
        try:
            host = str(parse_host(found["host"]))
        except HostError as exc:
            raise AddressError(f"the Redis address has a bad host: {exc}") from None
        port = int(found["port"] or DEFAULT_PORT)
        if not 0 < port <= 65535:
            raise AddressError("the Redis address has a bad port: it must be 1 to 65535")
        return cls(
            host=host,
            port=port,
            database=int(found["database"] or 0),
            tls=found["scheme"].lower() == "rediss",
            username=unquote_to_bytes(found["user"]) if found["user"] else None,
            password=unquote_to_bytes(found["password"]) if found["password"] else None,
        )

    @property
    def scheme(self) -> str:
        """As permission is asked for."""
        return "rediss" if self.tls else "redis"

    def __str__(self) -> str:
        """For messages: without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"
