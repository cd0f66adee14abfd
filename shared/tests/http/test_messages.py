"""Bodies in one piece."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from containerd_shimkit.http.messages import (
    BodyTooLarge,
    ClientGone,
    header_fault,
    read_body,
    respond,
)


def read(parts: list[bytes], limit: int, length: int | None = None) -> bytes:
    """Read a body that comes in parts; an empty list is a client that goes away."""
    more: list[dict[str, Any]] = [
        {"type": "http.request", "body": part, "more_body": True} for part in parts
    ]
    if more:
        more[-1]["more_body"] = False
    messages = [*more, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    headers = [] if length is None else [(b"content-length", b"%d" % length)]
    return asyncio.run(read_body({"headers": headers}, receive, limit))


def test_body() -> None:
    assert read([b""], 0) == b""
    assert read([b"abc"], 3) == b"abc"
    assert read([b"ab", b"", b"c"], 3) == b"abc"


def test_body_that_is_too_large() -> None:
    with pytest.raises(BodyTooLarge, match="the body has 4 bytes, more than 3"):
        read([], 3, 4)
    with pytest.raises(BodyTooLarge, match="the body has more than 3 bytes"):
        read([b"ab", b"cd"], 3)
    with pytest.raises(BodyTooLarge):
        read([b"abcd"], 3)


def test_client_that_goes_away() -> None:
    with pytest.raises(ClientGone):
        read([], 3)


@pytest.mark.parametrize(
    ("status", "framing", "body"),
    [(200, [(b"content-length", b"3")], b"abc"), (204, [], b""), (304, [], b"")],
)
def test_response(status: int, framing: list[tuple[bytes, bytes]], body: bytes) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(respond(send, status, [(b"a", b"b")], b"abc"))
    start, end = sent
    assert (start["status"], start["headers"]) == (status, [(b"a", b"b"), *framing])
    assert end["body"] == body


@pytest.mark.parametrize(
    ("name", "value", "bad"),
    [
        (b"x-a", b"b \t\xff", False),
        (b"", b"b", True),
        (b"a b", b"", True),
        (b"a", b"b\r\nc: d", True),
        (b"a", b"\0", True),
    ],
)
def test_header_of_a_guest(name: bytes, value: bytes, bad: bool) -> None:
    assert (header_fault(name, value) is not None) == bad
