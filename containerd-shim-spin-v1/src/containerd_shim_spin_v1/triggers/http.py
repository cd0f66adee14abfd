"""The HTTP trigger: an ASGI app that finds the component for a request and calls it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial

from containerd_shim_spin_v1.abi.http import METHODS
from containerd_shim_spin_v1.abi.wagi import wagi_argv, wagi_env
from containerd_shim_spin_v1.host.http import (
    ChainedRequest,
    ChainedResponse,
    TooManyRequestsError,
)
from containerd_shim_spin_v1.http_component import HttpComponent
from containerd_shim_spin_v1.routing.request_data import (
    RequestRefusedError,
    RouteDataTable,
    chained_match,
    client_address,
    client_headers,
    full_url,
    request_host,
    request_target,
    without_own_host,
)
from containerd_shim_spin_v1.routing.v1 import Match, RouteFinder, answer_reserved
from containerd_shim_spin_v1.settings import Settings
from containerd_shim_spin_v1.triggers.static import StaticResponder
from containerd_shimkit.errors import ShimError
from containerd_shimkit.http.limits import RequestLimits
from containerd_shimkit.http.messages import Headers, respond
from containerd_shimkit.http.server import Receive, Scope, Send, respond_text
from containerd_shimkit.http_client.client import RequestFailedError
from containerd_shimkit.wasm.native import GuestError

Answer = tuple[int, Headers, bytes]
"""Status, headers and body."""

log = logging.getLogger(__name__)


class HttpTrigger:
    """Serves the routes of an app."""

    def __init__(
        self,
        name: str,
        version: str | None,
        router: RouteFinder,
        components: Sequence[HttpComponent | StaticResponder],
        callable_components: Mapping[str, HttpComponent],
        settings: Settings,
        places: asyncio.Semaphore,
    ) -> None:
        """components: what answers, for each of the router's routes.

        callable_components: what answers other components, by id in lower case.  places: for guests
        of the app at once.
        """
        self._name = name
        self._version = version
        self._router = router
        self._route_data = RouteDataTable(router.routes)
        self._components = components
        self._callable_components = callable_components
        self._settings = settings
        self._limits = RequestLimits("component", settings.request_seconds, settings.max_body_bytes)
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        path = scope["raw_path"].decode("latin-1")
        reserved = answer_reserved(path, self._name, self._version)
        if reserved is not None:
            kind = reserved.content_type
            headers = [(b"content-type", kind.encode())] if kind else []
            await respond(send, reserved.status, headers, reserved.body)
        elif (match := self._router.match(path)) is None:
            await respond(send, 404, [], b"")
        elif self._places.locked():
            await respond_text(send, 503, "too many requests in flight\n")
        else:
            async with self._places:
                await self._answer(match, scope, receive, send)

    async def _answer(self, match: Match, scope: Scope, receive: Receive, send: Send) -> None:
        component = self._components[match.route.index]
        scope["headers"] = without_own_host(scope["headers"])
        call = _Call(component, match, self._route_data)
        answer: Answer | None
        try:
            answer = await self._limits.run(
                *(scope, receive, send),
                lambda: f"component {component.id!r}: {_line(scope)}",
                partial(call.answer, scope),
            )
        except RequestRefusedError as exc:
            await respond_text(send, exc.http_status, f"{exc}\n")
            return
        except (GuestError, ShimError) as exc:
            log.error("component %r: %s failed: %s", component.id, _line(scope), exc)
            answer = 500, [], b""
        if answer is not None:
            await respond(send, *answer)

    async def answer_chained(self, request: ChainedRequest) -> ChainedResponse:
        """Answer a component's request to another one, or to the app's own routes.

        It takes a place as requests from outside do, but is never made to wait for one: whoever
        waits for it has one already. Its time is part of theirs.
        Raises TooManyRequestsError, RequestFailedError.
        """
        path, _, query = request.target.partition("?")
        found = self._find_chained(request, path)
        if isinstance(found, ChainedResponse):
            return found
        if self._places.locked():
            raise TooManyRequestsError("too many requests in flight, the app's own included")
        host = request.host or client_address(self._settings.host, self._settings.port)
        headers = [(name.encode(), value.encode()) for name, value in request.headers]
        scope: Scope = {
            "method": request.method,
            "scheme": "http",
            "http_version": "1.1",
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(b"host", host.encode()), *headers],
            "client": None,
        }
        async with self._places:
            try:
                return ChainedResponse(*await found.answer(scope, request.body))
            except RequestRefusedError as exc:
                return ChainedResponse(exc.http_status, [], f"{exc}\n".encode())
            except (GuestError, ShimError) as exc:
                log.error("component %r: %s failed: %s", found.component.id, _line(scope), exc)
                return ChainedResponse(500, [], b"")

    def _find_chained(self, request: ChainedRequest, path: str) -> _Call | ChainedResponse:
        if request.component_id is not None:
            component = self._callable_components.get(request.component_id)
            if component is None:
                raise RequestFailedError(
                    f"the app has no component {request.component_id!r} with an HTTP trigger"
                )
            match = chained_match(component.id, path)
            return _Call(component, match, RouteDataTable([match.route]), request.depth)
        reserved = answer_reserved(path, self._name, self._version)
        if reserved is not None:
            kind = reserved.content_type
            headers = [(b"content-type", kind.encode())] if kind else []
            return ChainedResponse(reserved.status, headers, reserved.body)
        found = self._router.match(path)
        if found is None:
            return ChainedResponse(404, [], b"")
        responder = self._components[found.route.index]
        return _Call(responder, found, self._route_data, request.depth)


class _Call:
    """A request's component and how the request matches it."""

    __slots__ = ("_depth", "_match", "_route_data", "component")

    def __init__(
        self,
        component: HttpComponent | StaticResponder,
        match: Match,
        route_data: RouteDataTable,
        depth: int = 0,
    ) -> None:
        """route_data: of the match's route.  depth: see ``Instance``."""
        self.component = component
        self._match = match
        self._route_data = route_data
        self._depth = depth

    async def answer(self, scope: Scope, body: bytes) -> Answer:
        """Return the component's answer."""
        component, match = self.component, self._match
        if isinstance(component, StaticResponder):
            return component.status, component.headers, component.body
        raw_headers = scope["headers"]
        host = request_host(raw_headers, scope.get("authority"))
        target = request_target(scope["raw_path"], scope["query_string"])
        url = full_url(scope["scheme"], host, target)
        client_host, client_port = scope["client"] or ("0.0.0.0", 0)
        client = client_address(client_host, client_port)
        if component.executor.type == "wagi":
            query = scope["query_string"].decode("latin-1")
            path = scope["raw_path"].decode("latin-1") or "/"
            environment = wagi_env(
                match,
                self._route_data.env(match, url, client),
                method=scope["method"],
                query=query,
                http_version=scope["http_version"],
                headers=raw_headers,
                host=host,
                client_host=client_host,
                body_bytes=len(body),
            )
            arguments = wagi_argv(component.executor.argv, path, query)
            answer = await component.run_wagi(arguments, environment, body, self._depth)
            for reason in answer.ignored:
                log.warning("component %r: %s: %s", component.id, _line(scope), reason)
            pairs = [(name.encode(), value.encode("latin-1")) for name, value in answer.headers]
            return answer.status, pairs, answer.body
        method = METHODS.get(scope["method"])
        if method is None:
            return 405, [], b""
        headers = client_headers(raw_headers)
        headers += self._route_data.headers(match, url, client)
        response = await component.handle(method, target.encode(), headers, body, self._depth)
        return response.status, response.headers, response.body


def _line(scope: Scope) -> str:
    return f"{scope['method']} {scope['raw_path'].decode('latin-1')}"
