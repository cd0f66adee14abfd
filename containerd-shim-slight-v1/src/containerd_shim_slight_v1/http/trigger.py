"""Answering requests: an ASGI app that finds the route and calls its handler in a new guest.

Whatever upstream answers, its middleware adds headers that let every site read it; so do we.

Source: SpiderLightning 0.5 crates/http-server/src/lib.rs; routerify 3.0 src/router; routerify-cors
3.0 src/lib.rs.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

from containerd_shim_slight_v1.abi.exports import (
    HANDLER_TYPE,
    HandlerError,
    Request,
    Response,
    call_handler,
)
from containerd_shim_slight_v1.app import LinkedApp
from containerd_shim_slight_v1.capabilities.services import Services
from containerd_shim_slight_v1.http.routes import Parameters, Route, Router, RouteTable
from containerd_shim_slight_v1.settings import Settings
from containerd_shimkit.errors import ShimError
from containerd_shimkit.http.limits import RequestLimits
from containerd_shimkit.http.messages import respond
from containerd_shimkit.http.server import Receive, Scope, Send
from containerd_shimkit.wasm.exports import export_fault
from containerd_shimkit.wasm.native import GuestError

HEALTH: Final = b"/.well-known/slight/health"
"""Answered with 200, unless the app has a route for it."""

_CORS: Final = tuple(
    (f"access-control-{name}".encode(), b"*")
    for name in ("allow-origin", "allow-methods", "allow-headers", "expose-headers")
)
_CORS_NAMES: Final = frozenset(name for name, _ in _CORS)
_TEXT: Final = (b"content-type", b"text/plain")

log = logging.getLogger(__name__)


class Places:
    """How many requests are in flight, at all servers of the app."""

    def __init__(self, count: int) -> None:
        self.free = count


class HttpTrigger:
    """Serves the routes of one server."""

    def __init__(
        self, app: LinkedApp, services: Services, router: Router, settings: Settings, places: Places
    ) -> None:
        self._app = app
        self._services = services
        self._routes = RouteTable(router.routes)
        self._places = places
        self._limits = RequestLimits(
            *("handler", settings.request_seconds, settings.max_body_bytes, (_TEXT, *_CORS))
        )
        self._faults = {
            route.export: fault
            for route in router.routes
            if (fault := export_fault(app.exports, route.export, HANDLER_TYPE)) is not None
        }
        for fault in self._faults.values():
            log.warning("%s: %s: requests for it are answered 500", app.name, fault)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        method, path = scope["method"], scope["raw_path"]
        found = self._routes.find(method, path)
        if found is not None:
            await self._answer(*found, scope, receive, send)
        elif method == "GET" and path == HEALTH:
            await _respond_text(send, 200, "OK")
        elif method == "OPTIONS":
            await respond(send, 204, list(_CORS), b"")
        else:
            await _respond_text(send, 404, "Not Found")

    async def _answer(
        self, route: Route, parameters: Parameters, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if not self._places.free:
            await _respond_text(send, 503, "too many requests in flight\n")
            return
        self._places.free -= 1
        try:
            await self._answer_in_place(route, parameters, scope, receive, send)
        finally:
            self._places.free += 1

    async def _answer_in_place(
        self, route: Route, parameters: Parameters, scope: Scope, receive: Receive, send: Send
    ) -> None:
        def line() -> str:
            return f"{scope['method']} {scope['raw_path'].decode('latin-1')}"

        try:
            response = await self._limits.run(
                *(scope, receive, send, line), partial(self._call, route, parameters, scope)
            )
        except HandlerError as exc:
            log.error("%s: the handler returned an error: %s", line(), exc)
            await _respond_text(send, _status_of(exc), "the handler returned an error\n")
        except (GuestError, ShimError) as exc:
            log.error("%s failed: %s", line(), exc)
            await _respond_text(send, 500, "Internal Server Error")
        else:
            if response is not None:
                headers = [pair for pair in response.headers if pair[0] not in _CORS_NAMES]
                await respond(send, response.status, [*headers, *_CORS], response.body)

    async def _call(
        self, route: Route, parameters: Parameters, scope: Scope, body: bytes
    ) -> Response:
        if (fault := self._faults.get(route.export)) is not None:
            raise GuestError(fault)
        target = scope["raw_path"] + (b"?" + query if (query := scope["query_string"]) else b"")
        headers = [
            (name.decode("latin-1"), value.decode(errors="replace"))
            for name, value in scope["headers"]
        ]
        uri = target.decode(errors="replace")
        request = Request(scope["method"], uri, headers, parameters, body)
        async with self._app.start(self._services) as guest:
            return await call_handler(guest, route.export, request)


def _status_of(exc: HandlerError) -> int:
    """Return the status for an error. Upstream answers all of them with 500."""
    if exc.case == "timeout-error":
        return 504
    if exc.status is not None and 400 <= exc.status <= 599:
        return exc.status
    return 500


async def _respond_text(send: Send, status: int, text: str) -> None:
    await respond(send, status, [_TEXT, *_CORS], text.encode())
