"""HTTP requests as a client: one exchange at a time, without a view on who may make it.

Nothing is sent that was not asked for, besides ``Host`` and what frames the body: no user agent,
no cookies kept, no ``.netrc``. Proxies of the environment are not used: who blocks networks, or
allows some hosts, means the address that is connected to.

Connections are kept for the next request, by host, port and TLS context. An idempotent request
whose kept connection the server has just closed is made again on a new one.
"""

from __future__ import annotations

import io
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from containerd_shimkit.http_client.networks import Networks, look_up
from containerd_shimkit.http_client.urls import OutboundUrl

Headers: TypeAlias = list[tuple[str, str]]

_CONNECT_SECONDS: Final = 10.0
_IDLE_SECONDS: Final = 30.0
_MAX_HEADERS: Final = 1000
_MAX_HEADER_BYTES: Final = 256 << 10
_MAX_RESPONSE_HEADERS: Final = 1000
_MAX_LINE_BYTES: Final = 64 << 10

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,8192}")  # RFC 9110 section 5.6.2
_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")  # RFC 9110 section 5.5
FRAMING: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of one connection, which are the client's own: two opinions would forge requests."""
# A body of bytes would get a content type, and a request the client's name and wishes.
_NOT_ADDED: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class RequestError(Exception):
    """A request that cannot be made: its method, a header, or too much of something."""


class RequestFailedError(Exception):
    """No response, or not all of it; the message names the server and nothing secret."""


class RequestTimeoutError(RequestFailedError):
    """A server does not answer in time."""


class CannotConnectError(RequestFailedError):
    """There is no connection to a server."""


class BodyTooLargeError(RequestFailedError):
    """A body exceeds what is kept in memory."""


@dataclass(slots=True, eq=False)
class OpenResponse:
    """A response whose body is still to be read; it must be closed."""

    status: int
    headers: list[tuple[bytes, bytes]]
    """Names in lower case, order and repetitions kept."""
    _response: aiohttp.ClientResponse
    _origin: str

    def __aiter__(self) -> OpenResponse:
        return self

    async def __anext__(self) -> bytes:
        """Return what of the body has come. Raises RequestFailedError."""
        try:
            data = await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as exc:
            raise RequestFailedError(f"{self._origin}: {_reason(exc)}") from None
        if not data:
            raise StopAsyncIteration
        return data

    def close(self) -> None:
        """Keep the connection if the body was read to its end, else close it."""
        self._response.close()


async def read_all(body: AsyncIterable[bytes], limit: int, what: str) -> bytes:
    """Return a whole body.

    limit: in bytes.  what: whose it is, for the message.  Raises BodyTooLargeError.
    """
    data = bytearray()
    async for piece in body:
        data += piece
        if len(data) > limit:
            raise BodyTooLargeError(f"{what}: the body has more than {limit} bytes")
    return bytes(data)


