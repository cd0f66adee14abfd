"""The JSON that workers get, made of bodies of any size."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
import uvloop

from containerd_shim_wws_v1.contract import request_json


async def requested(body: bytes, headers: list[tuple[bytes, bytes]]) -> Any:
    text = await request_json(
        url="/a", method="POST", headers=headers, body=body, kv={"k": "v"}, params={"p": "q"}
    )
    return json.loads(text)


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
    body = byte * (8 << 20)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        counting = asyncio.create_task(count())
        await requested(body, [])
        counting.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert turns > 30
