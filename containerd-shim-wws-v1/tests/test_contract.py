"""The JSON that workers get, made of bodies of any size."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from containerd_shim_wws_v1.contract import (
    ResponseBodyError,
    ResponseError,
    parse_response,
    request_json,
)


async def requested(body: bytes, headers: list[tuple[bytes, bytes]]) -> Any:
    text = await request_json(
        url="/a", method="POST", headers=headers, body=body, kv={"k": "v"}, params={"p": "q"}
    )
    return json.loads(text)


def turns_during(main: Coroutine[Any, Any, None]) -> int:
    """Return how many turns others have had."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def both() -> None:
        counting = asyncio.create_task(count())
        try:
            await main
        finally:
            counting.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(both())
    return turns


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"text",
        b'"\\\n\0',
        "Größe ".encode() * 100_000,
        "a😀".encode() * 150_000,
        b"\0" * 1_000_000,
        "é".encode() * 200_000 + b"\xc3",
        b"x" * 500_000 + b"\xff",
        bytes(range(256)) * 3000,
        b"\xff",
    ],
    ids=range(10),
)
def test_bodies(body: bytes) -> None:
    headers = [(b"a", b"1"), (b"a", b"2")]

    async def main() -> None:
        request = await requested(body, headers)
        try:
            expected: dict[str, Any] = {"body": body.decode()}
        except UnicodeDecodeError:
            expected = {"body": base64.b64encode(body).decode(), "base64": True}
        assert request == {
            "url": "/a",
            "method": "POST",
            "headers": {"a": "2"},
            "kv": {"k": "v"},
            "params": {"p": "q"},
            "headers_list": [["a", "1"], ["a", "2"]],
            **expected,
        }

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("byte", [b"x", b"\0", b"\xff"])
def test_others_are_served_while_a_large_body_is_written(byte: bytes) -> None:
    async def main() -> None:
        await requested(byte * (8 << 20), [])

    assert turns_during(main()) > 30


MANY = 2_000_000


@pytest.mark.parametrize(
    ("data", "encoded", "body"),
    [
        ("x" * 8 * MANY, False, b"x" * 8 * MANY),
        ("\n" * MANY, False, b"\n" * MANY),
        ('é"\\' * MANY, False, 'é"\\'.encode() * MANY),
        ("AAAA" * MANY + "QQ==", True, bytes(3 * MANY) + b"A"),
    ],
    ids=range(4),
)
def test_others_are_served_while_a_large_response_is_read(
    data: str, encoded: bool, body: bytes
) -> None:
    output = json.dumps({"data": data, "base64": encoded, "headers": {"a": "b"}}).encode()

    async def main() -> None:
        response = await parse_response(output)
        assert response.body == body
        assert (b"a", b"b") in response.headers

    assert turns_during(main()) > 10


@pytest.mark.parametrize("data", ["AAAA" * 70_000 + "A", "QQ==" + "AAAA" * 70_000, "A=A=", "é"])
def test_data_that_is_no_base64(data: str) -> None:
    async def main() -> None:
        with pytest.raises(ResponseBodyError, match="no base64"):
            await parse_response(json.dumps({"data": data, "base64": True}).encode())

    turns_during(main())


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (b'{"data": "' + b"x" * MANY, "no JSON"),
        (b'{"data": "' + b"x" * MANY + b"\\", "no JSON"),
        (b"{" + b" " * MANY, "beside its strings"),
        # Half of a character is what ends a string where each is a byte.
        (('{"data": "∀", "m": [' + "[]," * MANY + "0]}").encode("utf-16-le"), "no JSON"),
        (('{"data": "∀", "m": [' + "[]," * MANY + "0]}").encode("utf-32-be"), "no JSON"),
        (b'{"data": ["' + b'","' * MANY, "beside its strings"),
        (b'{"data": "' + b'\\"' * MANY + b'", ' + b"[" * MANY, "beside its strings"),
    ],
    ids=range(7),
)
def test_large_output_that_is_none(output: bytes, reason: str) -> None:
    async def main() -> None:
        with pytest.raises(ResponseError, match=reason):
            await parse_response(output)

    turns_during(main())
