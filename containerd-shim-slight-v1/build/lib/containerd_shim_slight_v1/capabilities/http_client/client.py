"""Requests of guests, by one pool of connections for the app.

Redirects are followed, ten at most, each to a server that may be asked; credentials do not go with
them to another one. Cookies and proxies of the environment are not used.

Source: SpiderLightning 0.5 wit/http-client.wit, crates/http-client/src/lib.rs; reqwest 0.11,
redirect.
"""

from __future__ import annotations

import io
import os
import ssl
from dataclasses import dataclass
from typing import Final

import aiohttp
import yarl

from containerd_shim_slight_v1.capabilities.context import AppContext, ConfigValueError
from containerd_shim_slight_v1.capabilities.errors import CapabilityError, NoCapabilityError
from containerd_shim_slight_v1.capabilities.http_client.allowed import (
    AllowedHosts,
    AllowedHostsError,
    normal_host,
)
from containerd_shim_slight_v1.slightfile.resources import HTTP_CLIENT
from containerd_shimkit.hosts import HostError
from containerd_shimkit.http.messages import FRAMING, header_fault
from containerd_shimkit.tls import TlsConfigError

ALLOWED_SETTING: Final = "SLIGHT_HTTP_CLIENT_ALLOWED_HOSTS"
ALLOWED_CONFIG: Final = "ALLOWED_HOSTS"
MAX_BODY_BYTES: Final = 64 << 20

_CONNECT_SECONDS: Final = 10.0
_IDLE_SECONDS: Final = 30.0
_MAX_URL: Final = 16 << 10
_MAX_REDIRECTS: Final = 10
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAX_HEADERS: Final = 1000
_MAX_HEADER_BYTES: Final = 256 << 10
_MAX_LINE_BYTES: Final = 64 << 10
_CREDENTIALS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
# A body of bytes would get a content type, and a request the client's name and wishes.
_NOT_ADDED: Final = ("Accept-Encoding", "Content-Type", "User-Agent")

Headers = list[tuple[str, str]]


class HttpClientError(CapabilityError):
    """There is no response: ``unexpected-error``."""


class InvalidUrlError(HttpClientError):
    """What the guest asks for is no URL of http or https."""

    case = "invalid-url"


class HttpTimeoutError(HttpClientError):
    """The server does not answer in time."""

    case = "timeout-error"


class HttpProtocolError(HttpClientError):
    """The server's answer is no HTTP response, or not a whole one."""

    case = "protocol-error"


class HostNotAllowedError(NoCapabilityError):
    """The slightfile or the environment does not name the server."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response with all of its body."""

    status: int
    headers: Headers
    """Names in lower case."""
    body: bytes


class HttpClient:
    """Made in the event loop that serves."""

    def __init__(self, app: AppContext) -> None:
        self._app = app
        # Guests may change the environment that they see.
        self._by_environment = app.environment.get(ALLOWED_SETTING)
        self._allowed: list[AllowedHosts] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def request(self, method: str, url: str, headers: Headers, body: bytes) -> Response:
        """Return the response. Raises HttpClientError, NoCapabilityError."""
        target, headers = _url(url), _sendable(headers)
        for _ in range(_MAX_REDIRECTS + 1):
            self._check(target)
            response = await self._exchange(method, target, headers, body)
            place = next((v for n, v in response.headers if n == "location"), None)
            if response.status not in _REDIRECTS or place is None:
                return response
            new = _joined(target, place)
            if new.origin() != target.origin():
                headers = [pair for pair in headers if pair[0] not in _CREDENTIALS]
            if response.status <= 303 and method not in ("GET", "HEAD"):
                method, body = "GET", b""
                headers = [pair for pair in headers if not pair[0].startswith("content-")]
            headers = [pair for pair in headers if pair[0] != "host"]
            target = new
        raise HttpClientError(f"{_origin(target)}: more than {_MAX_REDIRECTS} redirects")

    async def close(self) -> None:
        """End every connection."""
        if self._session is not None:
            await self._session.close()

    def _check(self, url: yarl.URL) -> None:
        """Raise HttpClientError or NoCapabilityError unless a server may be asked."""
        if self._allowed is None:
            self._allowed = self._read_allowed()
        host, port = str(url.host), int(url.port or 0)
        try:
            normal = normal_host(f"[{host}]" if ":" in host else host)
        except HostError as exc:
            raise InvalidUrlError(str(exc)) from None
        if not all(allowed.allows(url.scheme, normal, port) for allowed in self._allowed):
            raise HostNotAllowedError(
                f"{_origin(url)} is not among the allowed hosts: {ALLOWED_CONFIG} of the"
                f" slightfile's {HTTP_CLIENT}, {ALLOWED_SETTING} of the environment"
            )

    def _read_allowed(self) -> list[AllowedHosts]:
        capability = next(
            (c for c in self._app.slightfile.capabilities if c.resource.family == HTTP_CLIENT), None
        )
        if capability is None:
            raise NoCapabilityError(f"slightfile.toml has no {HTTP_CLIENT} capability")
        texts = [] if self._by_environment is None else [self._by_environment]
        reference = (capability.configs or {}).get(ALLOWED_CONFIG)
        if reference is not None:
            if reference.store != "local":
                raise ConfigValueError(f"{HTTP_CLIENT}: {ALLOWED_CONFIG} must be a literal")
            texts.append(reference.key)
        try:
            return [AllowedHosts(text) for text in texts]
        except AllowedHostsError as exc:
            raise ConfigValueError(f"{HTTP_CLIENT}: allowed hosts: {exc}") from None

    async def _exchange(
        self, method: str, url: yarl.URL, headers: Headers, body: bytes
    ) -> Response:
        tls = self._tls() if url.scheme == "https" else None
        try:
            async with self._connections().request(
                method,
                url,
                headers=headers,
                data=io.BytesIO(body) if body else None,
                allow_redirects=False,
                ssl=tls or True,
            ) as response:
                data = bytearray()
                async for piece in response.content.iter_any():
                    data += piece
                    if len(data) > MAX_BODY_BYTES:
                        raise HttpClientError(
                            f"{_origin(url)}: the body has more than {MAX_BODY_BYTES} bytes"
                        )
                pairs = [
                    (name.decode("latin-1").lower(), value.decode(errors="replace"))
                    for name, value in response.raw_headers
                ]
                return Response(response.status, pairs, bytes(data))
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise _error(url, exc) from None

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # A guest makes one call at a time: there are no more than requests in flight.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=_NOT_ADDED,
                # What a request may take in all is the guest's deadline.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
                max_line_size=_MAX_LINE_BYTES,
                max_field_size=_MAX_LINE_BYTES,
                max_headers=_MAX_HEADERS,
            )
        return self._session

    def _tls(self) -> ssl.SSLContext:
        try:
            return self._app.certificates.context()
        except TlsConfigError as exc:
            raise HttpClientError(str(exc)) from None


