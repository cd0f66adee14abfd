"""The JSON that workers get and give.

A worker gets an object with ``url``, ``method``, ``headers``, ``body``, ``kv`` and ``params``, and
gives one with ``data``, ``headers``, ``status``, ``kv`` and ``base64``. Beyond upstream, in ways
that a worker made for it does not notice:

- a body that is not UTF-8 comes in base64, and ``"base64": true`` says so; upstream has none then
- where a header comes more than once, ``headers_list`` has all of them; ``headers`` has the last
- a response header may be a list of strings, each a header of its own
- ``headers``, ``status`` and ``kv`` may be left out: none, 200, unchanged

Source: wasm-workers-server 1.7 crates/worker/src/io.rs, crates/server/src/handlers/worker.rs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from codecs import getincrementaldecoder
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from containerd_shimkit.http.messages import FRAMING, Headers, header_fault
from containerd_shimkit.wasm.native import GuestError

MAX_RESPONSE_BYTES: Final = 64 << 20
"""Of the JSON that a worker gives."""

_PIECE_BYTES: Final = 3 << 16
"""Of a body, written at once: whole groups of base64."""
_BASE64_CHARACTERS: Final = 1 << 18
"""Read at once: whole groups."""
_MAX_SKELETON_BYTES: Final = 1 << 20
"""Of it without what is in strings."""
_IN_STRING: Final = re.compile(rb'(?:[^"\\]++|\\.)*+("?)', re.DOTALL)
_Utf8Decoder: Final = getincrementaldecoder("utf-8")
_MAX_HEADERS: Final = 1000
_MAX_HEADER_BYTES: Final = 256 << 10
_HTML: Final = (b"content-type", b"text/html")
_HOST: Final = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]{1,300}")


class ResponseError(GuestError):
    """What a worker gives is no response: 500."""


class ResponseBodyError(ResponseError):
    """The body is not the base64 that it is said to be: 503, as upstream."""


@dataclass(frozen=True, slots=True)
class Response:
    """A worker's response; header names in lower case."""

    status: int
    headers: Headers
    body: bytes
    kv: dict[str, str] | None = field(default=None, repr=False)
    """The store's new content; None is unchanged."""


async def request_json(
    *,
    url: str,
    method: str,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
    kv: Mapping[str, str],
    params: Mapping[str, str],
) -> bytes:
    """Return a request as workers get it. headers: names in lower case.

    Others are served while a large body is written.
    """
    pairs = [(name.decode("latin-1"), value.decode(errors="replace")) for name, value in headers]
    single = dict(pairs)
    pieces, encoded = await _body_pieces(body)
    rest: dict[str, Any] = {"kv": kv, "params": params}
    if encoded:
        rest["base64"] = True
    if len(single) != len(pairs):
        rest["headers_list"] = pairs
    first = _dumped({"url": url, "method": method, "headers": single})
    return b"".join((first[:-1], b',"body":"', *pieces, b'",', _dumped(rest)[1:]))


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


async def _body_pieces(body: bytes) -> tuple[list[bytes], bool]:
    """Return what stands between the quotes for a body, and whether it is base64."""
    try:
        return [piece async for piece in _text_pieces(body)], False
    except UnicodeDecodeError:
        return [piece async for piece in _base64_pieces(body)], True


async def _text_pieces(body: bytes) -> AsyncIterator[bytes]:
    decoder = _Utf8Decoder()
    for at in range(0, len(body), _PIECE_BYTES):
        end = at + _PIECE_BYTES
        text = decoder.decode(body[at:end], final=end >= len(body))
        yield _dumped(text)[1:-1]
        if end < len(body):
            await asyncio.sleep(0)


async def _base64_pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), _PIECE_BYTES):
        yield base64.b64encode(body[at : at + _PIECE_BYTES])
        await asyncio.sleep(0)


def request_url(
    target: str, scheme: str, headers: Iterable[tuple[bytes, bytes]], authority: bytes | None
) -> str:
    """Return the absolute URL of a request, or ``target`` alone if nobody says for which host.

    target: path and query.  scheme: of the connection.  authority: of a target that was a whole
    URL.  What a proxy in front says counts, as it does upstream (actix-web, ``ConnectionInfo``).
    """
    found = {name: value.decode("latin-1") for name, value in headers}
    forwarded = _forwarded(found.get(b"forwarded", ""))
    proto = forwarded.get("proto") or found.get(b"x-forwarded-proto", "").split(",")[0].strip()
    host = forwarded.get("host") or found.get(b"x-forwarded-host", "").split(",")[0].strip()
    host = host or found.get(b"host", "") or (authority or b"").decode("latin-1")
    if _HOST.fullmatch(host) is None:
        return target
    return f"{proto if proto in ('http', 'https') else scheme}://{host}{target}"


