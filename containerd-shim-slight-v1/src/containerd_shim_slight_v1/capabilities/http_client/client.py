"""Requests of guests, by one pool of connections for the app.

Redirects are followed, ten at most, each to a server that may be asked; credentials do not go with
them to another one. Cookies and proxies of the environment are not used.

Source: SpiderLightning 0.5 wit/http-client.wit, crates/http-client/src/lib.rs; reqwest 0.11,
redirect.
"""

from __future__ import annotations

from typing import Final

from containerd_shim_slight_v1.capabilities.context import AppContext, ConfigValueError
from containerd_shim_slight_v1.capabilities.errors import CapabilityError, NoCapabilityError
from containerd_shim_slight_v1.capabilities.http_client.allowed import (
    AllowedHosts,
    AllowedHostsError,
    normal_host,
)
from containerd_shim_slight_v1.slightfile.resources import HTTP_CLIENT
from containerd_shimkit.hosts import HostError
from containerd_shimkit.http_client import client, urls
from containerd_shimkit.http_client.client import Headers, OpenResponse, read_all
from containerd_shimkit.http_client.exchange import (
    MAX_REDIRECTS,
    HttpRequest,
    HttpResponse,
    location_of,
    redirected,
)
from containerd_shimkit.http_client.networks import Networks
from containerd_shimkit.http_client.urls import OutboundUrl, parse_url
from containerd_shimkit.tls import TlsConfigError

ALLOWED_SETTING: Final = "SLIGHT_HTTP_CLIENT_ALLOWED_HOSTS"
ALLOWED_CONFIG: Final = "ALLOWED_HOSTS"
MAX_BODY_BYTES: Final = 64 << 20


class HttpClientError(CapabilityError):
    """There is no response: ``unexpected-error``."""


class InvalidUrlError(HttpClientError):
    """What the guest asks for is no URL of http or https."""

    case = "invalid-url"


class HttpTimeoutError(HttpClientError):
    """The server does not answer in time."""

    case = "timeout-error"


class HttpProtocolError(HttpClientError):
    """The request cannot be made, or the server's answer is no HTTP response, or not all of it."""

    case = "protocol-error"


class HostNotAllowedError(NoCapabilityError):
    """The slightfile or the environment does not name the server."""


class HttpClient:
    """Made in the event loop that serves."""

    def __init__(self, app: AppContext) -> None:
        self._app = app
        # Guests may change the environment that they see.
        self._by_environment = app.environment.get(ALLOWED_SETTING)
        self._allowed: list[AllowedHosts] | None = None
        self._client: client.HttpClient | None = None

    async def request(self, method: str, url: str, headers: Headers, body: bytes) -> HttpResponse:
        """Return the response. Raises HttpClientError, NoCapabilityError."""
        try:
            return await self._request(HttpRequest(method, url, headers, body))
        except urls.InvalidUrlError as exc:
            raise InvalidUrlError(str(exc)) from None
        except client.RequestTimeoutError as exc:
            raise HttpTimeoutError(str(exc)) from None
        except (client.CannotConnectError, client.BodyTooLargeError, TlsConfigError) as exc:
            raise HttpClientError(str(exc)) from None
        except (client.RequestError, client.RequestFailedError) as exc:
            raise HttpProtocolError(str(exc)) from None

    async def close(self) -> None:
        """End every connection."""
        if self._client is not None:
            await self._client.close()

    async def _request(self, request: HttpRequest) -> HttpResponse:
        url = parse_url(request.url)
        for _ in range(MAX_REDIRECTS + 1):
            self._check(url)
            response = await self._exchange(request, url)
            try:
                following = redirected(request, url, response)
                if following is None:
                    return await _whole(response, url)
            finally:
                response.close()
            request, url = following
        raise HttpClientError(f"{url.origin}: more than {MAX_REDIRECTS} redirects")

    def _check(self, url: OutboundUrl) -> None:
        """Raise HttpClientError or NoCapabilityError unless a server may be asked."""
        if self._allowed is None:
            self._allowed = self._read_allowed()
        try:
            normal = normal_host(f"[{url.host}]" if ":" in url.host else url.host)
        except HostError as exc:
            raise InvalidUrlError(str(exc)) from None
        if not all(allowed.allows(url.scheme, normal, url.port) for allowed in self._allowed):
            raise HostNotAllowedError(
                f"{url.origin} is not among the allowed hosts: {ALLOWED_CONFIG} of the"
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

    async def _exchange(self, request: HttpRequest, url: OutboundUrl) -> OpenResponse:
        if self._client is None:
            # A guest makes one call at a time: there are no more than requests in flight.
            self._client = client.HttpClient(Networks())
        headers = list(request.headers)
        names = {name.lower() for name, _ in headers}
        if url.authorization and "authorization" not in names:
            headers.append(("authorization", url.authorization))
        if "accept" not in names:
            headers.append(("accept", "*/*"))
        tls = self._app.certificates.context() if url.scheme == "https" else None
        return await self._client.exchange(request.method, url, headers, request.body, tls)


async def _whole(response: OpenResponse, url: OutboundUrl) -> HttpResponse:
    if location_of(response) is not None:
        raise HttpProtocolError(f"{url.origin}: it redirects to what is no URL")
    headers = [
        (name.decode("latin-1"), value.decode(errors="replace")) for name, value in response.headers
    ]
    return HttpResponse(
        response.status, headers, await read_all(response, MAX_BODY_BYTES, url.origin)
    )
