"""Whole requests and responses, and which request a redirect asks for.

Sources: reqwest 0.11 src/redirect.rs; Spin 1.5 crates/outbound-http/src/lib.rs.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from containerd_shimkit.http_client.client import Headers, RequestFailedError, read_all
from containerd_shimkit.http_client.gunzip import BadGzipError, gunzip
from containerd_shimkit.http_client.urls import InvalidUrlError, OutboundUrl

MAX_REDIRECTS: Final = 10  # as reqwest

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_KEEP_METHOD: Final = frozenset({307, 308})
_OF_BODY: Final = frozenset({"content-encoding", "content-type"})
_OF_SERVER: Final = frozenset(
    {"authorization", "cookie", "cookie2", "host", "proxy-authorization", "www-authenticate"}
)


class StreamedResponse(Protocol):
    """A response whose body comes in pieces; ``client.OpenResponse`` for one."""

    status: int
    headers: list[tuple[bytes, bytes]]

    def __aiter__(self) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A guest's request."""

    method: str
    url: str = field(repr=False)
    headers: Headers = field(default_factory=list, repr=False)
    body: bytes | AsyncIterable[bytes] = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole response."""

    status: int
    headers: Headers
    """Names in lower case, order and repetitions kept."""
    body: bytes = field(repr=False)


def location_of(response: StreamedResponse) -> bytes | None:
    """Return where a redirect leads, as the server says it; None if the response is none."""
    if response.status not in _REDIRECTS:
        return None
    return next((value for name, value in response.headers if name == b"location"), None)


def redirected(
    request: HttpRequest, url: OutboundUrl, response: StreamedResponse
) -> tuple[HttpRequest, OutboundUrl] | None:
    """Return the request to make next, None if the response is the last one.

    So is a redirect that cannot be followed.
    """
    location = location_of(response)
    if location is None:
        return None
    keep = response.status in _KEEP_METHOD
    if keep and not isinstance(request.body, bytes):
        return None  # its body is gone
    try:
        following = url.join(location.decode())
    except (InvalidUrlError, UnicodeDecodeError):
        return None
    dropped: frozenset[str] = frozenset()
    if not keep:
        method = request.method if request.method in ("GET", "HEAD") else "GET"
        request = replace(request, method=method, body=b"")
        dropped |= _OF_BODY
    if (following.host, following.port) != (url.host, url.port):
        dropped |= _OF_SERVER
    kept = [pair for pair in request.headers if pair[0].lower() not in dropped]
    return replace(request, headers=kept), replace(following, authorization=None)


async def whole(response: StreamedResponse, limit: int, what: str) -> HttpResponse:
    """Return a response with all of its body, which gzip is undone of.

    limit: of the body, in bytes.  what: for messages.  Headers that are not UTF-8 are left out.
    Raises RequestFailedError, BodyTooLargeError.
    """
    headers = text_headers(response.headers)
    body: AsyncIterable[bytes] = response
    encodings = [value.strip().lower() for name, value in headers if name == "content-encoding"]
    if encodings != ["gzip"]:
        return HttpResponse(response.status, headers, await read_all(body, limit, what))
    try:
        async with aclosing(gunzip(body)) as pieces:
            data = await read_all(pieces, limit, what)
    except BadGzipError as exc:
        raise RequestFailedError(f"{what}: {exc}") from None
    if data:
        headers = [
            pair for pair in headers if pair[0] not in ("content-encoding", "content-length")
        ]
    return HttpResponse(response.status, headers, data)


def text_headers(pairs: list[tuple[bytes, bytes]]) -> Headers:
    """Return headers as text, without those that are not UTF-8."""
    headers: Headers = []
    for name, value in pairs:
        try:
            headers.append((name.decode("ascii"), value.decode()))
        except UnicodeDecodeError:
            continue  # as Spin: guests get strings
    return headers
