"""What a component is told about a request besides the request itself.

The Spin executor passes seven values as headers ``spin-...`` after the request's own, the WAGI
executor the same values as environment variables. Routes with ``:name`` add one for each name.

Where this is not as in Spin 1.x:

- Headers of these names sent by the client are dropped. Spin leaves them in, before its own,
  and a guest that takes the first of two equal headers believes the client.
- A Host header that is no host, or a second one, is answered 400; Spin closes the connection for
  the former and takes the first of several.
- So is a Host header that is not the host of a target that is a whole URL. Spin 1.x believes the
  header; Spin 3 fails the request with 500.
- Without either the host is ``localhost``, as in Spin 1.x, whatever the manifest's version: Spin 3
  fails the request, but a health check of HTTP/1.0 need not know a host.

As in Spin 3, a ``Host`` from outside that is one of a component is dropped. As in Spin, another
header whose value is not UTF-8 fails the request with 500: guests get strings.
Sources: Spin 1.5 crates/trigger-http/src/{lib,spin}.rs, Spin 3.6 crates/trigger-http/src/headers.rs
and server.rs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from containerd_shim_spin_v1.routing.v1 import Match, Route, RoutePattern
from containerd_shimkit.errors import InvalidArgumentError

DEFAULT_HOST = "localhost"

# In Spin's order; the header, and the environment variable of the WAGI executor.
_NAMES = (
    ("spin-path-info", "PATH_INFO"),
    ("spin-full-url", "X_FULL_URL"),
    ("spin-matched-route", "X_MATCHED_ROUTE"),
    ("spin-base-path", "X_BASE_PATH"),
    ("spin-raw-component-route", "X_RAW_COMPONENT_ROUTE"),
    ("spin-component-route", "X_COMPONENT_ROUTE"),
    ("spin-client-addr", "X_CLIENT_ADDR"),
)
_OWN_HOST = re.compile(rb".*\.spin\.internal\.?(?::[0-9]*)?", re.IGNORECASE | re.DOTALL)
SPIN_HEADERS = frozenset(header.encode() for header, _ in _NAMES)
"""Names of the headers that only we may set."""

_PATH_MATCH = b"spin-path-match-"

# host or [address], then perhaps a port. RFC 3986 section 3.2, without the user name.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9\-._~!$&'()*+,;=%]+)(?::[0-9]*)?")


class RequestRefusedError(InvalidArgumentError):
    """A request that no guest is shown; ``http_status`` is the answer, the message for the log."""

    def __init__(self, http_status: int, message: str) -> None:
        super().__init__(message)
        self.http_status = http_status


class RouteData:
    """The values for one route; those that are the same for every request are made once."""

    __slots__ = ("_constant_env", "_constant_texts")

    def __init__(self, route: Route) -> None:
        values = (
            route.matched_route,
            route.base_path,
            route.raw_component_route,
            route.component_route,
        )
        names = _NAMES[2:6]
        self._constant_texts = [
            text.encode() for n, v in zip(names, values, strict=True) for text in (n[0], v)
        ]
        self._constant_env = [(n[1], v) for n, v in zip(names, values, strict=True)]

    def headers(self, path_info: str, url: str, client: str) -> list[bytes]:
        """Return the headers for the Spin executor, in Spin's order: names and values in turn.

        url: see ``full_url``.  client: see ``client_address``.
        """
        return [
            b"spin-path-info",
            path_info.encode(),
            b"spin-full-url",
            url.encode(),
            *self._constant_texts,
            b"spin-client-addr",
            client.encode(),
        ]

    def env(self, path_info: str, url: str, client: str) -> list[tuple[str, str]]:
        """Return the same as environment variables for the WAGI executor."""
        return [
            ("PATH_INFO", path_info),
            ("X_FULL_URL", url),
            *self._constant_env,
            ("X_CLIENT_ADDR", client),
        ]


class RouteDataTable:
    """The ``RouteData`` of every route of a router."""

    __slots__ = ("_by_index",)

    def __init__(self, routes: Sequence[Route]) -> None:
        self._by_index = [RouteData(route) for route in routes]

    def headers(self, match: Match, url: str, client: str) -> list[bytes]:
        """Return ``RouteData.headers`` of the matched route."""
        headers = self._by_index[match.route.index].headers(match.path_info, url, client)
        for name, value in match.captures:
            header = f"spin-path-match-{name.replace('_', '-').lower()}"
            headers += (header.encode(), value.encode())
        return headers

    def env(self, match: Match, url: str, client: str) -> list[tuple[str, str]]:
        """Return ``RouteData.env`` of the matched route."""
        env = self._by_index[match.route.index].env(match.path_info, url, client)
        env += ((f"X_PATH_MATCH_{name.upper()}", value) for name, value in match.captures)
        return env


def client_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Return the request's own headers, without those that only we may set: names and values in
    turn, all of them UTF-8.

    headers: names in lower case, order and repetitions kept.
    Raises RequestRefusedError (500, as Spin) if a value is not UTF-8.
    """
    texts: list[bytes] = []
    for name, value in headers:
        if name not in SPIN_HEADERS and not name.startswith(_PATH_MATCH):
            if not value.isascii():
                _check_utf8(value)
            texts += (name, value)
    return texts


