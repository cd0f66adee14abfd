"""Outbound HTTP: requests of components to servers, and to each other.

A request's URL is absolute, or a path: then it is for the app's own routes, as is one to
``self.alt``. The hosts ``<component>.spin.internal`` are the components of the app. Neither leaves
the process: the HTTP trigger serves them.

``send`` is what Spin 1.x offers, as Spin's client for it does it: at most ten redirects are
followed, gzip is asked for and undone, ``Host`` is the guest's if it sets one. ``open`` is the form
below: no redirects, bodies as they come.

Where this is not as in Spin:

- Every redirect must lead where the component may connect to, and never into the app.
- No ``Referer`` tells the next server the URL of the one before.
- ``Host`` does not go along to another server.

Sources: Spin 1.5 crates/outbound-http/src/lib.rs, Spin 3.6 crates/factor-outbound-http/src/spin.rs
and wasi.rs, crates/trigger-http/src/outbound_http.rs; reqwest 0.11 src/redirect.rs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from containerd_shim_spin_v1.host.tls import TlsContexts
from containerd_shim_spin_v1.outbound.access import OutboundAccess
from containerd_shim_spin_v1.outbound.allowed_hosts import CHAINING_SUFFIX
from containerd_shim_spin_v1.runtime_config.model import RuntimeConfig
from containerd_shimkit.http_client.client import (
    Headers,
    HttpClient,
    OpenResponse,
    RequestFailedError,
    read_all,
    sendable,
)
from containerd_shimkit.http_client.exchange import (
    MAX_REDIRECTS,
    HttpRequest,
    HttpResponse,
    redirected,
    whole,
)
from containerd_shimkit.http_client.networks import Networks
from containerd_shimkit.http_client.urls import (
    OutboundUrl,
    parse_target,
    parse_url,
)

MAX_BODY_BYTES: Final = 128 << 20  # as Spin
MAX_DEPTH: Final = 16
"""Of components that call each other: one that calls itself would go on until memory ends."""

_SELF_HOST: Final = "self.alt"


class TooManyRequestsError(Exception):
    """No more requests can be served at once, by the app itself."""


@dataclass(frozen=True, slots=True)
class ChainedRequest:
    """A request that stays in the app."""

    component_id: str | None
    """In lower case; None is whichever component the app's routes say."""
    method: str
    host: str | None
    """``<component>.spin.internal``, with a port if the URL has one."""
    target: str
    """Path and query."""
    headers: Headers
    body: bytes
    depth: int
    """How many components wait for it, those that wait for them included."""


class ChainedResponse:
    """A response of the app's own, in the form of one from elsewhere."""

    __slots__ = ("_body", "headers", "status")

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._body:
            yield self._body

    def close(self) -> None:
        """Nothing is open."""


Chain: TypeAlias = Callable[[ChainedRequest], Awaitable[ChainedResponse]]
"""Raises TooManyRequestsError, RequestFailedError."""

AnyResponse: TypeAlias = OpenResponse | ChainedResponse


class HttpHost:
    """Outbound HTTP of an app's components. To be made in the event loop."""

    def __init__(
        self,
        config: RuntimeConfig,
        networks: Networks,
        tls: TlsContexts,
    ) -> None:
        self._client = HttpClient(
            networks,
            keep_connections=config.connection_pooling,
            limit=config.max_connections.get("http"),
        )
        self._tls = tls
        self._chain: Chain | None = None

    def use_chain(self, chain: Chain) -> None:
        """Set what serves the app's own components: the HTTP trigger, where there is one."""
        self._chain = chain

    async def close(self) -> None:
        """End every connection."""
        await self._client.close()

    async def send(
        self, access: OutboundAccess, request: HttpRequest, depth: int = 0
    ) -> HttpResponse:
        """Make a request of Spin 1.x and return the whole response.

        depth: see ``open``.  Response headers that are not UTF-8 are left out.
        Raises InvalidUrlError, DestinationNotAllowedError, BlockedNetworkError, RequestError,
        RequestFailedError, TooManyRequestsError, VariableError, TlsConfigError.
        """
        headers = list(request.headers)
        names = {name.lower() for name, _ in headers}
        if not names & {"accept-encoding", "range"}:
            headers.append(("accept-encoding", "gzip"))
        response = await self._follow(access, replace(request, headers=headers), depth)
        try:
            return await whole(response, MAX_BODY_BYTES, f"response to {request.method} request")
        finally:
            response.close()

    async def open(
        self, access: OutboundAccess, request: HttpRequest, depth: int = 0
    ) -> AnyResponse:
        """Make one request; return when the head of its response is there. Close the response.

        depth: how many components wait for the one that asks.  Raises as ``send``.
        """
        if request.url.startswith("/"):
            await access.check_self("http", "https")
            return await self._call_own(None, request, None, parse_target(request.url), depth)
        url = parse_url(request.url)
        if url.host == _SELF_HOST:
            await access.check_self("http", "https")
            return await self._call_own(None, request, None, url.target, depth)
        await access.check(url.scheme, url.host, url.port)
        if (component_id := component_of(url)) is not None:
            return await self._call_own(component_id, request, url.authority, url.target, depth)
        return await self._exchange(access, request, url)

    async def _follow(
        self, access: OutboundAccess, request: HttpRequest, depth: int
    ) -> AnyResponse:
        """Return the response that is no redirect any more."""
        response = await self.open(access, request, depth)
        if isinstance(response, ChainedResponse):
            return response
        url = parse_url(request.url)
        for _ in range(MAX_REDIRECTS):
            following = redirected(request, url, response)
            if following is None:
                return response
            response.close()
            request, url = following
            await access.check(url.scheme, url.host, url.port)
            if component_of(url) is not None or url.host == _SELF_HOST:
                raise RequestFailedError(f"{url.origin}: no server redirects into the app")
            response = await self._exchange(access, request, url)
        if redirected(request, url, response) is None:
            return response
        response.close()
        raise RequestFailedError(f"{url.origin}: more than {MAX_REDIRECTS} redirects")

    async def _exchange(
        self, access: OutboundAccess, request: HttpRequest, url: OutboundUrl
    ) -> OpenResponse:
        headers = request.headers
        if url.authorization and not any(name.lower() == "authorization" for name, _ in headers):
            headers = [*headers, ("authorization", url.authorization)]
        https = url.scheme == "https"
        context = self._tls.for_host(access.component_id, url.host) if https else None
        return await self._client.exchange(request.method, url, headers, request.body, context)

    async def _call_own(
        self,
        component_id: str | None,
        request: HttpRequest,
        host: str | None,
        target: str,
        depth: int,
    ) -> ChainedResponse:
        if self._chain is None:
            raise RequestFailedError(
                "the app has no HTTP trigger that could answer its own request"
            )
        if depth >= MAX_DEPTH:
            raise RequestFailedError(f"{MAX_DEPTH} components wait for each other already")
        headers = [pair for pair in sendable(request.headers) if pair[0] != "host"]
        body = request.body
        if not isinstance(body, bytes):
            body = await read_all(body, MAX_BODY_BYTES, f"request to {host or 'the app itself'}")
        chained = ChainedRequest(
            component_id, request.method, host, target, headers, body, depth + 1
        )
        return await self._chain(chained)


def component_of(url: OutboundUrl) -> str | None:
    """Return the component of the app that a request is for, in lower case; else None."""
    name = url.host.removesuffix(CHAINING_SUFFIX)
    return name if name != url.host and name else None
