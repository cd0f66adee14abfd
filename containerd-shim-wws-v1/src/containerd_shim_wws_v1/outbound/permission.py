"""Which requests a worker may make: ``[features.http_requests]`` of its configuration.

An entry of ``allowed_hosts`` is a host name or address, for every port; with ``:port`` behind, for
that one only, which upstream does not have. Without ``allow_http`` only https is allowed.

Source: wasm-workers-server 1.7 crates/worker/src/bindings/http.rs, whose messages are these.
"""

from __future__ import annotations

import re
from typing import Final

from containerd_shim_wws_v1.project.worker_config import HttpRequests
from containerd_shimkit.hosts import HostError, parse_host
from containerd_shimkit.http_client.urls import OutboundUrl

_ENTRY: Final = re.compile(r"(\[[^\]]*\]|[^:]*)(?::([0-9]{1,5}))?")


def refusal(may: HttpRequests, method: str, url: OutboundUrl) -> str | None:
    """Return why a worker may not make a request, None if it may."""
    if not any(_is_of(entry, url) for entry in may.allowed_hosts):
        return (
            f"The host '{url.host}' is not allowed for this worker. "
            "Please, update the worker configuration."
        )
    if url.scheme == "http" and not may.allow_http:
        return "The URI must use HTTPS. You can allow http requests in the worker configuration"
    if method not in may.allowed_methods:
        return (
            f"The method '{method}' is not allowed for this worker. "
            "Please, update the configuration."
        )
    return None


def _is_of(entry: str, url: OutboundUrl) -> bool:
    found = _ENTRY.fullmatch(entry)
    host, port = found.groups() if found else (f"[{entry}]", None)
    try:
        return str(parse_host(host)) == url.host and port in (None, str(url.port))
    except HostError:
        return False
