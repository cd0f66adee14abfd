"""Whole bodies of requests and responses, for guests that get and give them in one piece."""

from __future__ import annotations

import contextlib
import re
from asyncio import timeout
from typing import Final

from containerd_shimkit.http.server import Receive, Scope, Send

_NO_BODY: Final = frozenset({204, 304})  # RFC 9110 sections 15.3.5 and 15.4.5
_DISCARD_SECONDS: Final = 2.0

FRAMING: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that say where a response ends are the server's: two opinions would let it be forged."""
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 section 5.5

Headers = list[tuple[bytes, bytes]]
TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class BodyTooLarge(Exception):
    """The request's body is larger than it may be: 413."""


def header_fault(name: bytes, value: bytes) -> str | None:
    """Return what is wrong with a header that a guest gives, None if nothing is."""
    if _TOKEN.fullmatch(name) and _VALUE.fullmatch(value):
        return None
    return f"a bad header: {name[:80]!r}: {value[:80]!r}"


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Return the whole body.

    Raises BodyTooLarge as soon as it is known to have more than ``limit`` bytes; ClientGone.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise BodyTooLarge(f"the body has {int(value)} bytes, more than {limit}")
    parts = bytearray()
    while (message := await receive())["type"] == "http.request":
        if not parts and not message["more_body"] and len(message["body"]) <= limit:
            return message["body"]  # type: ignore[no-any-return]
        parts += message["body"]
        if len(parts) > limit:
            raise BodyTooLarge(f"the body has more than {limit} bytes")
        if not message["more_body"]:
            return bytes(parts)
    raise ClientGone


async def respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole response; ``headers`` has no framing."""
    if status in _NO_BODY:
        body = b""
    else:
        headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def refuse_body(receive: Receive, send: Send, headers: Headers, body: bytes) -> None:
    """Answer 413 and take what the client is still sending, for a while.

    A connection closed with data unread is reset, and the client may never see the answer.
    """
    headers = [*headers, (b"connection", b"close"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with timeout(_DISCARD_SECONDS):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b""})