def _forwarded(value: str) -> dict[str, str]:
    """Return what the first proxy of a header ``Forwarded`` says: RFC 7239."""
    found: dict[str, str] = {}
    for pair in value.split(",")[0].split(";"):
        name, equals, text = pair.strip().partition("=")
        if equals:
            found.setdefault(name.lower(), text.strip('"'))
    return found


async def parse_response(output: bytes) -> Response:
    """Read what a worker gives. Raises ResponseError, ResponseBodyError.

    Others are served between the parts of what is to be done for a large one.
    """
    if len(output) > _MAX_SKELETON_BYTES:
        await _check_skeleton(output)
    try:
        response = json.loads(output.decode())  # of bytes, UTF-16 would be taken as well
    except (ValueError, RecursionError):
        raise ResponseError(f"the worker's output is no JSON: {_shown(output)}") from None
    if not isinstance(response, dict):
        raise ResponseError("the worker's output is no JSON object")
    data = _field(response, "data", str, None)
    status = _field(response, "status", int, 200)
    headers = _headers(_field(response, "headers", dict, {}))
    store = _store(response["kv"]) if response.get("kv") is not None else None
    encoded = _field(response, "base64", bool, False)
    try:
        body = await _decoded(data) if encoded else data.encode()
    except (binascii.Error, ValueError):
        what = "base64" if encoded else "Unicode"
        raise ResponseBodyError(f"the response's data is no {what}") from None
    return Response(_status(status), headers, body, store)


async def _decoded(data: str) -> bytes:
    """Return what base64 stands for. Raises ValueError, of which binascii.Error is one."""
    if "=" in data[:-2]:
        raise ValueError("there is more behind the end")
    pieces = []
    for at in range(0, len(data), _BASE64_CHARACTERS):
        if at:
            await asyncio.sleep(0)
        pieces.append(base64.b64decode(data[at : at + _BASE64_CHARACTERS], validate=True))
    return b"".join(pieces)


async def _check_skeleton(output: bytes) -> None:
    """Raise ResponseError for more than a response needs: each empty list would take 64 bytes."""
    size = at = 0
    turn = _PIECE_BYTES
    while at < len(output):
        quote = output.find(b'"', at)
        size += (quote + 2 if quote >= 0 else len(output)) - at
        if size > _MAX_SKELETON_BYTES:
            raise ResponseError(
                f"the worker's output has more than {_MAX_SKELETON_BYTES} bytes beside its strings"
            )
        if quote < 0:
            return
        at, ended = quote + 1, False
        while not ended and at < len(output):
            part = _IN_STRING.match(output, at, at + _PIECE_BYTES)
            assert part is not None, "it may be empty"
            if part.end() == at:  # half an escape, at the very end
                return
            at, ended = part.end(), bool(part[1])
            if at > turn:
                await asyncio.sleep(0)
                turn = at + _PIECE_BYTES


def _field(response: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = response.get(name, default)
    if value is None:
        raise ResponseError(f"the worker's response has no {name!r}")
    # A boolean is an int for Python.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ResponseError(f"{name!r} of the worker's response is no {_KINDS[kind]}")
    return value


_KINDS: Final = {str: "string", int: "number", dict: "object", bool: "boolean"}


def _status(status: int) -> int:
    if not 0 <= status <= 0xFFFF:
        raise ResponseError(f"the response's status is {status}, which is none")
    if 200 <= status <= 599:
        return status
    # Those that the Rust crate http takes for a status cannot end a request; others are its 200.
    return 500 if 100 <= status <= 999 else 200


def _headers(found: dict[str, Any]) -> Headers:
    headers: Headers = []
    total = 0
    for name, value in found.items():
        key = name.replace("_", "-").lower().encode(errors="replace")
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                raise ResponseError(f"the response's header {name[:80]!r} is no string")
            pair = key, text.encode(errors="replace")
            total += len(pair[0]) + len(pair[1])
            if len(headers) >= _MAX_HEADERS or total > _MAX_HEADER_BYTES:
                raise ResponseError(
                    f"the response has more than {_MAX_HEADERS} headers, "
                    f"or more than {_MAX_HEADER_BYTES} bytes of them"
                )
            if (fault := header_fault(*pair)) is not None:
                raise ResponseError(f"the response has {fault}")
            if key not in FRAMING:
                headers.append(pair)
    if not any(name == b"content-type" for name, _ in headers):
        headers.append(_HTML)
    return headers


def _store(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise ResponseError("'kv' of the worker's response is no object of strings")
    try:
        for text in (*found.keys(), *found.values()):
            text.isascii() or text.encode()
    except UnicodeEncodeError:  # half a character: no later request could be made of it
        raise ResponseError("'kv' of the worker's response is no Unicode") from None
    return found


def _shown(output: bytes) -> str:
    if not output:
        return "it is empty"
    return repr(output[:80].decode(errors="replace"))
