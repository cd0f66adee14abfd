"""The ABI of Spin 1.x HTTP components: core modules made with wit-bindgen.

The host allocates with the guest's own allocator and hands over; what the guest returns is copied
and freed with the instance. Layouts are those of ``spin-http.wit``, the same for wit-bindgen 0.2
and for the later ones that Spin 1.4 and 1.5 use; only the names differ.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Final

from containerd_shim_spin_v1.abi.exports import Handler
from containerd_shimkit.http.messages import FRAMING, header_fault
from containerd_shimkit.wasm.guest import Guest, put_all, take
from containerd_shimkit.wasm.interfaces import CURRENT_REALLOC, REALLOC
from containerd_shimkit.wasm.native import GuestTrap

MEMORY: Final = b"memory"

METHODS: Final = {
    name: code
    for code, name in enumerate(("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"))
}
"""Any other method has no value in the interface and is answered 405."""

HANDLERS: Final = (
    Handler(b"handle-http-request", REALLOC, (("i32",) * 10, ("i32",))),
    Handler(
        b"fermyon:spin/inbound-http#handle-request", CURRENT_REALLOC, (("i32",) * 10, ("i32",))
    ),
)
"""Of Spin 1.0, and of 1.4 and later."""

# status u16@0; headers: tag u8@4, pointer@8, length@12; body: tag u8@16, pointer@20, length@24
_RESPONSE: Final = struct.Struct("<H2xB3xIIB3xII")
_PAIR: Final = struct.Struct("<IIII")  # pointer and length of name and value
_SOME: Final = 1

_MAX_RESPONSE_HEADERS: Final = 1000
_MAX_RESPONSE_HEADER_BYTES: Final = 256 << 10


class BadResponse(GuestTrap):
    """What the guest returned is no response."""

    def __init__(self, message: str) -> None:
        super().__init__(message, None)


@dataclass(slots=True)
class HttpResponse:
    """A guest's response; header names in lower case, each once."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


async def handle_request(
    guest: Guest, handler: Handler, method: int, uri: bytes, headers: list[bytes], body: bytes
) -> HttpResponse:
    """Call the guest's handler. headers: names and values in turn.

    Raises GuestTrap, GuestExit, GuestMemoryError.
    """
    guest.use_memory(guest.export(MEMORY))
    sizes = list(map(len, headers))
    count = len(headers) // 2
    # In this order, which guests may see: uri, array of headers, their texts, params, body.
    pointers = guest.allocate(
        guest.export(handler.realloc),
        [
            (1, len(uri)),
            (4, count * _PAIR.size),
            *zip(repeat(1), sizes),  # repeat has no end
            (4, 0),
            (1, len(body)),
        ],
    )
    uri_at, array_at, *text_at, params_at, body_at = pointers
    array = struct.pack(f"<{count * 4}I", *chain.from_iterable(zip(text_at, sizes, strict=True)))
    put_all(guest.memory(), (uri_at, array_at, *text_at, body_at), (uri, array, *headers, body))
    result = await guest.call(
        guest.export(handler.function),
        *(method, uri_at, len(uri), array_at, count),
        *(params_at, 0, _SOME, body_at, len(body)),
    )
    return _lift_response(guest.memory(), result)


def _lift_response(memory: memoryview, pointer: int) -> HttpResponse:
    raw = take(memory, pointer, _RESPONSE.size)
    status, has_headers, list_at, list_length, has_body, body_at, body_length = _RESPONSE.unpack(
        raw
    )
    if has_headers > _SOME or has_body > _SOME:
        raise BadResponse("the guest's response has an option that is neither none nor some")
    headers = _lift_headers(memory, list_at, list_length) if has_headers else {}
    body = take(memory, body_at, body_length) if has_body else b""
    # Spin makes 500 of what is outside 100..600; of those, a server can end a request with these.
    return HttpResponse(status if 200 <= status <= 599 else 500, list(headers.items()), body)


def _lift_headers(memory: memoryview, pointer: int, count: int) -> dict[bytes, bytes]:
    if count > _MAX_RESPONSE_HEADERS:
        raise BadResponse(
            f"the guest's response has {count} headers, more than {_MAX_RESPONSE_HEADERS}"
        )
    headers: dict[bytes, bytes] = {}
    total = 0
    for name_at, name_length, value_at, value_length in _PAIR.iter_unpack(
        take(memory, pointer, count * _PAIR.size)
    ):
        total += name_length + value_length
        if total > _MAX_RESPONSE_HEADER_BYTES:
            raise BadResponse(
                f"the guest's response headers exceed {_MAX_RESPONSE_HEADER_BYTES} bytes"
            )
        name = take(memory, name_at, name_length)
        value = take(memory, value_at, value_length)
        if (fault := header_fault(name, value)) is not None:
            raise BadResponse(f"the guest's response has {fault}")
        name = name.lower()
        if name not in FRAMING:
            headers[name] = value  # of duplicates the last wins, as in Spin 1.x
    return headers
