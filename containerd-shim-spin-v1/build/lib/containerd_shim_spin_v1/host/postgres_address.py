"""Addresses of PostgreSQL servers, as guests write them.

Either a URL, ``postgres://user:password@host:port,host:port/database?option=value``, or libpq's
form, ``host=… port=… user=… password='it\\'s' dbname=… option=…``. Values in URLs are decoded.

Guests are not to be trusted: options that name files, sockets, services or addresses beside the
host's are refused, and nothing is taken from this process's environment.

Source: tokio-postgres 0.7, Config.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, cast
from urllib.parse import unquote_to_bytes

from containerd_shim_spin_v1.host.database import AddressError

SslMode: TypeAlias = Literal["disable", "prefer", "require"]
SessionAttributes: TypeAlias = Literal["any", "read-write", "read-only"]

_DEFAULT_PORT: Final = 5432
_MAX_LENGTH: Final = 16 << 10
_MAX_HOSTS: Final = 16

# Where TLS is used the certificate is verified anyhow.
_SSL_MODES: Final = {
    "disable": "disable",
    "allow": "prefer",
    "prefer": "prefer",
    "require": "require",
    "verify-ca": "require",
    "verify-full": "require",
}
_SESSIONS: Final = {name: name for name in ("any", "read-write", "read-only")}
_SENT: Final = ("application_name", "options")
# They say how long to wait, or how to find out that nobody is there, which the host decides.
_IGNORED: Final = frozenset(
    {
        *("connect_timeout", "tcp_user_timeout", "load_balance_hosts"),
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_retries"),
    }
)
_USED: Final = frozenset(
    {
        *("user", "password", "dbname", "host", "port", "sslmode", "channel_binding"),
        *("target_session_attrs", *_SENT),
    }
)

# ``name = value``, the value quoted or not; in both a backslash takes what follows as it is.
_PAIR = re.compile(r"\s*([^\s=]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s\\']|\\.)*))(?=\s|\Z)", re.S)


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """Where to connect to, and as whom."""

    hosts: tuple[tuple[str, int], ...]
    """They are tried in this order."""
    user: str
    password: str = field(repr=False)
    database: str
    ssl_mode: SslMode
    session_attributes: SessionAttributes
    settings: tuple[tuple[str, str], ...]
    """Settings of the session, which the server gets."""

    @property
    def shown(self) -> str:
        """What messages call it: ``postgres://host:port``."""
        return "postgres://" + ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts
        )


@functools.lru_cache(maxsize=64)
def parse_address(text: str) -> PostgresAddress:
    """Read an address. Raises AddressError."""
    if len(text) > _MAX_LENGTH or "\0" in text:
        raise AddressError(f"must have up to {_MAX_LENGTH} characters, and no NUL")
    scheme, separator, rest = text.partition("://")
    if separator and scheme in ("postgres", "postgresql"):
        return _address(dict(_url_options(rest)))
    if separator and "=" not in scheme:
        raise AddressError("must be a URL with postgres:// or postgresql://")
    return _address(dict(_pairs(text)))


def _url_options(rest: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a URL by the names that the other form has for them."""
    place, _, query = rest.partition("?")
    credentials, at, place = place.rpartition("@")
    authority, slash, database = place.partition("/")
    if at:
        user, colon, password = credentials.partition(":")
        yield "user", _decode(user)
        if colon:
            yield "password", _decode(password)
    hosts, ports = [], []
    for part in authority.split(",") if authority else ():
        found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::([0-9]*))?", part)
        if found is None:
            raise AddressError("has a host or port that is none")
        hosts.append(_decode(found[1].removeprefix("[").removesuffix("]")))
        ports.append(found[2] or str(_DEFAULT_PORT))
    if hosts:
        yield "host", ",".join(hosts)
        yield "port", ",".join(ports)
    if slash and database:
        yield "dbname", _decode(database)
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise AddressError("has an option without a value")
        yield _decode(name), _decode(value)


def _decode(text: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise AddressError("is not UTF-8 when decoded") from None


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while text[position:].strip():
        found = _PAIR.match(text, position)
        if found is None:
            raise AddressError("must be a URL, or name=value pairs")
        value = found[2] if found[2] is not None else found[3]
        yield found[1], re.sub(r"\\(.)", r"\1", value, flags=re.S)
        position = found.end()


def _address(options: dict[str, str]) -> PostgresAddress:
    for name, value in options.items():
        if name not in _USED | _IGNORED:
            raise AddressError(f"has the option {name[:64]!r}, which is not supported")
        if "\0" in value:
            raise AddressError(f"has a NUL in {name!r}")
    if not options.get("user"):
        raise AddressError("names no user")
    if options.get("channel_binding", "prefer") not in ("disable", "prefer"):
        raise AddressError("requires channel_binding, which is not supported")
    return PostgresAddress(
        hosts=_hosts(options.get("host", ""), options.get("port", "")),
        user=options["user"],
        password=options.get("password", ""),
        database=options.get("dbname") or options["user"],
        ssl_mode=cast(SslMode, _choice(options, "sslmode", "prefer", _SSL_MODES)),
        session_attributes=cast(
            SessionAttributes,
            _choice(options, "target_session_attrs", "any", _SESSIONS),
        ),
        settings=tuple((name, options[name]) for name in _SENT if name in options),
    )


def _hosts(hosts: str, ports: str) -> tuple[tuple[str, int], ...]:
    names = hosts.split(",")
    if not all(names):
        raise AddressError("names no host")
    if any(name.startswith(("/", "@")) for name in names):
        raise AddressError("names a Unix socket, which guests cannot connect to")
    numbers = [_port(port) for port in ports.split(",")]
    if len(numbers) == 1:
        numbers *= len(names)
    if len(numbers) != len(names) or len(names) > _MAX_HOSTS:
        raise AddressError(
            f"must have a port for each host, or one for all, and up to {_MAX_HOSTS} hosts"
        )
    return tuple(zip(names, numbers, strict=True))


def _port(text: str) -> int:
    number = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else -1
    if not text:
        return _DEFAULT_PORT
    if not 1 <= number <= 65535:
        raise AddressError("has a port that is not between 1 and 65535")
    return number


def _choice(options: dict[str, str], name: str, default: str, known: dict[str, str]) -> str:
    value = options.get(name, default)
    if value not in known:
        raise AddressError(f"has {name}={value[:64]!r}; it can be {', '.join(known)}")
    return known[value]
