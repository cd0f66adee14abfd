"""``http.send-http-request``, which came with wasm-workers-server 1.4: requests of workers.

``params`` are not sent: a URL has its query.

Source: wasm-workers-server 1.7 wit/core/http.wit, wit/core/http-types.wit.
"""

from __future__ import annotations

from typing import Any, Final

from containerd_shim_wws_v1.instance import Instance
from containerd_shim_wws_v1.outbound.http import OutboundError
from containerd_shimkit.http_client.exchange import HttpRequest
from containerd_shimkit.wasm.canonical import (
    BYTES,
    STRING,
    U16,
    Enum,
    List,
    Option,
    Record,
    Result,
)
from containerd_shimkit.wasm.interfaces import Function, Interface

_METHOD: Final = Enum("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")
_PAIRS: Final = List(Record(STRING, STRING))


def _request(
    body: bytes | None,
    headers: list[tuple[str, str]],
    method: str,
    _params: list[tuple[str, str]],
    uri: str,
) -> HttpRequest:
    return HttpRequest(method, uri, headers, body or b"")


_REQUEST: Final = Record(Option(BYTES), _PAIRS, _METHOD, _PAIRS, STRING, make=_request)
_RESPONSE: Final = Record(Option(BYTES), _PAIRS, U16, names=("body", "headers", "status"))
_ERROR: Final = Record(
    Enum(
        "invalid-request",
        "invalid-request-body",
        "invalid-response-body",
        "not-allowed",
        "internal-error",
        "timeout",
        "redirect-loop",
    ),
    STRING,
)


async def _send(instance: Instance, request: HttpRequest) -> Any:
    return await instance.services.http.send(instance.worker, instance.http, request)


def _error(exc: Exception) -> tuple[str, str] | None:
    return (exc.case, str(exc)) if isinstance(exc, OutboundError) else None


INTERFACE: Final = Interface(
    "http",
    [Function("send-http-request", [_REQUEST], Result(_RESPONSE, _ERROR), _send)],
    _error,
)
