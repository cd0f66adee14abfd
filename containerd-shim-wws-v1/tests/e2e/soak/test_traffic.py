"""Fifty thousand requests of workers in C, JavaScript and Python leave memory as it was."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import pytest

from containerd_shimkit.testing.apps import Node, eventually
from containerd_shimkit.testing.http import connected, head
from containerd_shimkit.testing.leftovers import open_files

pytestmark = [pytest.mark.root, pytest.mark.containerd]

REQUESTS = 50_000
STEPS = 5
CLIENTS = 20
MORE_BYTES = 4 << 20

JAVASCRIPT = """\
addEventListener("fetch", (event) => event.respondWith(answer(event.request)));
async function answer(request) {
  Cache.set("last", request.url);
  return new Response((await request.text()).toUpperCase());
}
"""
PYTHON = """\
kept = []

def worker(request):
    kept.append(bytes(100_000))
    return Response(f"{len(kept)} {request.method}")
"""
FILES = {
    "c.wasm": "probe.wasm",
    "js.js": JAVASCRIPT,
    "js.toml": 'version = "1"\n[data.kv]\nnamespace = "js"\n',
    "py.py": PYTHON,
    "throws.js": 'addEventListener("fetch", () => { throw new Error("no"); });',
}


@dataclass(frozen=True)
class Kind:
    """A request and how it is answered."""

    path: str
    status: int = 200
    text: str | None = None
    method: str = "GET"
    body: bytes = b""


# Python takes three times as long as the others.
KINDS = [
    *[Kind("/c?mode=big&bytes=1000")] * 4,
    *[Kind("/js", text="SOME TEXT", method="POST", body=b"some text")] * 4,
    Kind("/py", text="1 GET"),
    Kind("/c?mode=exit&code=3", status=500),
    Kind("/throws", status=500),
    Kind("/missing", status=404),
]


@pytest.mark.timeout(3600)
def test_requests_leave_nothing(node: Node, image_of: Callable[..., str]) -> None:
    app = node.run(image_of(node, FILES), env={"WWS_HTTP_WORKERS": "1"})
    host, port = app.address
    made, sizes, descriptors = 0, [], []
    most = open_files(app.pid) + 1  # with the first guest, /dev/null
    for _ in range(STEPS + 1):  # the first fills pools and buffers
        began = time.monotonic()
        made += asyncio.run(ask_all(host, port, REQUESTS // STEPS))
        rollup = Path(f"/proc/{app.pid}/smaps_rollup").read_text()
        pss = re.search(r"^Pss: +(\d+) kB$", rollup, re.MULTILINE)
        assert pss is not None
        sizes.append(int(pss[1]) * 1024)
        seconds = time.monotonic() - began
        # It reads the end of the last clients' connections in a moment.
        eventually(lambda: open_files(app.pid) <= most, f"{most} descriptors are open")
        descriptors.append(open_files(app.pid))
        print(f"{made} requests, {seconds:.0f} s: {sizes[-1] / 1e6:.1f} MB, {descriptors[-1]} open")
    assert app.stop() == 0
    assert made >= REQUESTS
    assert len(set(descriptors)) == 1
    assert sizes[-1] <= sizes[0] + MORE_BYTES


async def ask_all(host: str, port: int, count: int) -> int:
    """Make requests of all kinds in turn; return how many. Raises AssertionError."""
    kinds = islice(cycle(KINDS), count)
    made = 0

    async def client() -> None:
        nonlocal made
        async with connected(port, host) as connection:
            for kind in kinds:  # what one takes, no other has
                headers = [("content-length", str(len(kind.body)))] if kind.body else []
                await connection.send(head(kind.method, kind.path, headers) + kind.body)
                answer = await connection.response()
                assert answer.status == kind.status, (kind, answer.text)
                assert kind.text is None or answer.text == kind.text, (kind, answer.text)
                made += 1

    async with asyncio.timeout(1800), asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
    return made
