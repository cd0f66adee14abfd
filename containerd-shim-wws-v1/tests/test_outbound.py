"""Requests of workers, made by a real guest to real servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from containerd_shim_wws_v1.outbound.permission import refusal
from containerd_shim_wws_v1.project.worker_config import HttpRequests
from containerd_shimkit.http_client.urls import parse_url
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import Response, fetch
from containerd_shimkit.testing.servers.http import Received, answering, http_server, response
from containerd_shimkit.testing.servers.tls import Authority, certificate_authority

Image = Any  # of conftest.py

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with certificate_authority() as found:
        yield found


def allow(image: Image, *hosts: str, more: str = "allow_http = true") -> None:
    """Have the project be a worker that may ask these hosts."""
    listed = ", ".join(f'"{host}"' for host in hosts)
    config = f'version = "1"\n[features.http_requests]\nallowed_hosts = [{listed}]\n{more}\n'
    image.worker("client.wasm", "client", config)


async def ask(
    port: int, url: str, method: str = "GET", body: bytes | None = None, header: str = ""
) -> Response:
    """Have the worker make a request."""
    headers: list[tuple[str, str | bytes]] = [
        ("x-url", url),
        ("x-method", str(METHODS.index(method))),
        ("x-h", header),
    ]
    return await fetch(port, "/client", method="POST", body=body or b"", headers=headers)


def free(host: str) -> tuple[str, int]:
    """Return an address of the host that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        return host, int(listener.getsockname()[1])


# Permission


@pytest.mark.parametrize(
    ("hosts", "url", "allowed"),
    [
        (["example.com"], "https://example.com/", True),
        (["example.com"], "https://example.com:8443/a?b", True),
        (["Example.COM"], "https://EXAMPLE.com/", True),
        (["example.com:8443"], "https://example.com:8443/", True),
        (["example.com:8443"], "https://example.com/", False),
        (["example.com:443"], "https://example.com/", True),
        (["example.com"], "https://sub.example.com/", False),
        (["example.com"], "https://example.com.evil/", False),
        (["example.com"], "https://example.com@evil/", False),
        (["example.com"], "https://evil/example.com", False),
        (["example.com"], "https://evil\\@example.com/", False),
        (["127.0.0.1"], "https://127.1/", True),
        (["127.0.0.1"], "https://2130706433/", True),
        (["::1"], "https://[0:0:0:0:0:0:0:1]/", True),
        (["[::1]:5"], "https://[::1]:5/", True),
        (["bücher.example"], "https://xn--bcher-kva.example/", True),
        (["*"], "https://example.com/", False),
        (["a b"], "https://example.com/", False),
        ([], "https://example.com/", False),
    ],
)
def test_allowed_hosts(hosts: list[str], url: str, allowed: bool) -> None:
    may = HttpRequests(tuple(hosts))
    reason = refusal(may, "GET", parse_url(url))
    if allowed:
        assert reason is None
    else:
        assert reason is not None
        assert reason.startswith("The host '")


@pytest.mark.parametrize(
    ("more", "method", "reason"),
    [
        ("", "GET", "3 The URI must use HTTPS. You can allow http requests"),
        ("allow_http = true", "HEAD", "3 The method 'HEAD' is not allowed for this worker."),
        ("allow_http = true", "OPTIONS", "3 The method 'OPTIONS' is not allowed"),
        ('allow_http = true\nallowed_methods = ["GET"]', "POST", "3 The method 'POST' is not"),
    ],
)
def test_refused(
    image: Image, caplog: pytest.LogCaptureFixture, more: str, method: str, reason: str
) -> None:
    host, _ = free_address()
    allow(image, host, more=more)

    async def main(port: int) -> None:
        async with http_server(answering(lambda _: response(200)), address=free(host)) as server:
            answer = await ask(port, server.url, method)
            assert (answer.status, answer.text[: len(reason)]) == (418, reason)
            assert server.connections == 0

    image.run(main)
    assert "/client.wasm: " in caplog.text


