"""What workers have of servers, through containerd: in a container nothing can be imported late."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from containerd_shimkit.testing.apps import App, Node, free_address
from containerd_shimkit.testing.servers.redis import running_redis
from containerd_shimkit.testing.servers.tls import certificate_authority

pytestmark = [pytest.mark.root, pytest.mark.containerd]

ImageOf = Callable[..., str]  # of conftest.py

FETCH = """\
addEventListener("fetch", (event) => event.respondWith(answer(event.request)));
async function answer(request) {
  try {
    const response = await fetch(request.headers.get("x-url"));
    return new Response(await response.text(), { status: response.status });
  } catch (error) {
    return new Response(String(error), { status: 418 });
  }
}
"""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"got {self.path}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(
    context: ssl.SSLContext | None = None, address: tuple[str, int] | None = None
) -> Iterator[tuple[str, int]]:
    """A server of this process; yields its address."""
    server = ThreadingHTTPServer(address or free_address(), _Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield str(server.server_address[0]), server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(app: App, path: str, url: str) -> tuple[int, str]:
    answer = app.get(path, headers={"x-url": url, "x-method": "0"})
    return answer.status, answer.text


def test_requests_of_workers(node: Node, image_of: ImageOf) -> None:
    with serving() as (host, port):
        config = (
            f'version = "1"\n[features.http_requests]\nallowed_hosts = ["{host}", "a.invalid"]\n'
        )
        config += "allow_http = true\n"
        image = image_of(
            node,
            {
                "c.wasm": "client.wasm",
                "c.toml": config,
                "js.js": FETCH,
                "js.toml": config,
                "none.js": FETCH,
            },
        )
        app = node.run(image)
        for path in ("/c", "/js"):
            assert ask(app, path, f"http://{host}:{port}/x?y") == (200, "got /x?y")
            status, text = ask(app, path, "http://a.invalid/")
            assert status == 418
            assert "cannot find the address of a.invalid" in text
            status, text = ask(app, path, "http://127.0.0.1/")
            assert status == 418
            assert "The host '127.0.0.1' is not allowed for this worker" in text
        assert ask(app, "/none", f"http://{host}:{port}/")[0] == 418
        assert app.stop() == 0


def test_https(node: Node, image_of: ImageOf) -> None:
    address = free_address()
    with certificate_authority() as authority:
        context = authority.issue("server", f"IP:{address[0]}").server_context()
        trusted = authority.cert.read_text()
    config = f'version = "1"\n[features.http_requests]\nallowed_hosts = ["{address[0]}"]\n'
    image = image_of(node, {"c.wasm": "client.wasm", "c.toml": config, "ca.pem": trusted})
    with serving(context, address) as (host, port):
        app = node.run(image, env={"SSL_CERT_FILE": "/ca.pem"})
        assert ask(app, "/c", f"https://{host}:{port}/") == (200, "got /")
        assert app.stop() == 0
        app = node.run(image)
        status, text = ask(app, "/c", f"https://{host}:{port}/")
        assert status == 418
        assert "the server's certificate is not accepted" in text or "no certificates" in text
        assert app.stop() == 0


def test_values_in_redis(node: Node, image_of: ImageOf) -> None:
    config = 'version = "1"\n[data.kv]\nnamespace = "n"\n'
    image = image_of(node, {"probe.wasm": "probe.wasm", "probe.toml": config})
    with running_redis("--requirepass", "s3cret") as redis:
        env = {"WWS_KV": f"redis://:s3cret@{redis.host}:{redis.port}", "WWS_HTTP_WORKERS": "2"}
        app = node.run(image, env=env)
        assert app.get("/probe?mode=kv&key=k&value=1").text == "{}"
        for _ in range(4):
            assert app.get("/probe?mode=kv&key=k&value=1").text == '{"k":"1"}'
        assert app.stop() == 0


def test_each_process_loads_a_source(node: Node, image_of: ImageOf) -> None:
    source = 'addEventListener("fetch", (event) => event.respondWith(new Response("here")));'
    app = node.run(image_of(node, {"hello.js": source}), env={"WWS_HTTP_WORKERS": "3"})
    for _ in range(20):
        assert app.get("/hello").text == "here"
    assert app.stop() == 0
