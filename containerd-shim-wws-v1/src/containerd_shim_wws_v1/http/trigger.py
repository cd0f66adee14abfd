"""Answering requests: an ASGI app that finds the worker or the static file for a path.

A static route's worker comes before a file of the same path, a file before the workers of variable
routes. Files are answered to GET and HEAD only; upstream gives them to every method.

Source: wasm-workers-server 1.7 crates/server/src/lib.rs, handlers/{worker,not_found}.rs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Final

from containerd_shim_wws_v1.contract import (
    Response,
    ResponseBodyError,
    parse_response,
    request_json,
    request_url,
)
from containerd_shim_wws_v1.http.cors import Cors
from containerd_shim_wws_v1.http.manage import Management
from containerd_shim_wws_v1.http.static import send_asset
from containerd_shim_wws_v1.kv.base import changes_between, check_size
from containerd_shim_wws_v1.loading import Project
from containerd_shim_wws_v1.project.assets import Asset
from containerd_shim_wws_v1.project.routes import Kind, Route, normal_path
from containerd_shim_wws_v1.services import Services
from containerd_shim_wws_v1.settings import Settings
from containerd_shim_wws_v1.workers.base import Worker
from containerd_shim_wws_v1.workers.loader import Loader
from containerd_shimkit.errors import ShimError
from containerd_shimkit.http.limits import RequestLimits
from containerd_shimkit.http.messages import Headers, respond
from containerd_shimkit.http.server import Receive, Scope, Send, respond_text
from containerd_shimkit.wasm.native import GuestError

HEALTH: Final = "/.well-known/wws/health"
"""Answered with 200, unless the app has a static route for it."""

_HTML: Final = (b"content-type", b"text/html")
_FAILED: Final = b"<p>There was an error running this function</p>"
_BAD_BODY: Final = b"There was an error running the worker"
_NO_VALUES: Final[Mapping[str, str]] = {}

log = logging.getLogger(__name__)


class HttpTrigger:
    """Serves an app."""

    def __init__(
        self,
        project: Project,
        loader: Loader,
        services: Services,
        settings: Settings,
        places: int,
    ) -> None:
        """places: for requests at once, in this process."""
        self._routes = project.routes
        self._workers = project.workers
        self._assets = project.assets
        self._loader = loader
        self._services = services
        self._settings = settings
        self._limits = RequestLimits("worker", settings.request_seconds, settings.max_body_bytes)
        self._cors = Cors(settings.cors)
        self._management = Management(project.routes, project.workers) if settings.panel else None
        self._free = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        path = normal_path(scope["raw_path"].decode("latin-1"))
        if self._management is not None and self._management.has(path):
            await self._management(path, scope, send)
            return
        found = self._routes.find(path)
        if found is None or found[0].kind is not Kind.STATIC:
            if scope["method"] == "GET" and path == HEALTH:
                await respond_text(send, 200, "OK")
                return
            if (asset := self._asset(path, scope["method"])) is not None:
                await send_asset(asset, scope, send)
                return
        if found is None:
            await self._not_found(scope, send)
        elif not self._free:
            await respond_text(send, 503, "too many requests in flight\n")
        else:
            self._free -= 1
            try:
                await self._answer(*found, path, scope, receive, send)
            finally:
                self._free += 1

    def _asset(self, path: str, method: str) -> Asset | None:
        prefix = self._settings.prefix
        if method not in ("GET", "HEAD") or not f"{path}/".startswith(f"{prefix}/"):
            return None
        return self._assets.find(path[len(prefix) :])

    async def _not_found(self, scope: Scope, send: Send) -> None:
        # Upstream's status for the page is 200, by oversight: what caches it keeps it as content.
        page = self._assets.not_found()
        if page is None:
            await respond(send, 404, [], b"")
        else:
            await send_asset(page, scope, send, 404)

    async def _answer(
        self,
        route: Route,
        params: Mapping[str, str],
        path: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        worker = self._workers[route.file]

        def line() -> str:
            return f"{worker.identity.file}: {scope['method']} {path}"

        response: Response | None
        try:
            response = await self._limits.run(
                *(scope, receive, send, line), partial(self._run, worker, params, path, scope)
            )
        except ResponseBodyError as exc:
            log.error("%s failed: %s", line(), exc)
            await respond(send, 503, [_HTML], _BAD_BODY)
            return
        except (GuestError, ShimError) as exc:
            log.error("%s failed: %s", line(), exc)
            response = Response(500, [_HTML], _FAILED)
        if response is not None:
            await self._send(scope, send, response)

    async def _send(self, scope: Scope, send: Send, response: Response) -> None:
        headers: Headers = [*response.headers, *self._cors.headers(scope, response.headers)]
        await respond(send, response.status, headers, response.body)

    async def _run(
        self, worker: Worker, params: Mapping[str, str], path: str, scope: Scope, body: bytes
    ) -> Response:
        await self._loader.wait_for(worker)
        namespace = worker.identity.config.namespace
        store = self._services.store
        values = await store.read(namespace) if namespace is not None else _NO_VALUES
        headers = scope["headers"]
        query = scope["query_string"].decode("latin-1")
        url = f"{path}?{query}" if query else path
        if self._settings.absolute_url:
            url = request_url(url, scope["scheme"], headers, scope.get("authority"))
        request = await request_json(
            url=url,
            method=scope["method"],
            headers=headers,
            body=body,
            kv=values,
            params=params,
        )
        response = await parse_response(await worker.run(self._services, request))
        if namespace is not None and response.kv is not None:
            changes = changes_between(values, response.kv)
            if changes:
                check_size(namespace, response.kv)
                await store.change(namespace, changes)
        return response