def _check_utf8(value: bytes) -> None:
    try:
        value.decode()
    except UnicodeDecodeError:
        raise RequestRefusedError(
            500, f"header with bytes that are not UTF-8: {value[:80]!r}"
        ) from None


def without_own_host(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return headers without a Host that only requests within the app have, as Spin."""
    return [
        (name, value)
        for name, value in headers
        if name != b"host" or _OWN_HOST.fullmatch(value) is None
    ]


def chained_match(component_id: str, path: str) -> Match:
    """Return how a request of one component to another matches: as by the route ``/...``."""
    route = Route(
        component_id=component_id,
        index=0,
        pattern=RoutePattern("", wildcard=True),
        base_path="/",
        raw_component_route="/...",
        component_route="",
        matched_route="/...",
    )
    return Match(route, path)


def request_host(headers: Iterable[tuple[bytes, bytes]], authority: bytes | None = None) -> str:
    """Return the request's host, with its port if there is one; ``localhost`` if nobody says.

    authority: of a target that is a whole URL; one that only requests within the app have says
    nothing.
    Raises RequestRefusedError (400) for what is no host with or without a port, for several, and
    for a Host header that is not that of the URL.
    """
    values = [value for name, value in headers if name == b"host"]
    if authority is not None:
        if values and values[0].lower() != authority.lower():
            raise RequestRefusedError(
                400, f"Host header {values[0][:80]!r} is not the URL's {authority[:80]!r}"
            )
        if _OWN_HOST.fullmatch(authority) is None:
            values = values or [authority]
    if not values:
        return DEFAULT_HOST
    if len(values) > 1 or _HOST.fullmatch(values[0]) is None:
        raise RequestRefusedError(400, f"bad Host header {b', '.join(values)[:80]!r}")
    return values[0].decode("ascii")


def request_target(path: bytes, query: bytes) -> str:
    """Return path and query as the guest's ``uri`` and the full URL have them.

    path: as sent; empty is ``/``.  query: without ``?``; a ``?`` with nothing after it is lost.
    Raises RequestRefusedError (400) for bytes that are not ASCII; those must be percent-encoded.
    """
    target = path or b"/"
    if query:
        target += b"?" + query
    try:
        return target.decode("ascii")
    except UnicodeDecodeError:
        raise RequestRefusedError(
            400, f"bytes in the path that are not ASCII: {target[:80]!r}"
        ) from None


def full_url(scheme: str, host: str, target: str) -> str:
    """Return the URL of a request: ``http://localhost:80/path?query``."""
    return f"{scheme}://{host}{target}"


def client_address(host: str, port: int) -> str:
    """Return ``127.0.0.1:4000`` or ``[::1]:4000``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
