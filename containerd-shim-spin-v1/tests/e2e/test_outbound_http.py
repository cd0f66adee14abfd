"""Guests make requests from a container: names, TLS with the node's certificates, other components.

The images hold no file besides the app's, and one that would have other libraries find names.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvloop

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import Answer, App, Node, free_address
from containerd_shimkit.testing.servers.http import (
    HttpServer,
    Received,
    answering,
    http_server,
    response,
)
from containerd_shimkit.testing.servers.tls import Authority, Certificate, certificate_authority

pytestmark = [pytest.mark.root, pytest.mark.containerd]

GUESTS = Path(__file__).parents[1] / "guests"
MANIFEST = """\
spin_manifest_version = 2
[application]
name = "outbound"
[[trigger.http]]
route = "/..."
component = "caller"
[[trigger.http]]
route = { private = true }
component = "hidden"
[component.caller]
source = "outbound_http.wasm"
allowed_outbound_hosts = ["http://localhost:*", "https://*:*", "http://*.spin.internal"]
[component.hidden]
source = "probe.wasm"
"""


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with certificate_authority() as made:
        yield made


@contextmanager
def server(
    address: tuple[str, int], certificate: Certificate | None = None
) -> Iterator[HttpServer]:
    """A server in a thread of its own, which answers with what it is sent."""
    loop, ready, stop = uvloop.new_event_loop(), threading.Event(), asyncio.Event()
    found: list[HttpServer] = []

    def make(request: Received) -> bytes:
        return response(200, request.body)

    async def serve() -> None:
        context = certificate.server_context() if certificate else None
        async with http_server(answering(make), context, address) as running:
            found.append(running)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def image(node: Node, *more: ImageFile) -> str:
    names = ("outbound_http.wasm", "probe.wasm")
    guests = [ImageFile(name, (GUESTS / name).read_bytes()) for name in names]
    names_by = ImageFile("etc/nsswitch.conf", b"hosts: nothing\n")
    return node.image([ImageFile("spin.toml", MANIFEST.encode()), *guests, names_by, *more])


def call(app: App, url: str, body: bytes = b"") -> Answer:
    headers = {"x-url": url, "x-method": "POST"}
    return app.get("/", method="POST", headers=headers, body=body)


def test_a_name_and_a_large_body(node: Node) -> None:
    body = bytes(range(256)) * 40_000
    with server(("127.0.0.1", free_address()[1])) as running:
        app = node.run(image(node))
        answer = call(app, f"http://localhost:{running.port}/", body)
        assert answer.body.endswith(b"\n\n" + body)
        assert call(app, "http://hidden.spin.internal/echo", body).body.endswith(b"\n\n" + body)
        assert call(app, "http://localhost:1/").body == b"error 4"
        assert call(app, "http://127.0.0.1:1/").body == b"error 1"
        assert app.stop() == 0
    assert 'needs allowed_outbound_hosts = ["http://127.0.0.1:1"]' in app.log


def test_whom_the_image_trusts(node: Node, authority: Authority) -> None:
    address = free_address()
    certificate = authority.issue("image", f"IP:{address[0]}")
    bundle = ImageFile("etc/ssl/certs/ca-certificates.crt", authority.cert.read_bytes())
    with server(address, certificate) as running:
        app = node.run(image(node, bundle))
        assert call(app, running.url, b"secret").body.endswith(b"\n\nsecret")
        assert app.stop() == 0


def test_whom_the_node_trusts(node: Node, authority: Authority) -> None:
    """The node has a bundle, in which the test's authority is not."""
    address = free_address()
    certificate = authority.issue("node", f"IP:{address[0]}")
    with server(address, certificate) as running:
        app = node.run(image(node))
        assert call(app, running.url).body == b"error 4"
        assert app.stop() == 0
    assert "the server's certificate is not accepted: " in app.log