def test_host_that_is_not_allowed(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    allow(image, "example.com")

    async def main(port: int) -> None:
        async with http_server(answering(lambda _: response(200))) as server:
            answer = await ask(port, server.url.replace("//", "//user:s3cret@"))
            expected = (
                f"3 The host '{server.host}' is not allowed for this worker. "
                "Please, update the worker configuration."
            )
            assert (answer.status, answer.text) == (418, expected)
            assert server.connections == 0

    image.run(main)
    assert "s3cret" not in caplog.text


def test_worker_without_permission(image: Image) -> None:
    image.worker("client.wasm", "client")

    async def main(port: int) -> None:
        answer = await ask(port, "https://example.com")
        assert answer.text.startswith("3 The host 'example.com' is not allowed")

    image.run(main)


# Requests


@pytest.fixture
def host(image: Image) -> str:
    """Where a server may be asked by the image's worker."""
    address = free_address()[0]
    allow(image, address, more=f"allow_http = true\nallowed_methods = {list(METHODS)}")
    return address


@pytest.mark.parametrize("method", METHODS)
def test_request(image: Image, host: str, method: str) -> None:
    async def main(port: int) -> None:
        def make(request: Received) -> bytes:
            body = b"" if method == "HEAD" else b"answer"
            return response(201, body, "x-a: 1", "X-B: two")

        async with http_server(answering(make), address=free(host)) as server:
            body = b"text" if method in ("POST", "PUT", "PATCH") else None
            answer = await ask(port, f"{server.url}/a%20b?c=d", method, body, header="value")
            assert answer.status == 201
            assert answer.text == ("" if method == "HEAD" else "answer")
            assert (answer["x-got-x-a"], answer["x-got-x-b"]) == ("1", "two")
            (request,) = server.requests
            assert (request.method, request.target) == (method, "/a%20b?c=d")
            assert request.body == (body or b"")
            assert request.all("x-h") == ["value"]
            assert request.all("accept") == ["*/*"]
            assert request.all("user-agent") == []

    image.run(main)


def test_connections_are_kept(image: Image, host: str) -> None:
    async def main(port: int) -> None:
        async with http_server(answering(lambda _: response(200)), address=free(host)) as server:
            for _ in range(5):
                assert (await ask(port, server.url)).status == 200
            assert server.connections == 1

    image.run(main)


def test_redirects(image: Image, host: str) -> None:
    def make(request: Received) -> bytes:
        if request.target == "/end":
            return response(200, b"end")
        if request.target == "/away":
            return response(302, b"", "location: http://127.0.0.1:1/")
        if request.target == "/loop":
            return response(302, b"", "location: /loop")
        return response(int(request.target[1:4]), b"", "location: /end")

    async def main(port: int) -> None:
        async with http_server(answering(make), address=free(host)) as server:
            assert (await ask(port, f"{server.url}/302", "POST", b"body")).text == "end"
            assert (await ask(port, f"{server.url}/307", "POST", b"body")).text == "end"
            assert [(r.method, r.body) for r in server.requests] == [
                ("POST", b"body"),
                ("GET", b""),
                ("POST", b"body"),
                ("POST", b"body"),
            ]
            answer = await ask(port, f"{server.url}/away")
            assert answer.text.startswith("3 The host '127.0.0.1' is not allowed")
            answer = await ask(port, f"{server.url}/loop")
            assert answer.text == f"6 {server.url}: more than 10 redirects"

    image.run(main)


@pytest.mark.parametrize("url", ["", "nothing", "/path", "ftp://host/", "http://", "http://h:x/"])
def test_url_that_is_none(image: Image, host: str, url: str) -> None:
    async def main(port: int) -> None:
        answer = await ask(port, url)
        assert (answer.status, answer.text[:2]) == (418, "0 ")

    image.run(main)


def test_server_that_is_down(image: Image, host: str) -> None:
    async def main(port: int) -> None:
        origin = "http://{}:{}".format(*free(host))
        answer = await ask(port, origin.replace("//", "//user:s3cret@"))
        assert answer.text == f"4 GET {origin}: cannot connect: Connection refused"

    image.run(main)


@pytest.mark.parametrize(
    "data", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", b""]
)
def test_answer_that_is_none(image: Image, host: str, data: bytes) -> None:
    async def answer(_request: Received, writer: asyncio.StreamWriter) -> bool:
        writer.write(data)
        return False

    async def main(port: int) -> None:
        async with http_server(answer, address=free(host)) as server:
            got = await ask(port, server.url)
            assert (got.status, got.text[:2]) == (418, "4 ")

    image.run(main)


def test_too_large_body(image: Image, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("containerd_shim_wws_v1.outbound.http.MAX_BODY_BYTES", 1000)

    async def main(port: int) -> None:
        answer = answering(lambda request: response(200, b"x" * int(request.target[1:])))
        async with http_server(answer, address=free(host)) as server:
            assert (await ask(port, f"{server.url}/1000")).text == "x" * 1000
            got = await ask(port, f"{server.url}/1001")
            expected = f"2 response of {server.url}: the body has more than 1000 bytes"
            assert (got.status, got.text) == (418, expected)

    image.run(main)


def test_worker_that_waits_is_ended(image: Image, host: str) -> None:
    """Its connection is closed, and the place free again."""

    async def never(request: Received, _writer: asyncio.StreamWriter) -> None:
        await request.gone()

    async def main(port: int) -> None:
        async with http_server(never, address=free(host)) as server:
            assert (await ask(port, server.url)).status == 504
            await server.all_closed()

    image.run(main, WWS_HTTP_REQUEST_TIMEOUT_SECONDS="0.5")


@pytest.mark.parametrize("trusted", [True, False])
def test_https(image: Image, authority: Authority, tmp_path: Any, trusted: bool) -> None:
    certificate = authority.issue(f"server-{trusted}", "DNS:localhost", "IP:127.0.0.1")
    allow(image, "127.0.0.1", more="")

    async def main(port: int) -> None:
        answer = answering(lambda _: response(200, b"secure"))
        context = certificate.server_context()
        async with http_server(answer, context, address=free("127.0.0.1")) as server:
            got = await ask(port, server.url)
            if trusted:
                assert (got.status, got.text) == (200, "secure")
            else:
                assert got.text.startswith(f"4 GET {server.url}: the server's certificate is not")

    env = {"SSL_CERT_FILE": str(authority.cert)} if trusted else {}
    image.run(main, **env)


def test_without_certificates(image: Image) -> None:
    allow(image, "127.0.0.1")

    async def main(port: int) -> None:
        answer = await ask(port, "https://127.0.0.1:1/")
        assert (answer.status, answer.text[:2]) == (418, "4 ")

    image.run(main, SSL_CERT_FILE="/nowhere.pem")