class HttpClient:
    """The connections of an app. To be made in the event loop."""

    def __init__(
        self,
        networks: Networks,
        *,
        keep_connections: bool = True,
        limit: int | None = None,
        connect_seconds: float = _CONNECT_SECONDS,
    ) -> None:
        """limit: of connections at once; who comes later waits. None is no limit."""
        self._networks = networks
        resolver = _Resolver(networks)
        if keep_connections:
            connector = aiohttp.TCPConnector(
                resolver=resolver, limit=limit or 0, keepalive_timeout=_IDLE_SECONDS
            )
        else:
            connector = aiohttp.TCPConnector(resolver=resolver, limit=limit or 0, force_close=True)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_NOT_ADDED,
            # What a request may take in all is its guest's deadline.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds),
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            max_headers=_MAX_RESPONSE_HEADERS,
        )

    async def close(self) -> None:
        """End every connection, those in use as well."""
        await self._session.close()

    async def exchange(
        self,
        method: str,
        url: OutboundUrl,
        headers: Headers,
        body: bytes | AsyncIterable[bytes],
        context: ssl.SSLContext | None,
    ) -> OpenResponse:
        """Make a request; return when the head of its response is there.

        Redirects are not followed.  headers: those of FRAMING are left out.  context: for https.
        Raises RequestError, BlockedNetworkError, RequestFailedError.
        """
        if _TOKEN.fullmatch(method) is None or method.upper() == "CONNECT":
            raise RequestError(f"{method[:80]!r} is no method that a request can have")
        self._check_address(url)
        try:
            response = await self._session.request(
                method,
                yarl.URL(str(url), encoded=True),
                headers=sendable(headers),
                data=_sent(body),
                allow_redirects=False,
                ssl=context or True,
            )
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise _failure(exc)(f"{method} {url.origin}: {_reason(exc)}") from None
        if response.status < 200:  # what follows is another protocol, which nobody asked for
            response.close()
            raise RequestFailedError(f"{method} {url.origin}: the server changes the protocol")
        pairs = [(name.lower(), value) for name, value in response.raw_headers]
        return OpenResponse(response.status, pairs, response, url.origin)

    def _check_address(self, url: OutboundUrl) -> None:
        try:
            address = ipaddress.ip_address(url.host)
        except ValueError:
            return  # a name: the resolver looks it up
        if self._networks.blocks(address):
            raise self._networks.refusal(url.host)


class _Resolver(AbstractResolver):
    """Addresses that connections may be made to."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if self._networks.active:
            found = await self._networks.resolve(host, port)
        else:
            found = await look_up(host, port)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found
        ]

    async def close(self) -> None:
        """Nothing is open."""


def _sent(body: bytes | AsyncIterable[bytes]) -> Any:
    """Return a body as aiohttp sends it in pieces: others get their turn meanwhile."""
    return io.BytesIO(body) if body and isinstance(body, bytes) else body or None


def sendable(headers: Iterable[tuple[str, str]]) -> Headers:
    """Return headers without those of FRAMING, names in lower case.

    Raises RequestError for what is no header.
    """
    kept: Headers = []
    total = 0
    for name, value in headers:
        if _TOKEN.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            # The value may be a token.
            raise RequestError(f"bad header {name[:80]!r}: it cannot be sent")
        total += len(name) + len(value)
        if (lower := name.lower()) not in FRAMING:
            kept.append((lower, value))
    if sum(name == "host" for name, _ in kept) > 1:
        raise RequestError("more than one header Host")
    if len(kept) > _MAX_HEADERS or total > _MAX_HEADER_BYTES:
        raise RequestError(
            f"more than {_MAX_HEADERS} headers, or more than {_MAX_HEADER_BYTES} bytes of them"
        )
    return kept


def _failure(exc: Exception) -> type[RequestFailedError]:
    match exc:
        case aiohttp.ServerTimeoutError() | TimeoutError():
            return RequestTimeoutError
        case aiohttp.ClientConnectorError() | aiohttp.ClientConnectorCertificateError():
            return CannotConnectError
    return RequestFailedError


def _reason(exc: Exception) -> str:
    """Return what failed. The exceptions' own messages show whole URLs, tokens included."""
    match exc:
        case aiohttp.ClientConnectorCertificateError():
            inner = exc.certificate_error
            text = getattr(inner, "verify_message", "") or "it cannot be verified"
            return f"the server's certificate is not accepted: {text}"
        case aiohttp.ClientConnectorSSLError():
            return "the TLS handshake failed"
        case aiohttp.ClientConnectorDNSError():
            return str(exc.os_error)
        case aiohttp.ClientConnectorError():
            number = exc.os_error.errno
            return f"cannot connect: {os.strerror(number) if number else 'no address answers'}"
        case aiohttp.ConnectionTimeoutError() | aiohttp.ServerTimeoutError() | TimeoutError():
            return "no connection in time"
        case aiohttp.ClientPayloadError():
            return "the response ends too early"
        case aiohttp.ClientResponseError():
            return "the server's answer is no HTTP response"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | OSError():
            return "the connection was closed"
    return "the request failed"
