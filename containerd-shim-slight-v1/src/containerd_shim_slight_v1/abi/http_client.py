"""``http-client``, which came with SpiderLightning 0.4.

A request's ``params`` are not sent: a URL has its query.

Source: SpiderLightning 0.5 wit/http-client.wit, wit/http-types.wit, crates/http-client/src/lib.rs.
"""

from __future__ import annotations

from typing import Any, Final

from containerd_shim_slight_v1.abi.http_types import HTTP_ERROR, METHODS, PAIRS
from containerd_shim_slight_v1.abi.imports import Function, Interface, error_of
from containerd_shim_slight_v1.capabilities.http_client.client import HttpClientError
from containerd_shim_slight_v1.capabilities.instance import Instance
from containerd_shimkit.wasm.canonical import (
    BYTES,
    STRING,
    U16,
    Enum,
    Option,
    Record,
    Result,
)

_REQUEST: Final = Record(Enum(*METHODS), STRING, PAIRS, PAIRS, Option(BYTES))
_RESPONSE: Final = Record(U16, Option(PAIRS), Option(BYTES), names=("status", "headers", "body"))


async def _request(instance: Instance, request: tuple[Any, ...]) -> Any:
    method, url, headers, _params, body = request
    return await instance.services.http_client.request(method, url, headers, body or b"")


RESOURCES: Final = ()
INTERFACES: Final = (
    Interface(
        "http-client",
        [Function("request", [_REQUEST], Result(_RESPONSE, HTTP_ERROR), _request)],
        error_of(HttpClientError),
    ),
)
