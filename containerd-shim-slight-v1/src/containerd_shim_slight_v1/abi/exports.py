"""What guests export, and how it is called: setting the app up, and handlers of requests.

A request and all that it points to is lowered into the guest's memory; the guest's result is
copied, and freed with the instance.

Source: SpiderLightning 0.5 wit/http-server-export.wit, wit/http-handler.wit, wit/http-types.wit;
crates/http-api/src/lib.rs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from containerd_shim_slight_v1.abi.http_types import HTTP_ERROR, METHODS, PAIRS
from containerd_shimkit.http.messages import FRAMING, Headers, header_fault
from containerd_shimkit.wasm.canonical import (
    BYTES,
    STRING,
    U16,
    U32,
    AbiError,
    Blocks,
    Lifting,
    Option,
    Record,
)
from containerd_shimkit.wasm.exports import FunctionType
from containerd_shimkit.wasm.guest import Guest, put_all
from containerd_shimkit.wasm.interfaces import REALLOC

MEMORY: Final = b"memory"
START: Final = "_start"
INIT: Final = "on-server-init"
INIT_TYPE: Final[FunctionType] = ((), ("i32",))
HANDLER_TYPE: Final[FunctionType] = (("i32",) * 10, ("i32",))
REALLOC_TYPE: Final[FunctionType] = (("i32",) * 4, ("i32",))

# method, uri, headers, params, body; the method is an enum of one byte, and the next field aligned.
_REQUEST: Final = Record(U32, STRING, PAIRS, PAIRS, Option(BYTES))
_FLAT_REQUEST: Final = struct.Struct("<IIIIIIIB3xII")
_RESPONSE: Final = Record(U16, Option(PAIRS), Option(BYTES))
_TAG_BYTES: Final = 4
"""Of a result whose parts are aligned to four bytes."""

_MAX_RESPONSE_HEADERS: Final = 1000
_MAX_RESPONSE_HEADER_BYTES: Final = 256 << 10


class InitFailedError(Exception):
    """The guest says that the app cannot be set up; the message is the guest's."""


class HandlerError(Exception):
    """The guest's handler returns an error."""

    def __init__(self, case: str, content: str | int) -> None:
        super().__init__(f"{case}: {content}")
        self.case = case
        self.status = content if isinstance(content, int) else None


@dataclass(frozen=True, slots=True)
class Request:
    """A request as handlers get it."""

    method: str
    """Of METHODS."""
    uri: str
    headers: list[tuple[str, str]]
    parameters: list[tuple[str, str]]
    """Those of the route."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """A handler's response; header names in lower case."""

    status: int
    headers: Headers
    body: bytes


async def call_init(guest: Guest) -> None:
    """Let a guest set the app up. Raises InitFailedError, GuestError."""
    guest.use_memory(guest.export(MEMORY))
    at = await guest.call(guest.export(INIT.encode()))
    data = guest.read(at, _TAG_BYTES + STRING.size)
    if _is_error(data):
        raise InitFailedError(STRING.load(Lifting(guest.memory()), data, _TAG_BYTES))


async def call_handler(guest: Guest, name: str, request: Request) -> Response:
    """Answer a request by the exported function ``name``. Raises HandlerError, GuestError."""
    guest.use_memory(guest.export(MEMORY))
    area, blocks = bytearray(_REQUEST.size), Blocks()
    fields = METHODS[request.method], request.uri, request.headers, request.parameters, request.body
    _REQUEST.lower(blocks, area, 0, fields)
    sizes = zip(blocks.aligns, map(len, blocks.contents), strict=True)
    addresses = guest.allocate(guest.export(REALLOC), sizes)
    blocks.resolve(addresses)
    put_all(guest.memory(), addresses, blocks.contents)
    at = await guest.call(guest.export(name.encode()), *_FLAT_REQUEST.unpack(area))
    data = guest.read(at, _TAG_BYTES + _RESPONSE.size)
    lifting = Lifting(guest.memory())
    if _is_error(data):
        raise HandlerError(*HTTP_ERROR.load(lifting, data, _TAG_BYTES))
    status, headers, body = _RESPONSE.load(lifting, data, _TAG_BYTES)
    # A server can end a request with these.
    return Response(status if 200 <= status <= 599 else 500, _headers(headers or ()), body or b"")


def _is_error(data: bytes) -> bool:
    if data[0] > 1:
        raise AbiError("the guest returns a result that is neither ok nor an error")
    return data[0] == 1


def _headers(pairs: list[tuple[str, str]] | tuple[()]) -> Headers:
    if len(pairs) > _MAX_RESPONSE_HEADERS:
        raise AbiError(
            f"the guest's response has {len(pairs)} headers, more than {_MAX_RESPONSE_HEADERS}"
        )
    headers: Headers = []
    total = 0
    for name, value in pairs:
        pair = name.encode().lower(), value.encode()
        total += len(pair[0]) + len(pair[1])
        if total > _MAX_RESPONSE_HEADER_BYTES:
            raise AbiError(
                f"the guest's response headers exceed {_MAX_RESPONSE_HEADER_BYTES} bytes"
            )
        if (fault := header_fault(*pair)) is not None:
            raise AbiError(f"the guest's response has {fault}")
        if pair[0] not in FRAMING:
            headers.append(pair)
    return headers
