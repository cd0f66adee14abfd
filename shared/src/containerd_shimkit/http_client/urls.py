"""URLs that guests make requests to, read once: what is checked is what is connected to.

The rules are those of browsers and of Spin's client, as far as they are harmless: blanks around a
URL and line ends in it are dropped, ``\\`` is ``/``, ``.`` and ``..`` are resolved, and what may
not stand in a path is percent-encoded. Hosts are names in ASCII and lower case, or addresses,
however they were written. A user and password are told apart from the host by the last ``@`` before
the path. What browsers guess beyond that (``http:host``, ``http:///host``) is refused.

Sources: WHATWG URL, sections 4.4 (basic URL parser) and 1.3 (percent-encoded bytes).
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote_to_bytes, urljoin

from containerd_shimkit.hosts import HostError, parse_host

MAX_LENGTH: Final = 65_534  # as Spin's client

_PORTS: Final = {"http": 80, "https": 443}
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_PORT: Final = re.compile(r"[0-9]{1,5}")
_BLANK: Final = "".join(map(chr, range(0x21)))
# What stays as it is, besides letters, digits and "_.-~". An escape is not escaped again.
_IN_PATH: Final = "!$%&'()*+,/:;=@[\\]^|"
_IN_QUERY: Final = "!$%&()*+,/:;=?@[\\]^`{|}"
_DOT: Final = re.compile(r"\.|%2e", re.IGNORECASE)


class InvalidUrlError(ValueError):
    """A guest's URL is none that a request can be made to."""


@dataclass(frozen=True, slots=True)
class OutboundUrl:
    """Where a request goes."""

    scheme: str
    """``http`` or ``https``."""
    host: str
    """A name, or an address without brackets."""
    port: int
    target: str
    """Path and query, ASCII; it begins with ``/``."""
    authorization: str | None = field(default=None, repr=False)
    """The header's value for the user and password in the URL."""

    @property
    def authority(self) -> str:
        """Host and port, the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """``https://example.com``, fit for messages: it holds no secret."""
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return self.origin + self.target

    def join(self, location: str) -> OutboundUrl:
        """Return where a response's ``Location`` leads. Raises InvalidUrlError."""
        try:
            joined = urljoin(str(self), location)
        except ValueError:
            raise InvalidUrlError("the location is no URL") from None
        return parse_url(joined)


def parse_url(text: str) -> OutboundUrl:
    """Read an absolute URL. Raises InvalidUrlError, whose message shows nothing of a password."""
    text = _clean(text)
    matched = _URL.fullmatch(text)
    if matched is None:
        raise InvalidUrlError("the URL must be absolute, or begin with /")
    scheme = matched[1].lower()
    if scheme not in _PORTS:
        raise InvalidUrlError(f"the scheme {scheme[:20]!r} is neither http nor https")
    path, query = _split(matched[2])
    if not path.startswith("//"):
        raise InvalidUrlError(f"{scheme}: must be followed by //")
    place, slash, path = path[2:].partition("/")
    credentials, at, place = place.rpartition("@")
    host, port = _host_and_port(place, _PORTS[scheme])
    return OutboundUrl(
        scheme, host, port, _target(slash + path, query), _basic(credentials) if at else None
    )


def parse_target(text: str) -> str:
    """Return path and query of a URL without a host, which begins with ``/``.

    Raises InvalidUrlError.
    """
    path, query = _split(_clean(text))
    if not path.startswith("/"):
        raise InvalidUrlError("the path must begin with /")
    return _target(path, query)


def _clean(text: str) -> str:
    if len(text) > MAX_LENGTH:
        raise InvalidUrlError(f"the URL is longer than {MAX_LENGTH} characters")
    return re.sub(r"[\t\r\n]", "", text.strip(_BLANK))


def _split(text: str) -> tuple[str, str | None]:
    """Return path and query, None if there is no ``?``; what is after ``#`` is lost."""
    text = text.partition("#")[0]
    path, mark, query = text.partition("?")
    return path.replace("\\", "/"), query if mark else None


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        host, port = text, ""
    if port and (_PORT.fullmatch(port) is None or int(port) > 65535):
        raise InvalidUrlError(f"the port {port[:20]!r} is not between 0 and 65535")
    try:
        return str(parse_host(host)), int(port) if port else default
    except HostError as exc:
        raise InvalidUrlError(str(exc)) from None


def _target(path: str, query: str | None) -> str:
    try:
        target = quote(_without_dots(path), safe=_IN_PATH)
        if query is not None:
            target += "?" + quote(query, safe=_IN_QUERY)
    except UnicodeEncodeError:
        raise InvalidUrlError("the URL holds half a character") from None
    if len(target) > MAX_LENGTH:
        raise InvalidUrlError(f"the URL is longer than {MAX_LENGTH} characters")
    return target


def _without_dots(path: str) -> str:
    kept: list[str] = []
    parts = path.removeprefix("/").split("/")
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        match _DOT.sub(".", part):
            case "..":
                del kept[-1:]
                kept += [""] if last else []
            case ".":
                kept += [""] if last else []
            case _:
                kept.append(part)
    return "/" + "/".join(kept)


def _basic(credentials: str) -> str | None:
    user, _, password = credentials.partition(":")
    if not user and not password:
        return None
    text = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return f"Basic {base64.b64encode(text).decode('ascii')}"
