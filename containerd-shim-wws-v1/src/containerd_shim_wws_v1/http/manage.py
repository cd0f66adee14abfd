"""The management API and the panel, which only read: ``--enable-panel`` of upstream.

Values of variables that come from the container's environment are not shown: they may be secret.

Source: wasm-workers-server 1.7 crates/api-manage/src, crates/panel/src.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from containerd_shim_wws_v1.project.files import shown
from containerd_shim_wws_v1.project.routes import RouteTable
from containerd_shim_wws_v1.workers.base import Worker
from containerd_shimkit.http.messages import respond
from containerd_shimkit.http.server import Scope, Send

API: Final = "/_api/v0/workers"
PANEL: Final = "/_panel"

_JSON: Final = (b"content-type", b"application/json")
_HTML: Final = (b"content-type", b"text/html; charset=utf-8")
_POLICY: Final = (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'")
_HIDDEN: Final = "(from the environment)"
_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Workers</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 3rem auto; max-width: 60rem; }}
table {{ border-collapse: collapse; width: 100%; }}
td, th {{ border-bottom: 1px solid #ccc; padding: .3rem .6rem; text-align: left; }}
</style>
<h1>Workers</h1>
<table>
<tr><th>Path</th><th>File</th><th>Name</th><th>Store</th></tr>
{rows}
</table>
</html>
"""


class Management:
    """What there is to know of an app's workers."""

    def __init__(self, routes: RouteTable, workers: Mapping[str, Worker]) -> None:
        shadowed = {route.file for route, _ in routes.shadowed}
        self._found = {
            sha256(shown(route.file).encode()).hexdigest(): (route, workers[route.file])
            for route in routes.routes
            if route.file not in shadowed
        }

    def has(self, path: str) -> bool:
        """Whether a path is one of these."""
        return path in (API, PANEL) or path.startswith(f"{API}/")

    async def __call__(self, path: str, scope: Scope, send: Send) -> None:
        """Answer a request for such a path."""
        if scope["method"] not in ("GET", "HEAD"):
            await respond(send, 405, [(b"allow", b"GET, HEAD")], b"")
        elif path == PANEL:
            await respond(send, 200, [_HTML, _POLICY], self._page().encode())
        elif path == API:
            listed = [self._summary(worker_id) for worker_id in self._found]
            await respond(send, 200, [_JSON], _json(listed))
        elif (worker_id := path.removeprefix(f"{API}/")) in self._found:
            await respond(send, 200, [_JSON], _json(self._details(worker_id)))
        else:
            await respond(send, 404, [_JSON], b"{}")

    def _summary(self, worker_id: str) -> dict[str, Any]:
        route, worker = self._found[worker_id]
        return {
            "id": worker_id,
            "name": worker.identity.config.name or "default",
            "path": route.path,
            "filepath": worker.identity.file,
        }

    def _details(self, worker_id: str) -> dict[str, Any]:
        config = self._found[worker_id][1].identity.config
        return {
            "id": worker_id,
            "name": config.name or "default",
            "version": config.version,
            "data": {"kv": config.namespace},
            "folders": [{"from": each.source, "to": each.target} for each in config.folders],
            "vars": {
                name: _HIDDEN if name in config.from_environment else value
                for name, value in config.vars.items()
            },
        }

    def _page(self) -> str:
        rows = []
        for route, worker in self._found.values():
            config = worker.identity.config
            cells = route.path, worker.identity.file, config.name or "", config.namespace or ""
            rows.append("<tr>" + "".join(f"<td>{html.escape(each)}</td>" for each in cells))
        return _PAGE.format(rows="\n".join(rows))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
