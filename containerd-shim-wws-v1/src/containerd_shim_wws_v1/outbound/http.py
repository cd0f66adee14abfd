"""Requests of workers to servers, by one pool of connections for the app.

Redirects are followed, ten at most, each to a server that the worker may ask; upstream asks only
about the first. Bodies are as they come.

Source: wasm-workers-server 1.7 crates/worker/src/bindings/http.rs; reqwest 0.11.
"""

from __future__ import annotations

import logging
from typing import ClassVar, Final

from containerd_shim_wws_v1.outbound.permission import refusal
from containerd_shim_wws_v1.project.worker_config import HttpRequests
from containerd_shimkit.http_client.client import (
    BodyTooLargeError,
    HttpClient,
    OpenResponse,
    RequestError,
    RequestFailedError,
    RequestTimeoutError,
    read_all,
)
from containerd_shimkit.http_client.exchange import (
    MAX_REDIRECTS,
    HttpRequest,
    HttpResponse,
    redirected,
    text_headers,
)
from containerd_shimkit.http_client.networks import Networks
from containerd_shimkit.http_client.urls import InvalidUrlError, OutboundUrl, parse_url
from containerd_shimkit.tls import TlsConfigError, TrustedCertificates

MAX_BODY_BYTES: Final = 64 << 20
MAX_CONNECTIONS: Final = 1000

log = logging.getLogger(__name__)


class OutboundError(Exception):
    """There is no response; the message is for the worker."""

    case: ClassVar[str] = "internal-error"
    """Of the interface's errors."""


class BadRequestError(OutboundError):
    """A request that cannot be made."""

    case = "invalid-request"


class NotAllowedError(OutboundError):
    """A request that the worker may not make."""

    case = "not-allowed"


class TooLateError(OutboundError):
    """The server does not answer in time."""

    case = "timeout"


class RedirectLoopError(OutboundError):
    """More redirects than are followed."""

    case = "redirect-loop"


class BadBodyError(OutboundError):
    """The response's body is too large."""

    case = "invalid-response-body"


class OutboundHttp:
    """Made in the event loop that serves."""

    def __init__(self, certificates: TrustedCertificates) -> None:
        self._certificates = certificates
        self._client: HttpClient | None = None

    async def send(self, worker: str, may: HttpRequests, request: HttpRequest) -> HttpResponse:
        """Make a request of a worker and return the whole response.

        worker: what messages call it.  Raises OutboundError.
        """
        try:
            return await self._send(worker, may, request)
        except (InvalidUrlError, RequestError) as exc:
            raise BadRequestError(str(exc)) from None
        except BodyTooLargeError as exc:
            raise BadBodyError(str(exc)) from None
        except RequestTimeoutError as exc:
            raise TooLateError(str(exc)) from None
        except (RequestFailedError, TlsConfigError) as exc:
            raise OutboundError(str(exc)) from None

    async def close(self) -> None:
        """End every connection."""
        if self._client is not None:
            await self._client.close()

    async def _send(self, worker: str, may: HttpRequests, request: HttpRequest) -> HttpResponse:
        url = parse_url(request.url)
        for _ in range(MAX_REDIRECTS + 1):
            if (reason := refusal(may, request.method, url)) is not None:
                log.warning("%s: %s %s: %s", worker, request.method, url.origin, reason)
                raise NotAllowedError(reason)
            response = await self._exchange(request, url)
            try:
                following = redirected(request, url, response)
                if following is None:
                    body = await read_all(response, MAX_BODY_BYTES, f"response of {url.origin}")
                    return HttpResponse(response.status, text_headers(response.headers), body)
            finally:
                response.close()
            request, url = following
        raise RedirectLoopError(f"{url.origin}: more than {MAX_REDIRECTS} redirects")

    async def _exchange(self, request: HttpRequest, url: OutboundUrl) -> OpenResponse:
        if self._client is None:
            self._client = HttpClient(Networks(), limit=MAX_CONNECTIONS)
        headers = list(request.headers)
        names = {name.lower() for name, _ in headers}
        if url.authorization and "authorization" not in names:
            headers.append(("authorization", url.authorization))
        if "accept" not in names:
            headers.append(("accept", "*/*"))
        context = self._certificates.context() if url.scheme == "https" else None
        return await self._client.exchange(request.method, url, headers, request.body, context)
