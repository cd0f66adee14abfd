"""``http-client``, called by guests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from containerd_shim_slight_v1.abi.http_types import METHODS
from containerd_shim_slight_v1.capabilities.http_client import client
from containerd_shim_slight_v1.capabilities.http_client.allowed import (
    AllowedHosts,
    AllowedHostsError,
    normal_host,
)
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import connected, fetch, head
from containerd_shimkit.testing.servers.http import (
    HttpServer,
    Received,
    answering,
    http_server,
    response,
)

Image = Any  # of conftest.py
HTTP = 'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "api"\n'
CLIENT = f'{HTTP}[[capability]]\nresource = "http-client"\nname = "client"\n'


@pytest.fixture
def app(image: Image) -> Image:
    image.guest("client")
    image.slightfile(CLIENT)
    return image


async def ask(
    port: int, url: str, method: str = "GET", body: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    answer = await fetch(
        *(port, f"/{METHODS[method]}"),
        method="PUT",
        body=body,
        headers=[("x-url", url), *((n.replace("_", "-"), v) for n, v in headers.items())],
    )
    return answer.status, answer.body


@pytest.mark.parametrize("method", [name for name in METHODS if name != "HEAD"])
def test_request_and_response(app: Image, method: str) -> None:
    async def main(port: int) -> None:
        answer = answering(lambda request: response(201, request.body[::-1], "x-one: 1"))
        async with http_server(answer) as server:
            url = f"{server.url}/a%20b?c=d#fragment"
            assert await ask(port, url, method, b"\0body\xff", x_h="value") == (201, b"\xffydob\0")
            (request,) = server.requests
            assert (request.method, request.target) == (method, "/a%20b?c=d")
            assert request.all("x-h") == ["value"]
            assert request.all("user-agent") == request.all("content-type") == []

    app.run(main)


def test_connections_are_kept(app: Image) -> None:
    async def main(port: int) -> None:
        async with http_server(answering(lambda _: response(200, b"x"))) as server:
            for _ in range(5):
                assert await ask(port, server.url) == (200, b"x")
            assert server.connections == 1

    app.run(main)


def test_redirects(app: Image) -> None:
    async def main(port: int) -> None:
        async with http_server(answering(lambda _: response(200, b"other"))) as other:

            def answer(request: Received) -> bytes:
                if request.target == "/end":
                    return response(200, b"end")
                place = {"/away": f"{other.url}/there", "/loop": "/loop"}.get(request.target)
                return response(
                    int(request.target[1:4]) if not place else 302,
                    b"",
                    f"location: {place or '/end'}",
                )

            async with http_server(answering(answer)) as server:
                assert await ask(port, f"{server.url}/302", "POST", b"body") == (200, b"end")
                assert await ask(port, f"{server.url}/307", "POST", b"body") == (200, b"end")
                first, second, third, fourth = server.requests
                assert (first.method, second.method, second.body) == ("POST", "GET", b"")
                assert (third.method, fourth.method, fourth.body) == ("POST", "POST", b"body")
                away = f"{server.url}/away"
                assert await ask(port, away, authorization="secret") == (200, b"other")
                assert server.requests[-1].all("authorization") == ["secret"]
                assert other.requests[-1].all("authorization") == []
                status, text = await ask(port, f"{server.url}/loop")
                assert (status, text) == (418, f"4 {server.url}: more than 10 redirects".encode())

    app.run(main)


@pytest.mark.parametrize(
    "url", ["", "nothing", "/path", "ftp://host/", "http://", "http://a:b:c/", "http://h:99999/"]
)
def test_url_that_is_none(app: Image, url: str) -> None:
    async def main(port: int) -> None:
        status, text = await ask(port, url)
        assert (status, text[:2]) == (418, b"0 "), text

    app.run(main)


def test_server_that_is_down(app: Image) -> None:
    async def main(port: int) -> None:
        origin = "http://{}:{}".format(*free_address())
        status, text = await ask(port, origin.replace("//", "//user:s3cret@"))
        assert (status, text) == (
            418,
            f"4 GET {origin}: cannot connect: Connection refused".encode(),
        )

    app.run(main)


@pytest.mark.parametrize(
    "data", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", b""]
)
def test_answer_that_is_none(app: Image, data: bytes) -> None:
    async def main(port: int) -> None:
        async def answer(_: Received, writer: asyncio.StreamWriter) -> bool:
            writer.write(data)
            return False

        async with http_server(answer) as server:
            status, text = await ask(port, server.url)
            assert (status, text[:2]) == (418, b"2 "), text

    app.run(main)


def test_too_large_a_response(app: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_BODY_BYTES", 1000)

    async def main(port: int) -> None:
        async with http_server(answering(lambda _: response(200, bytes(1001)))) as server:
            status, text = await ask(port, server.url)
            reason = f"4 {server.url}: the body has more than 1000 bytes"
            assert (status, text) == (418, reason.encode())

    app.run(main)


def test_guest_that_is_cut_off_leaves_no_connection(app: Image) -> None:
    async def main(port: int) -> None:
        async def answer(request: Received, _: asyncio.StreamWriter) -> None:
            await request.gone()

        async with http_server(answer) as server:
            assert (await ask(port, server.url))[0] == 504
            await server.all_closed()

    app.run(main, SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS="0.5")


def test_client_that_leaves(app: Image) -> None:
    """Its guest is ended, with its request, and gives its place back."""

    async def main(port: int) -> None:
        asked = asyncio.Event()

        async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
            if request.target == "/never":
                asked.set()
                await request.gone()
            else:
                writer.write(response(200, b"x"))

        async with http_server(answer) as server, asyncio.timeout(30):
            async with connected(port) as connection:
                await connection.send(head("PUT", "/0", [("x-url", f"{server.url}/never")]))
                await asked.wait()
                assert (await ask(port, server.url))[0] == 503
                connection.abort()
            while (found := await ask(port, server.url))[0] == 503:
                pass
            assert found == (200, b"x")

    settings = {"SLIGHT_MAX_INSTANCE_COUNT": "1", "SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS": "600"}
    app.run(main, **settings)


def test_large_bodies(app: Image) -> None:
    async def main(port: int) -> None:
        body = bytes(range(256)) * (100 << 10)  # 25 MiB
        answer = answering(lambda request: response(200, request.body))
        async with http_server(answer) as server, asyncio.timeout(60):
            answers = await asyncio.gather(*(ask(port, server.url, "POST", body) for _ in range(3)))
            assert [(status, found == body) for status, found in answers] == [(200, True)] * 3

    app.run(main)


def test_response_without_an_end(app: Image) -> None:
    """It is cut off at its limit, whoever sends it, in pieces of any size."""

    async def main(port: int) -> None:
        async def answer(_: Received, writer: asyncio.StreamWriter) -> bool:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
            while True:
                writer.write(piece)
                await writer.drain()

        async with http_server(answer) as server, asyncio.timeout(60):
            status, text = await ask(port, server.url)
            reason = f"4 {server.url}: the body has more than {64 << 20} bytes"
            assert (status, text) == (418, reason.encode())
            await server.all_closed()

    app.run(main)


@pytest.mark.parametrize(
    "headers",
    [
        b"x: " + bytes(b"y" * (65 << 10)),
        b"\r\n".join(b"x-%d: y" % n for n in range(1001)),
    ],
)
def test_response_with_too_many_headers(app: Image, headers: bytes) -> None:
    async def main(port: int) -> None:
        async def answer(_: Received, writer: asyncio.StreamWriter) -> bool:
            writer.write(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\ncontent-length: 0\r\n\r\n")
            return False

        async with http_server(answer) as server:
            status, text = await ask(port, server.url)
            assert (status, text[:2]) == (418, b"2 "), text

    app.run(main)


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("other?a=b", "/dir/other?a=b"),
        ("../up", "/up"),
        ("?q", "/dir/from?q"),
        ("//{host}/there", "/there"),
        ("/a b", "/a%20b"),
        ("", None),
        ("mailto:somebody", None),
        ("file:///etc/passwd", None),
        ("http://", None),
        ("http://[", None),
    ],
)
def test_place_of_a_redirect(app: Image, place: str, target: str | None) -> None:
    async def main(port: int) -> None:
        def answer(request: Received) -> bytes:
            if request.target != "/dir/from":
                return response(200, request.target.encode())
            return response(303, b"", f"location: {place.format(host=host)}")

        async with http_server(answering(answer)) as server:
            host = server.url.removeprefix("http://")
            status, text = await ask(port, f"{server.url}/dir/from")
            if target is not None:
                assert (status, text.decode()) == (200, target)
            else:
                assert status == 418
                assert text[:2] in (b"0 ", b"2 ", b"4 "), text

    app.run(main)


def test_many_wait_at_once(app: Image) -> None:
    async def main(port: int) -> None:
        together = asyncio.Barrier(200)

        async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
            await together.wait()
            writer.write(response(200, b"x"))

        async with http_server(answer) as server, asyncio.timeout(60):
            asked = (ask(port, server.url) for _ in range(200))
            assert await asyncio.gather(*asked) == [(200, b"x")] * 200

    app.run(main, SLIGHT_MAX_INSTANCE_COUNT="200")


# Who may be asked


async def is_allowed(port: int, server: HttpServer) -> bool:
    status, text = await ask(port, server.url)
    assert status == 200 or text.startswith(f"4 {server.url} is not among".encode()), text
    return status == 200


@pytest.mark.parametrize(
    ("slightfile", "environment", "allowed"),
    [
        (None, None, True),
        ("{0}", None, True),
        ("other, http://{0}:{1}", None, True),
        ("*", "{0}:{1}", True),
        ("", None, False),
        ("https://{0}", None, False),
        ("{0}:1", None, False),
        (None, "", False),
        ("{0}", "other", False),
        ("other", "{0}", False),
    ],
)
def test_allowed_hosts(
    app: Image, slightfile: str | None, environment: str | None, allowed: bool
) -> None:
    host, own = free_address()
    if slightfile is not None:
        text = slightfile.format(host, own)
        app.slightfile(f'{CLIENT}[capability.configs]\nALLOWED_HOSTS = "{text}"\n')
    env = {}
    if environment is not None:
        env["SLIGHT_HTTP_CLIENT_ALLOWED_HOSTS"] = environment.format(host, own)

    async def main(port: int) -> None:
        answer = answering(lambda _: response(200))
        async with http_server(answer, address=(host, own)) as server:
            assert await is_allowed(port, server) is allowed

    app.run(main, **env)


def test_redirect_to_who_may_not_be_asked(app: Image) -> None:
    host, own = free_address()
    app.slightfile(f'{CLIENT}[capability.configs]\nALLOWED_HOSTS = "{host}:{own}"\n')

    async def main(port: int) -> None:
        async with http_server(answering(lambda _: response(200))) as other:
            answer = answering(lambda _: response(302, b"", f"location: {other.url}"))
            async with http_server(answer, address=(host, own)) as server:
                status, text = await ask(port, server.url)
                assert (status, text.split(b" ")[1]) == (418, other.url.encode())
                assert other.requests == []

    app.run(main)


def test_slightfile_without_a_client(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    image.guest("client")
    image.slightfile(HTTP)

    async def main(port: int) -> None:
        text = b"4 slightfile.toml has no http-client capability"
        assert await ask(port, "http://127.0.0.1/") == (418, text)

    image.run(main)
    assert "http-client.request: slightfile.toml has no" in caplog.text


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("Example.COM", "https://example.com:443", "https://www.example.com:443"),
        ("*.example.com", "https://a.b.example.com:443", "https://example.com:443"),
        ("[::1]:80", "http://[::1]:80", "http://[::1]:81"),
        ("127.0.0.1", "http://[::ffff:127.0.0.1]:80", "http://127.0.0.2:80"),
        ("https://*:8443", "https://a:8443", "http://a:8443"),
    ],
)
def test_entries(text: str, yes: str, no: str) -> None:
    allowed = AllowedHosts(text)
    for url, expected in ((yes, True), (no, False)):
        scheme, _, rest = url.partition("://")
        host, _, port = rest.rpartition(":")
        assert allowed.allows(scheme, normal_host(host), int(port)) is expected


@pytest.mark.parametrize("text", ["ftp://host", "a b", "host:port", "host/path", "*a", "[::1"])
def test_entry_that_is_none(text: str) -> None:
    with pytest.raises(AllowedHostsError):
        AllowedHosts(text)
