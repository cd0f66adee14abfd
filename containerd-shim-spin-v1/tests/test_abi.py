"""The ABI at its edges, with guests made for it: what a response may look like."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import wasmtime

from containerd_shimkit.testing.http import fetch

Image = Any  # of conftest.py
PAGE = 65536

# Its response lies ready at 1024; the allocator counts up from 32768. It traps unless the list of
# parameters is empty and there is a body, as always in Spin.
TEXT = """(module
  (memory (export "memory") 1)
  (global $next (mut i32) (i32.const 32768))
  (data (i32.const 1024) "%s")
  (data (i32.const 2048) "%s")
  (func (export "canonical_abi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 3)) (i32.const -4)))
    (global.set $next (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  (func (export "handle-http-request")
    (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    (if (i32.or (local.get 6) (i32.ne (local.get 7) (i32.const 1))) (then unreachable))
    (i32.const %d)))"""


def escaped(data: bytes) -> str:
    return "".join(f"\\{byte:02x}" for byte in data)


def install(image: Image, response: bytes, data: bytes = b"", at: int = 1024) -> None:
    image.component("probe", "/...")
    text = TEXT % (escaped(response), escaped(data), at)
    (image.root / "probe.wasm").write_bytes(wasmtime.wat2wasm(text))


def response(
    *,
    status: int = 200,
    headers: tuple[int, int, int] = (0, 0, 0),
    body: tuple[int, int, int] = (0, 0, 0),
) -> bytes:
    """headers, body: tag, pointer, length."""
    return struct.pack("<H2xB3xIIB3xII", status, *headers, *body)


def pairs(*headers: tuple[bytes, bytes], at: int = 2048) -> bytes:
    """Return an array of headers at ``at``, and their texts behind it."""
    texts_at, array, texts = at + 16 * len(headers), b"", b""
    for text in (text for header in headers for text in header):
        array += struct.pack("<II", texts_at + len(texts), len(text))
        texts += text
    return array + texts


def status_of(image: Image) -> int:
    found = []

    async def main(port: int) -> None:
        for _ in range(2):
            answer = await fetch(port, "/")
            found.append(answer.status)
            if answer.status == 500:
                assert answer.body == b""

    image.run(main)
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ((0, 0xFFFF_FFFF, 0xFFFF_FFFF), 200),
        ((1, 0, 0), 200),
        ((1, 0xFFFF_FFFF, 0), 200),
        ((1, 0, PAGE), 200),
        ((1, PAGE - 1, 1), 200),
        ((1, 0, PAGE + 1), 500),
        ((1, PAGE, 1), 500),
        ((1, PAGE - 1, 2), 500),
        ((1, 0xFFFF_FFFF, 1), 500),
        ((1, 1, 0xFFFF_FFFF), 500),
        ((1, 0x8000_0000, 0x8000_0000), 500),
        ((2, 0, 0), 500),
        ((255, 0, 0), 500),
    ],
)
def test_body_is_within_memory(image: Image, body: tuple[int, int, int], status: int) -> None:
    install(image, response(body=body))
    assert status_of(image) == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((0, 0xFFFF_FFFF, 0xFFFF_FFFF), 200),
        ((1, 0xFFFF_FFFF, 0), 200),
        ((1, PAGE - 15, 1), 500),
        ((1, 0, 0x1000_0000), 500),
        ((1, 0, 0x1000_0001), 500),
        ((1, 0, 1001), 500),
        ((1, 0xFFFF_FFF0, 1), 500),
        ((2, 0, 0), 500),
    ],
)
def test_header_list_is_within_memory(
    image: Image, headers: tuple[int, int, int], status: int
) -> None:
    install(image, response(headers=headers))
    assert status_of(image) == status


@pytest.mark.parametrize("at", [PAGE - 27, PAGE, 0x7FFF_FFFF, 0xFFFF_FFF0, 0xFFFF_FFFF])
def test_response_is_within_memory(image: Image, at: int) -> None:
    install(image, response(), at=at)
    assert status_of(image) == 500


def test_header_texts_are_within_memory(image: Image) -> None:
    for array in (struct.pack("<4I", PAGE, 1, 0, 0), struct.pack("<4I", 2048, 1, 0xFFFF_FFFF, 9)):
        install(image, response(headers=(1, 2048, 1)), array)
        assert status_of(image) == 500
        image.manifest(image._manifest.partition("[[component]]")[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"", b"x"),
        (b"a b", b"x"),
        (b"a:", b"x"),
        (b"a\r\nb", b"x"),
        (b"a\0", b"x"),
        (b"\xc3\xa4", b"x"),
        (b"a", b"x\r\nset-cookie: 1"),
        (b"a", b"x\ny"),
        (b"a", b"x\ry"),
        (b"a", b"x\0"),
        (b"a", b"x\n"),
        (b"a", b"\x7f"),
        (b"a\n", b"x"),
    ],
)
def test_header_cannot_be_injected(image: Image, name: bytes, value: bytes) -> None:
    install(image, response(headers=(1, 2048, 1)), pairs((name, value)))
    assert status_of(image) == 500


def test_good_headers_pass_and_framing_ones_do_not(image: Image) -> None:
    headers = [
        (b"X-Upper", b"Value"),
        (b"empty", b""),
        (b"content-length", b"999"),
        (b"Transfer-Encoding", b"chunked"),
        (b"connection", b"close"),
        (b"upgrade", b"h2c"),
        (b"x-upper", b"last"),
    ]
    data = pairs(*headers)
    install(image, response(headers=(1, 2048, len(headers)), body=(1, 2048, 10)), data)

    async def main(port: int) -> None:
        answer = await fetch(port, "/")
        got = dict(answer.headers)
        assert got.pop("date")
        assert got == {"x-upper": "last", "empty": "", "content-length": "10"}
        assert answer.body == data[:10]

    image.run(main)
