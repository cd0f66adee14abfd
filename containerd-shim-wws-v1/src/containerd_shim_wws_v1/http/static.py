"""Answering with a file: conditions, a range, and the content in pieces."""

from __future__ import annotations

import os
import re
from typing import Final

from containerd_shim_wws_v1.project.assets import Asset
from containerd_shimkit.http.messages import Headers
from containerd_shimkit.http.server import Scope, Send

_PIECE_BYTES: Final = 256 << 10
_RANGE: Final = re.compile(rb"bytes=([0-9]{0,18})-([0-9]{0,18})")


async def send_asset(asset: Asset, scope: Scope, send: Send, status: int = 200) -> None:
    """Answer with a file, and close it. status: of a whole one."""
    try:
        await _send(asset, scope, send, status)
    finally:
        asset.close()


async def _send(asset: Asset, scope: Scope, send: Send, status: int) -> None:
    asked = dict(scope["headers"]) if status == 200 else {}
    headers: Headers = [
        (b"content-type", asset.content_type.encode()),
        (b"etag", asset.etag.encode()),
        (b"last-modified", asset.modified.encode()),
        (b"accept-ranges", b"bytes"),
    ]
    if _is_current(asset, asked):
        await send({"type": "http.response.start", "status": 304, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
        return
    first, end = 0, asset.size
    if (wanted := asked.get(b"range")) is not None and b"if-range" not in asked:
        part = _range(wanted, asset.size)
        if part is not None and part[0] >= part[1]:
            status, (first, end) = 416, (0, 0)
            headers.append((b"content-range", b"bytes */%d" % asset.size))
        elif part is not None:
            status, (first, end) = 206, part
            shown = b"bytes %d-%d/%d" % (first, end - 1, asset.size)
            headers.append((b"content-range", shown))
    headers.append((b"content-length", b"%d" % (end - first)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    while scope["method"] != "HEAD" and first < end:
        data = os.pread(asset.descriptor, min(_PIECE_BYTES, end - first), first)
        if not data:  # it has become shorter: the server ends the connection
            return
        first += len(data)
        await send({"type": "http.response.body", "body": data, "more_body": first < end})
    if scope["method"] == "HEAD" or end == 0 or status == 416:
        await send({"type": "http.response.body", "body": b""})


def _is_current(asset: Asset, asked: dict[bytes, bytes]) -> bool:
    """Whether the client has this very file. Source: RFC 9110 section 13.2.2."""
    if (known := asked.get(b"if-none-match")) is not None:
        tags = {tag.strip().removeprefix(b"W/") for tag in known.split(b",")}
        return b"*" in tags or asset.etag.encode() in tags
    return asked.get(b"if-modified-since") == asset.modified.encode()


def _range(wanted: bytes, size: int) -> tuple[int, int] | None:
    """Return first byte and end of the part that is wanted, None if it is to be the whole.

    The part is empty if there is no such one.  Several parts are answered with the whole.
    """
    found = _RANGE.fullmatch(wanted.strip())
    if found is None or found.group() == b"bytes=-":
        return None
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1 if last else size)
