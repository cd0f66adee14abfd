"""Replies and commands as bytes, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shimkit.redis_client.protocol import (
    ProtocolError,
    Reply,
    ReplyError,
    ReplyParser,
    Status,
    encode_command,
)

REPLIES: list[tuple[bytes, Reply]] = [
    (b"+OK\r\n", Status(b"OK")),
    (b"-WRONGTYPE no\r\n", ReplyError(b"WRONGTYPE no")),
    (b":-12\r\n", -12),
    (b":9223372036854775807\r\n", (1 << 63) - 1),
    (b":-9223372036854775808\r\n", -(1 << 63)),
    (b"$5\r\na\r\nb\0\r\n", b"a\r\nb\0"),
    (b"$0\r\n\r\n", b""),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"*0\r\n", []),
    (b"*2\r\n*2\r\n:1\r\n*0\r\n+x\r\n", [[1, []], Status(b"x")]),
    (b"*3\r\n$1\r\na\r\n$-1\r\n-ERR x\r\n", [b"a", None, ReplyError(b"ERR x")]),
]


@pytest.mark.parametrize(("data", "reply"), REPLIES, ids=lambda value: repr(value)[:30])
def test_reply(data: bytes, reply: Reply) -> None:
    assert ReplyParser().receive_data(data) == [reply]


@given(st.lists(st.sampled_from(REPLIES)), st.data())
def test_replies_split_anywhere(replies: list[tuple[bytes, Reply]], data: st.DataObject) -> None:
    stream = b"".join(text for text, _ in replies)
    parser, found = ReplyParser(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += parser.receive_data(stream[:size])
        stream = stream[size:]
    assert found == [reply for _, reply in replies]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\r\n",
        b"%1\r\n",
        b"$-2\r\n",
        b":1x\r\n",
        b":\r\n",
        b":9223372036854775808\r\n",
        b"$99999999999999999999999\r\n",
        b"$1\r\nabc\r\n",
        b"*1\r\n" * 33,
        b"+" + b"x" * 70_000,
        b"+" + b"x" * 70_000 + b"\r\n",
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_reply(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ReplyParser().receive_data(data)


@pytest.mark.parametrize(
    "data",
    [
        b"$1001\r\n",
        b"*32\r\n",
        b"*2\r\n$600\r\n" + b"x" * 600 + b"\r\n$400\r\n",
        b"*31\r\n" + b":1\r\n" * 31,
    ],
    ids=["string", "list", "together", "numbers"],
)
def test_reply_too_large_is_refused_by_its_length(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="exceeds 900 bytes"):
        ReplyParser(900).receive_data(data)


def test_bound_is_of_one_reply() -> None:
    parser = ReplyParser(900)
    for _ in range(10):
        assert parser.receive_data(b"$600\r\n" + b"x" * 600 + b"\r\n") == [b"x" * 600]


def test_command() -> None:
    assert encode_command([b"GET", b"a\r\n"]) == b"*2\r\n$3\r\nGET\r\n$3\r\na\r\n\r\n"
