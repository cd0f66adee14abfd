"""Outbound HTTP against real servers: what is sent, what comes back, and what is refused."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from containerd_shim_spin_v1.host import http as http_module
from containerd_shim_spin_v1.host.http import (
    MAX_DEPTH,
    Chain,
    ChainedRequest,
    ChainedResponse,
    HttpHost,
)
from containerd_shim_spin_v1.host.services import networks_of
from containerd_shim_spin_v1.host.tls import TlsContexts
from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.outbound.access import DestinationNotAllowedError, OutboundAccess
from containerd_shim_spin_v1.runtime_config.reader import parse_runtime_config
from containerd_shim_spin_v1.variables.values import Variables
from containerd_shimkit.http_client.client import (
    BodyTooLargeError,
    HttpClient,
    RequestError,
    RequestFailedError,
)
from containerd_shimkit.http_client.exchange import HttpRequest, HttpResponse
from containerd_shimkit.http_client.networks import BlockedNetworkError, Networks
from containerd_shimkit.http_client.urls import InvalidUrlError, parse_url
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.servers.http import (
    Answer,
    HttpServer,
    Received,
    answering,
    http_server,
    response,
)
from containerd_shimkit.testing.servers.tls import Authority, certificate_authority

SECONDS = 30.0


def access(*allowed: str) -> OutboundAccess:
    """Return the permissions of component ``c``; without ``allowed`` to everything."""
    entries = ", ".join(f'"{entry}"' for entry in allowed or ("*://*:*",))
    app = parse_manifest(
        'spin_manifest_version = 2\n[application]\nname = "a"\n[[trigger.http]]\nroute = "/"\n'
        'component = "c"\n[component.c]\nsource = "c.wasm"\n'
        f"allowed_outbound_hosts = [{entries}]",
        "/spin.toml",
    )
    return OutboundAccess(app.component("c"), Variables(app, []))


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(SECONDS):
            await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())


@asynccontextmanager
async def http_host(
    config: str = "", chain: Chain | None = None, **tls: Any
) -> AsyncIterator[HttpHost]:
    parsed = parse_runtime_config(config)
    contexts = TlsContexts(parsed, tls.pop("env", {}), **tls)
    host = HttpHost(parsed, networks_of(parsed), contexts)
    if chain is not None:
        host.use_chain(chain)
    try:
        yield host
    finally:
        await host.close()


def ok(request: Received) -> bytes:
    return response(200, request.body, "X-Two: 1", "x-two: 2")


# Requests and responses


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_method_target_and_body(method: str) -> None:
    async def main() -> None:
        async with http_server(answering(ok)) as server, http_host() as host:
            body = b"" if method in ("GET", "HEAD", "OPTIONS") else bytes(range(256))
            request = HttpRequest(method, f"{server.url}/a%2Fb/../é?x=/?#f", [("x-a", "é")], body)
            answer = await host.send(access(), request)
            assert (answer.status, answer.body) == (200, body)
            assert [value for name, value in answer.headers if name == "x-two"] == ["1", "2"]
            (received,) = server.requests
            assert (received.method, received.target) == (method, "/%C3%A9?x=/?")
            assert received.body == body
            assert received.all("x-a") == ["é".encode().decode("latin-1")]
            assert received.all("host") == [f"{server.host}:{server.port}"]

    run(main)


def test_nothing_is_added_to_a_request() -> None:
    async def main() -> None:
        async with http_server(answering(ok)) as server, http_host() as host:
            await host.send(access(), HttpRequest("POST", server.url, [], b"x"))
            names = {name for name, _ in server.requests[0].headers}
            assert names == {"host", "content-length", "accept-encoding"}
            async with opened(host, HttpRequest("GET", server.url)):
                pass
            assert {name for name, _ in server.requests[1].headers} == {"host"}

    run(main)


@asynccontextmanager
async def opened(host: HttpHost, request: HttpRequest) -> AsyncIterator[Any]:
    answer = await host.open(access(), request)
    try:
        yield answer
    finally:
        answer.close()


def test_headers_of_the_connection_are_not_the_guests() -> None:
    async def main() -> None:
        async with http_server(answering(ok)) as server, http_host() as host:
            headers = [
                ("Content-Length", "100"),
                ("transfer-encoding", "chunked"),
                ("connection", "close"),
                ("Expect", "100-continue"),
                ("upgrade", "websocket"),
                ("X-Kept", "1"),
                ("x-kept", "2"),
            ]
            await host.send(access(), HttpRequest("POST", server.url, headers, b"abc"))
            await host.send(access(), HttpRequest("GET", server.url))
            first = server.requests[0]
            assert first.all("content-length") == ["3"]
            for name in ("transfer-encoding", "connection", "expect", "upgrade"):
                assert first.all(name) == []
            assert first.all("x-kept") == ["1", "2"]
            assert server.connections == 1

    run(main)


def test_the_guest_may_name_the_virtual_host() -> None:
    async def main() -> None:
        async with http_server(answering(ok)) as server, http_host() as host:
            await host.send(access(), HttpRequest("GET", server.url, [("Host", "other.example")]))
            assert server.requests[0].all("host") == ["other.example"]
            twice = [("Host", "a"), ("host", "b")]
            with pytest.raises(RequestError, match="more than one header Host"):
                await host.send(access(), HttpRequest("GET", server.url, twice))

    run(main)


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", [("x", "a\r\ny: b")]),
        ("GET", [("x", "a\nb")]),
        ("GET", [("x", "a\0b")]),
        ("GET", [("x\r\ny", "a")]),
        ("GET", [("x:", "a")]),
        ("GET", [("x y", "a")]),
        ("GET", [("", "a")]),
        ("GET", [("é", "a")]),
        ("GET / HTTP/1.1\r\nx: y\r\n\r\n", []),
        ("", []),
        ("CONNECT", []),
        ("GET", [("x", "y" * (257 << 10))]),
        ("GET", [("x", "y")] * 1001),
    ],
)
def test_what_cannot_be_sent(method: str, headers: list[tuple[str, str]]) -> None:
    async def main() -> None:
        async with http_server(answering(ok)) as server, http_host() as host:
            with pytest.raises(RequestError):
                await host.send(access(), HttpRequest(method, server.url, headers))
            assert not server.requests

    run(main)


def test_user_and_password_of_the_url() -> None:
    async def main() -> None:
        async with http_server(answering(ok)) as server, http_host() as host:
            url = server.url.replace("//", "//Aladdin:open%20sesame@")
            await host.send(access(), HttpRequest("GET", url))
            await host.send(access(), HttpRequest("GET", url, [("authorization", "own")]))
            first, second = server.requests
            assert first.all("authorization") == ["Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="]
            assert second.all("authorization") == ["own"]

    run(main)


def test_cookies_are_not_kept() -> None:
    async def main() -> None:
        make = answering(lambda _: response(200, b"", "set-cookie: a=b"))
        async with http_server(make) as server, http_host() as host:
            for _ in range(2):
                answer = await host.send(access(), HttpRequest("GET", server.url))
                assert ("set-cookie", "a=b") in answer.headers
            assert server.requests[1].all("cookie") == []

    run(main)


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    async def main() -> None:
        async with http_server(answering(ok)) as server, http_host() as host:
            assert (await host.send(access(), HttpRequest("GET", server.url))).status == 200

    run(main)


def test_headers_that_are_not_utf_8_are_left_out() -> None:
    async def main() -> None:
        make = answering(lambda _: response(200, b"", "X-Bad: \xe9", "X-Good: a"))
        async with http_server(make) as server, http_host() as host:
            answer = await host.send(access(), HttpRequest("GET", server.url))
            assert answer.headers == [("content-length", "0"), ("x-good", "a")]
            async with opened(host, HttpRequest("GET", server.url)) as raw:
                assert (b"x-bad", b"\xe9") in raw.headers

    run(main)


@pytest.mark.parametrize("size", [0, 1, 65_536, 10 << 20])
def test_bodies_come_back(size: int) -> None:
    body = (bytes(range(256)) * (size // 256 + 1))[:size]

    async def main() -> None:
        async with http_server(answering(ok)) as server, http_host() as host:
            answer = await host.send(access(), HttpRequest("POST", server.url, [], body))
            assert answer.body == body

    run(main)


def test_a_body_without_end() -> None:
    async def endless(_: Received, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()

    async def main(limit: pytest.MonkeyPatch) -> None:
        limit.setattr(http_module, "MAX_BODY_BYTES", 1 << 20)
        async with http_server(endless) as server, http_host() as host:
            with pytest.raises(BodyTooLargeError, match="more than 1048576 bytes"):
                await host.send(access(), HttpRequest("GET", server.url))
            await server.all_closed()

    with pytest.MonkeyPatch.context() as limit:
        run(lambda: main(limit))


# gzip


def test_gzip_is_undone() -> None:
    def make(request: Received) -> bytes:
        assert request.all("accept-encoding") == ["gzip"]
        packed = gzip.compress(b"one ", mtime=0) + gzip.compress(b"two", mtime=0)
        return response(200, packed, "content-encoding: GZip")

    async def main() -> None:
        async with http_server(answering(make)) as server, http_host() as host:
            answer = await host.send(access(), HttpRequest("GET", server.url))
            assert (answer.headers, answer.body) == ([], b"one two")

    run(main)


def test_gzip_that_was_not_asked_for_is_left_to_open() -> None:
    packed = gzip.compress(b"text", mtime=0)

    async def main() -> None:
        make = answering(lambda _: response(200, packed, "content-encoding: gzip"))
        async with (
            http_server(make) as server,
            http_host() as host,
            opened(host, HttpRequest("GET", server.url)) as answer,
        ):
            assert (b"content-encoding", b"gzip") in answer.headers
            assert b"".join([piece async for piece in answer]) == packed

    run(main)


def test_a_bomb_of_gzip() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()

    async def main() -> None:
        make = answering(lambda _: response(200, bomb, "content-encoding: gzip"))
        async with http_server(make) as server, http_host() as host:
            turns = 0

            async def others() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(others())
            with pytest.raises(BodyTooLargeError):
                await host.send(access(), HttpRequest("GET", server.url))
            task.cancel()
            assert turns > 400  # a turn for each piece

    run(main)


@pytest.mark.parametrize(
    "body", [b"no gzip", gzip.compress(b"text", mtime=0)[:-1], gzip.compress(b"a", mtime=0) + b"b"]
)
def test_what_is_no_gzip(body: bytes) -> None:
    async def main() -> None:
        make = answering(lambda _: response(200, body, "content-encoding: gzip"))
        async with http_server(make) as server, http_host() as host:
            with pytest.raises(RequestFailedError, match="body"):
                await host.send(access(), HttpRequest("GET", server.url))

    run(main)


def test_head_of_what_would_be_gzip() -> None:
    async def main() -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 99\r\n\r\n"
        async with http_server(answering(lambda _: head)) as server, http_host() as host:
            answer = await host.send(access(), HttpRequest("HEAD", server.url))
            assert answer.headers == [("content-encoding", "gzip"), ("content-length", "99")]

    run(main)


# Permission


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/",
        "http://allowed.example:81/",
        "https://allowed.example/",
        "http://allowed.example@other.example/",
        "http://other.example\\@allowed.example/",
        "http://other.example#@allowed.example/",
        "http://sub.allowed.example/",
        "http://allowed.example./",
        "http://127.1/",
        "http://back.spin.internal/",
        "http://self.alt/",
        "/own",
    ],
)
def test_what_is_not_allowed(url: str) -> None:
    async def main() -> None:
        async with http_host(chain=unreachable) as host:
            with pytest.raises(DestinationNotAllowedError):
                await host.send(access("http://allowed.example"), HttpRequest("GET", url))

    run(main)


async def unreachable(_: ChainedRequest) -> ChainedResponse:
    raise AssertionError("the app was called")


def test_what_is_no_url() -> None:
    async def main() -> None:
        async with http_host() as host:
            for url in ("", "example.com", "http://", "ftp://example.com"):
                with pytest.raises(InvalidUrlError):
                    await host.send(access(), HttpRequest("GET", url))

    run(main)


@pytest.mark.parametrize("name", ["127.0.0.1", "0x7f.1", "localhost", "[::ffff:127.0.0.1]"])
def test_blocked_networks(name: str) -> None:
    async def main() -> None:
        async with (
            http_server(answering(ok)) as server,
            http_host('outbound_networking.block_networks = ["private"]') as host,
        ):
            url = f"http://{name}:{server.port}/"
            for _ in range(2):
                with pytest.raises(BlockedNetworkError, match="block_networks"):
                    await host.send(access(), HttpRequest("GET", url))
            assert not server.connections

    run(main)


# Redirects


def redirecting(status: int, location: str) -> Answer:
    def make(request: Received) -> bytes:
        if request.target == "/end":
            return response(200, request.method.encode() + b" " + request.body)
        return response(status, b"moved", f"Location: {location}")

    return answering(make)


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        (301, "GET", b"GET "),
        (301, "POST", b"GET "),
        (302, "POST", b"GET "),
        (302, "PUT", b"GET "),
        (303, "PUT", b"GET "),
        (307, "POST", b"POST body"),
        (308, "PUT", b"PUT body"),
    ],
)
def test_redirects_are_followed(status: int, method: str, then: bytes) -> None:
    async def main() -> None:
        async with http_server(redirecting(status, "/end")) as server, http_host() as host:
            body = b"" if method == "GET" else b"body"
            headers = [("content-type", "text/plain"), ("authorization", "a"), ("x", "y")]
            request = HttpRequest(method, f"{server.url}/start", headers, body)
            answer = await host.send(access(), request)
            assert (answer.status, answer.body) == (200, then)
            last = server.requests[-1]
            assert last.all("content-type") == (["text/plain"] if status > 303 else [])
            assert (last.all("authorization"), last.all("x")) == (["a"], ["y"])
            assert last.all("referer") == []

    run(main)


def test_what_is_not_told_another_server() -> None:
    async def main() -> None:
        async with (
            http_server(answering(ok)) as other,
            http_server(redirecting(307, f"{other.url}/end")) as server,
            http_host() as host,
        ):
            names = ("cookie", "proxy-authorization", "host", "x-kept")
            url = server.url.replace("//", "//user:password@")
            await host.send(access(), HttpRequest("GET", url, [(n, "secret") for n in names]))
            (received,) = other.requests
            assert [name for name in names if received.all(name) == ["secret"]] == ["x-kept"]
            assert received.all("authorization") == []

    run(main)


def test_a_redirect_to_where_the_component_may_not_connect() -> None:
    async def main() -> None:
        async with (
            http_server(answering(ok)) as other,
            http_server(redirecting(302, f"{other.url}/end")) as server,
            http_host() as host,
        ):
            with pytest.raises(DestinationNotAllowedError, match=str(other.port)):
                await host.send(access(server.url), HttpRequest("GET", server.url))
            assert not other.connections

    run(main)


@pytest.mark.parametrize("location", ["http://c.spin.internal/", "http://self.alt/"])
def test_a_redirect_into_the_app(location: str) -> None:
    async def main() -> None:
        async with (
            http_server(redirecting(302, location)) as server,
            http_host(chain=unreachable) as host,
        ):
            with pytest.raises(RequestFailedError, match="no server redirects into the app"):
                await host.send(access(), HttpRequest("GET", server.url))

    run(main)


def test_a_redirect_to_a_blocked_network() -> None:
    async def main() -> None:
        config = 'outbound_networking.block_networks = ["169.254.0.0/16"]'
        location = "http://169.254.169.254/latest/meta-data"
        async with http_server(redirecting(302, location)) as server, http_host(config) as host:
            with pytest.raises(BlockedNetworkError):
                await host.send(access(), HttpRequest("GET", server.url))

    run(main)


@pytest.mark.parametrize("location", ["ftp://example.com/", "http://[", "mailto:a@b"])
def test_a_redirect_to_no_url_is_the_response(location: str) -> None:
    async def main() -> None:
        async with http_server(redirecting(302, location)) as server, http_host() as host:
            answer = await host.send(access(), HttpRequest("GET", server.url))
            assert (answer.status, answer.body) == (302, b"moved")

    run(main)


def test_ten_redirects_are_followed() -> None:
    def make(request: Received) -> bytes:
        left = int(request.target[1:])
        return response(302, b"", f"location: /{left - 1}") if left else response(200)

    async def main() -> None:
        async with http_server(answering(make)) as server, http_host() as host:
            assert (await host.send(access(), HttpRequest("GET", f"{server.url}/10"))).status == 200
            with pytest.raises(RequestFailedError, match="more than 10 redirects"):
                await host.send(access(), HttpRequest("GET", f"{server.url}/11"))
            assert server.connections == 1

    run(main)


def test_open_follows_no_redirect() -> None:
    async def main() -> None:
        async with (
            http_server(redirecting(302, "/end")) as server,
            http_host() as host,
            opened(host, HttpRequest("GET", server.url)) as answer,
        ):
            assert answer.status == 302

    run(main)


# Connections


def test_connections_are_kept() -> None:
    async def main() -> None:
        async with http_server(answering(ok)) as server, http_host() as host:
            for _ in range(5):
                await host.send(access(), HttpRequest("POST", server.url, [], b"x"))
            assert server.connections == 1

    run(main)


def test_connections_are_not_kept_where_the_configuration_says_so() -> None:
    async def main() -> None:
        async with (
            http_server(answering(ok)) as server,
            http_host("outbound_http.connection_pooling = false") as host,
        ):
            for _ in range(3):
                await host.send(access(), HttpRequest("GET", server.url))
            assert server.connections == 3
            await server.all_closed()

    run(main)


def test_no_connection_outlives_the_host() -> None:
    async def main() -> None:
        async with http_server(answering(ok)) as server:
            async with http_host() as host:
                await asyncio.gather(
                    *(host.send(access(), HttpRequest("GET", server.url)) for _ in range(10))
                )
                assert server.open
            await server.all_closed()

    run(main)


def test_a_kept_connection_that_the_server_closed() -> None:
    async def main() -> None:
        async with http_server(answering(ok)) as server, http_host() as host:
            for method in ("GET", "PUT", "POST"):
                await host.send(access(), HttpRequest(method, server.url, [], b""))
                for writer in server.open.values():
                    writer.close()
                await server.all_closed()
            assert server.connections == 3

    run(main)


def test_a_kept_connection_that_the_server_closes_when_asked() -> None:
    """Only an idempotent request is made again: it may have been served."""

    servers: list[HttpServer] = []

    async def once(request: Received, writer: asyncio.StreamWriter) -> bool | None:
        if any(r.connection == request.connection for r in servers[0].requests[:-1]):
            return False
        writer.write(response(200))
        return None

    async def main() -> None:
        async with http_server(once) as server, http_host() as host:
            servers.append(server)
            for _ in range(3):
                await host.send(access(), HttpRequest("PUT", server.url, [], b"body"))
            assert [r.body for r in server.requests] == [b"body"] * 5
            assert server.connections == 3
            with pytest.raises(RequestFailedError, match="the connection was closed"):
                await host.send(access(), HttpRequest("POST", server.url))

    run(main)


def test_at_most_so_many_connections() -> None:
    async def main() -> None:
        both, go = asyncio.Event(), asyncio.Event()

        async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
            if len(server.open) == 2:
                both.set()
            await go.wait()
            writer.write(response(200))

        async with (
            http_server(answer) as server,
            http_host("outbound_http.max_connections = 2") as host,
        ):
            sends = [
                asyncio.create_task(host.send(access(), HttpRequest("GET", server.url)))
                for _ in range(6)
            ]
            await both.wait()
            assert len(server.open) == 2
            go.set()
            await asyncio.gather(*sends)
            assert server.connections == 2

    run(main)


@pytest.mark.parametrize("when", ["head", "body"])
def test_a_request_that_is_cancelled(when: str) -> None:
    async def main() -> None:
        reached = asyncio.Event()

        async def hang(request: Received, writer: asyncio.StreamWriter) -> bool:
            if when == "body":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
                await writer.drain()
            reached.set()
            await request.gone()
            return False

        async with http_server(hang) as server, http_host() as host:
            task = asyncio.create_task(host.send(access(), HttpRequest("GET", server.url)))
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await server.all_closed()

    run(main)


# Bodies as they come


def test_bodies_are_not_waited_for() -> None:
    async def main() -> None:
        async def echo(request: Received, writer: asyncio.StreamWriter) -> None:
            assert request.body == b"onetwo"
            assert request.all("transfer-encoding") == ["chunked"]
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for part in (b"a", b"b"):
                writer.write(b"1\r\n%b\r\n" % part)
                await more.wait()
                more.clear()
            writer.write(b"0\r\n\r\n")

        async def body() -> AsyncIterator[bytes]:
            yield b"one"
            yield b"two"

        more = asyncio.Event()
        async with (
            http_server(echo) as server,
            http_host() as host,
            opened(host, HttpRequest("POST", server.url, [], body())) as answer,
        ):
            pieces = aiter(answer)
            assert await anext(pieces) == b"a"
            more.set()
            assert await anext(pieces) == b"b"
            more.set()
            assert await anext(pieces, None) is None
            answer.close()
            assert server.open  # it is kept

    run(main)


def test_a_response_that_is_left_unread() -> None:
    async def main() -> None:
        async def half(_: Received, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")

        async with http_server(half) as server, http_host() as host:
            async with opened(host, HttpRequest("GET", server.url)) as answer:
                assert await anext(answer) == b"half"
            await server.all_closed()

    run(main)


def test_a_request_body_that_fails() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        raise ValueError("the guest is gone")

    async def main() -> None:
        async with http_server(answering(ok)) as server, http_host() as host:
            with pytest.raises(RequestFailedError):
                await host.open(access(), HttpRequest("POST", server.url, [], body()))
            await server.all_closed()
            assert not server.requests

    run(main)


# Servers that are not well


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "the connection was closed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "the response ends too early"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
            "the response ends too early",
        ),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP response"),
        (b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", "no HTTP response"),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "the protocol"),
        (
            b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(2000)) + b"\r\n",
            "no HTTP response",
        ),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * (1 << 20) + b"\r\n\r\n", "no HTTP response"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "no HTTP response",
        ),
    ],
)
def test_answers_that_are_no_response(answer: bytes, message: str) -> None:
    async def reply(_: Received, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer)
        return False

    async def main() -> None:
        async with http_server(reply) as server, http_host() as host:
            url = f"{server.url}/path?token=secret"
            request = HttpRequest("POST", url, [("x", "secret")], b"secret")
            with pytest.raises(RequestFailedError) as caught:
                await host.send(access(), request)
            assert message in str(caught.value)
            assert server.url in str(caught.value)
            assert "secret" not in str(caught.value)

    run(main)


def test_no_server() -> None:
    async def main() -> None:
        address = "{}:{}".format(*free_address())
        async with http_host() as host:
            with pytest.raises(RequestFailedError) as caught:
                await host.send(access(), HttpRequest("GET", f"http://{address}/"))
            assert str(caught.value) == f"GET http://{address}: cannot connect: Connection refused"

    run(main)


def test_no_such_host() -> None:
    async def main() -> None:
        async with http_host() as host:
            with pytest.raises(RequestFailedError, match=r"cannot find the address of no\.invalid"):
                await host.send(access(), HttpRequest("GET", "http://no.invalid/"))

    run(main)


def test_a_server_that_never_shakes_hands(authority: Authority) -> None:
    async def main() -> None:
        done = asyncio.Event()

        async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await done.wait()
            writer.close()

        address = free_address()
        listener = await asyncio.start_server(silent, *address)
        client = HttpClient(Networks(), connect_seconds=0.2)
        context = TlsContexts(parse_runtime_config(""), {"SSL_CERT_FILE": str(authority.cert)})
        try:
            url = parse_url("https://{}:{}/".format(*address))
            with pytest.raises(RequestFailedError, match="no connection in time"):
                await client.exchange("GET", url, [], b"", context.default())
        finally:
            done.set()
            await client.close()
            listener.close()

    run(main)


# TLS


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with certificate_authority() as made:
        yield made


def test_https(authority: Authority) -> None:
    async def main() -> None:
        server_context = authority.issue("localhost", "DNS:localhost").server_context()
        async with (
            http_server(answering(ok), server_context) as server,
            http_host(env={"SSL_CERT_FILE": str(authority.cert)}) as host,
        ):
            # The name is in the certificate, the address is not.
            allowed = access("https://*:*")
            url = f"https://{server.host}:{server.port}/"
            with pytest.raises(
                RequestFailedError, match=r"certificate is not accepted: IP address"
            ):
                await host.send(allowed, HttpRequest("GET", url))
            with pytest.raises(DestinationNotAllowedError):
                await host.send(allowed, HttpRequest("GET", url.replace("https", "http")))

    run(main)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_certificate_and_who_signed_it(authority: Authority, trusted: bool) -> None:
    async def main() -> None:
        address = free_address()
        server_context = authority.issue("address", f"IP:{address[0]}").server_context()
        with certificate_authority() as other:
            cert = authority.cert if trusted else other.cert
            async with (
                http_server(answering(ok), server_context, address) as server,
                http_host(env={"SSL_CERT_FILE": str(cert)}) as host,
            ):
                request = HttpRequest("POST", server.url, [], b"x" * 100_000)
                if trusted:
                    for _ in range(3):
                        assert (await host.send(access(), request)).body == request.body
                    assert server.connections == 1
                else:
                    with pytest.raises(RequestFailedError, match="certificate is not accepted"):
                        await host.send(access(), request)

    run(main)


def test_plain_http_where_tls_is_expected(authority: Authority) -> None:
    async def main() -> None:
        def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(response(400))
            writer.close()

        host_name, port = free_address()
        listener = await asyncio.start_server(speak, host_name, port)
        async with http_host(env={"SSL_CERT_FILE": str(authority.cert)}) as host:
            with pytest.raises(RequestFailedError, match="the TLS handshake failed"):
                await host.send(access(), HttpRequest("GET", f"https://{host_name}:{port}/"))
        listener.close()

    run(main)


def test_a_component_has_a_certificate_of_its_own(authority: Authority, tmp_path: Path) -> None:
    async def main() -> None:
        address = free_address()
        certificate = authority.issue("mutual", f"IP:{address[0]}")
        own = authority.issue("client")
        config = f"""[[client_tls]]
            component_ids = ["c"]
            hosts = ["{address[0]}"]
            ca_roots_file = "{authority.cert}"
            client_cert_file = "{own.cert}"
            client_private_key_file = "{own.key}"
            """
        demanding = certificate.server_context(authority.cert)
        async with http_server(answering(ok), demanding, address) as server:
            async with http_host(config) as host:
                assert (await host.send(access(), HttpRequest("GET", server.url))).status == 200
            async with http_host(env={"SSL_CERT_FILE": str(authority.cert)}) as host:
                with pytest.raises(RequestFailedError):
                    await host.send(access(), HttpRequest("GET", server.url))

    run(main)


# The app's own components


@pytest.mark.parametrize(
    ("url", "component", "name", "target"),
    [
        ("http://back.spin.internal/a?b", "back", "back.spin.internal", "/a?b"),
        ("http://Back.Spin.Internal:81", "back", "back.spin.internal:81", "/"),
        ("/own?x", None, None, "/own?x"),
        ("http://self.alt/own", None, None, "/own"),
    ],
)
def test_requests_that_stay_in_the_app(
    url: str, component: str | None, name: str | None, target: str
) -> None:
    asked: list[ChainedRequest] = []

    async def chain(request: ChainedRequest) -> ChainedResponse:
        asked.append(request)
        return ChainedResponse(302, [(b"location", b"/x"), (b"x", "é".encode())], b"body")

    async def main() -> None:
        async with http_host(chain=chain) as host:
            allowed = access("http://back.spin.internal:*", "http://self")
            request = HttpRequest("POST", url, [("Host", "h"), ("te", "x"), ("a", "b")], b"in")
            answer = await host.send(allowed, request, depth=3)
            assert answer == HttpResponse(302, [("location", "/x"), ("x", "é")], b"body")
        headers = [("a", "b"), ("accept-encoding", "gzip")]
        assert asked == [ChainedRequest(component, "POST", name, target, headers, b"in", 4)]

    run(main)


def test_components_that_call_each_other_for_ever() -> None:
    async def chain(request: ChainedRequest) -> ChainedResponse:
        url = HttpRequest("GET", "http://c.spin.internal/")
        answer = await hosts[0].open(access(), url, request.depth)
        assert isinstance(answer, ChainedResponse)
        return answer

    hosts: list[HttpHost] = []

    async def main() -> None:
        async with http_host(chain=chain) as host:
            hosts.append(host)
            with pytest.raises(RequestFailedError, match=f"{MAX_DEPTH} components wait"):
                await host.send(access(), HttpRequest("GET", "http://c.spin.internal/"))

    run(main)


def test_an_app_without_http_trigger() -> None:
    async def main() -> None:
        async with http_host() as host:
            with pytest.raises(RequestFailedError, match="no HTTP trigger"):
                await host.send(access(), HttpRequest("GET", "http://c.spin.internal/"))

    run(main)