def _url(text: str) -> yarl.URL:
    try:
        url = yarl.URL(text) if len(text) <= _MAX_URL else None
        if url is not None and url.scheme in ("http", "https") and url.host and url.port:
            return url.with_fragment(None)
    except ValueError:
        pass
    # It may hold a password.
    raise InvalidUrlError(f"a URL is like https://example.com/path, with up to {_MAX_URL} bytes")


def _joined(url: yarl.URL, place: str) -> yarl.URL:
    try:
        return _url(str(url.join(yarl.URL(place))))
    except ValueError:
        raise HttpProtocolError(f"{_origin(url)}: it redirects to what is no URL") from None


def _sendable(headers: Headers) -> Headers:
    """Return headers with names in lower case, without those of one connection."""
    kept: Headers = []
    size = 0
    for name, value in headers:
        encoded = name.lower().encode(errors="replace")
        if header_fault(encoded, value.encode(errors="replace")) is not None:
            raise HttpProtocolError(f"bad header {name[:80]!r}: it cannot be sent")
        size += len(name) + len(value)
        if encoded not in FRAMING and encoded != b"expect":
            kept.append((name.lower(), value))
    if len(kept) > _MAX_HEADERS or size > _MAX_HEADER_BYTES:
        raise HttpProtocolError(
            f"more than {_MAX_HEADERS} headers, or more than {_MAX_HEADER_BYTES} bytes of them"
        )
    return kept


def _origin(url: yarl.URL) -> str:
    return f"{url.scheme}://{url.host_subcomponent}:{url.port}"


def _error(url: yarl.URL, exc: Exception) -> HttpClientError:
    """Return the error for what aiohttp raises, whose messages show whole URLs."""
    origin = _origin(url)
    match exc:
        case aiohttp.ConnectionTimeoutError() | aiohttp.ServerTimeoutError() | TimeoutError():
            return HttpTimeoutError(f"{origin}: no connection in time")
        case aiohttp.ClientConnectorCertificateError():
            return HttpClientError(f"{origin}: the server's certificate is not accepted")
        case aiohttp.ClientConnectorSSLError():
            return HttpClientError(f"{origin}: the TLS handshake failed")
        case aiohttp.ClientConnectorDNSError():
            return HttpClientError(f"{origin}: the name leads nowhere")
        case aiohttp.ClientConnectorError():
            number = exc.os_error.errno
            reason = os.strerror(number) if number else "no address answers"
            return HttpClientError(f"{origin}: cannot connect: {reason}")
        case aiohttp.ClientPayloadError() | aiohttp.ClientResponseError():
            return HttpProtocolError(f"{origin}: the answer is no HTTP response, or ends too early")
        case aiohttp.InvalidURL():
            return InvalidUrlError(f"{origin}: the URL cannot be asked for")
    return HttpProtocolError(f"{origin}: the connection was closed")
