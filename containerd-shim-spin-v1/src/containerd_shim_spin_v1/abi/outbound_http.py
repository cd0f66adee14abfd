"""``wasi-outbound-http``: requests to servers and to other components.

Source: Spin 1.5 wit/ephemeral/{wasi-outbound-http,http-types}.wit, wit/preview2/http.wit, which
Spin 3.6 has as wit/deps/spin@unversioned/http.wit.
"""

from __future__ import annotations

from typing import Final

from containerd_shim_spin_v1.abi.imports import Function, Interface
from containerd_shim_spin_v1.host.http import TooManyRequestsError
from containerd_shim_spin_v1.host.instance import Instance
from containerd_shim_spin_v1.outbound.access import DestinationNotAllowedError
from containerd_shim_spin_v1.variables.values import VariableError
from containerd_shimkit.http_client.client import Headers, RequestError, RequestFailedError
from containerd_shimkit.http_client.exchange import HttpRequest, HttpResponse
from containerd_shimkit.http_client.networks import BlockedNetworkError
from containerd_shimkit.http_client.urls import InvalidUrlError
from containerd_shimkit.tls import TlsConfigError
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
from containerd_shimkit.wasm.interfaces import CURRENT_REALLOC

_METHOD: Final = Enum("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
_PAIRS: Final = List(Record(STRING, STRING))


def _request(
    method: str, uri: str, headers: Headers, _params: Headers, body: bytes | None
) -> HttpRequest:
    return HttpRequest(method, uri, headers, body or b"")


_REQUEST: Final = Record(_METHOD, STRING, _PAIRS, _PAIRS, Option(BYTES), make=_request)
_RESPONSE: Final = Record(U16, Option(_PAIRS), Option(BYTES), names=("status", "headers", "body"))
_ERROR: Final = Enum(
    "success",
    "destination-not-allowed",
    "invalid-url",
    "request-error",
    "runtime-error",
    "too-many-requests",
)


async def _send(instance: Instance, request: HttpRequest) -> HttpResponse:
    return await instance.services.http.send(instance.access, request, instance.depth)


def _error(exc: Exception) -> str | None:
    match exc:
        case DestinationNotAllowedError() | BlockedNetworkError():
            return "destination-not-allowed"
        case InvalidUrlError():
            return "invalid-url"
        case RequestError():
            return "request-error"
        case TooManyRequestsError():
            return "too-many-requests"
        case RequestFailedError() | TlsConfigError() | VariableError():
            return "runtime-error"
    return None


INTERFACES: Final = (
    Interface(
        "wasi-outbound-http",
        [Function("request", [_REQUEST], Result(_RESPONSE, _ERROR), _send)],
        _error,
    ),
    Interface(
        "fermyon:spin/http",
        [Function("send-request", [_REQUEST], Result(_RESPONSE, _ERROR), _send)],
        _error,
        CURRENT_REALLOC,
    ),
)
