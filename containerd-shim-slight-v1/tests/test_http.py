"""The HTTP server as clients and guests see it, with real guests."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import pytest

from containerd_shimkit.errors import ShimError
from containerd_shimkit.testing.http import connected, fetch, head

Image = Any  # of conftest.py
CORS = [
    f"access-control-{n}"
    for n in ("allow-origin", "allow-methods", "allow-headers", "expose-headers")
]


# What a handler gets and gives


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
@pytest.mark.parametrize("size", [0, 1, 100_000, 5 << 20])
def test_request_comes_back(image: Image, method: str, size: int) -> None:
    body = (bytes(range(256)) * (size // 256 + 1))[:size]

    async def main(port: int) -> None:
        headers: list[tuple[str, str | bytes]] = [("X-Odd", "Größe".encode()), ("x-odd", "two")]
        response = await fetch(port, "/echo?a=b%20c", method=method, body=body, headers=headers)
        assert response.status == 200
        assert response.body == body
        code = ("GET", "POST", "PUT", "DELETE").index(method)
        assert response["x-line"] == f"{code} /echo?a=b%20c"
        assert response["host"] == "test"
        assert [v for n, v in response.headers if n == "x-odd"] == [
            "Größe".encode().decode("latin-1"),
            "two",
        ]
        assert [v for n, v in response.headers if n == "set-cookie"] == ["a=1", "b=2"]
        assert [response[name] for name in CORS] == ["*"] * 4
        assert response["content-length"] == str(size)

    image.run(main)


def test_header_that_is_no_utf8_is_replaced(image: Image) -> None:
    async def main(port: int) -> None:
        response = await fetch(port, "/echo", headers=[("x-odd", b"a\xffb")])
        assert response["x-odd"].encode("latin-1").decode() == "a\ufffdb"

    image.run(main)


def test_what_a_guest_says_of_framing_does_not_count(image: Image) -> None:
    async def main(port: int) -> None:
        async with connected(port) as connection:
            more = [("connection", "keep-alive"), ("content-length", "3")]
            await connection.send(head("POST", "/echo", more) + b"abc" + head("GET", "/counter"))
            assert (await connection.response()).body == b"abc"
            assert (await connection.response()).status == 200

    image.run(main)


def test_parameters(image: Image) -> None:
    async def main(port: int) -> None:
        assert (await fetch(port, "/params/a%20b/c/d%2Fe/")).text == "first=a b\n*=c/d/e\n"

    image.run(main)


def test_each_request_has_a_new_instance(image: Image) -> None:
    async def main(port: int) -> None:
        for _ in range(3):
            assert (await fetch(port, "/counter")).text == "1"

    image.run(main)


@pytest.mark.parametrize(
    ("code", "status"), [(201, 201), (404, 404), (599, 599), (0, 500), (101, 500), (600, 500)]
)
def test_status(image: Image, code: int, status: int) -> None:
    async def main(port: int) -> None:
        response = await fetch(port, f"/status/{code}")
        assert (response.status, response.body) == (status, b"body")

    image.run(main)


def test_status_without_body(image: Image) -> None:
    async def main(port: int) -> None:
        async with connected(port) as connection:
            for _ in range(2):
                await connection.send(head("GET", "/status/204"))
                response = await connection.response()
                assert "content-length" not in response

    image.run(main)


# What no handler answers


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nothing"), ("PATCH", "/echo"), ("HEAD", "/echo"), ("GET", "/echo/%FF")],
)
def test_no_route(image: Image, method: str, path: str) -> None:
    async def main(port: int) -> None:
        response = await fetch(port, path, method=method)
        assert response.status == 404
        assert response.body == (b"" if method == "HEAD" else b"Not Found")
        assert response["access-control-allow-origin"] == "*"

    image.run(main)


def test_options(image: Image) -> None:
    async def main(port: int) -> None:
        response = await fetch(port, "/anything", method="OPTIONS")
        assert response.status == 204
        assert [response[name] for name in CORS] == ["*"] * 4

    image.run(main)


def test_health(image: Image) -> None:
    async def main(port: int) -> None:
        response = await fetch(port, "/.well-known/slight/health")
        assert (response.status, response.body) == (200, b"OK")

    image.run(main)


# Errors


@pytest.mark.parametrize(
    ("what", "status", "reason"),
    [
        ("trap", 500, "GET /fail/trap failed: "),
        ("exit", 500, "GET /fail/exit failed: the guest exited with status 3"),
        ("header", 500, "GET /fail/header failed: the guest's response has a bad header: b'x-a'"),
        ("pointer", 500, "GET /fail/pointer failed: the guest named 100 bytes at 0x7fff0000"),
        ("case", 500, "GET /fail/case failed: the guest passes case 77 of 5"),
        ("tag", 500, "GET /fail/tag failed: the guest returns a result that is neither ok nor"),
        ("timeout", 504, "the handler returned an error: timeout-error: too late"),
        ("unexpected", 500, "the handler returned an error: unexpected-error: a secret reason"),
        ("404", 404, "the handler returned an error: status-error: 404"),
        ("200", 500, "the handler returned an error: status-error: 200"),
    ],
)
def test_handler_that_fails(
    image: Image, what: str, status: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(port: int) -> None:
        response = await fetch(port, f"/fail/{what}")
        assert response.status == status
        assert "secret" not in response.text
        assert response["access-control-allow-origin"] == "*"
        assert (await fetch(port, "/counter")).status == 200

    image.run(main)
    assert reason in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing", "exports no function 'not-exported'"),
        ("/other", "exports no function 'canonical-abi-free'"),
    ],
)
def test_handler_that_is_not_exported(
    image: Image, path: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(port: int) -> None:
        assert (await fetch(port, path)).status == 500

    image.run(main)
    assert f"/app.wasm: {reason}: requests for it are answered 500" in caplog.text
    assert f"GET {path} failed: {reason}" in caplog.text


def test_too_large_a_body(image: Image) -> None:
    async def main(port: int) -> None:
        response = await fetch(port, "/echo", method="POST", body=b"x" * 11)
        assert (response.status, response.text) == (413, "the body has 11 bytes, more than 10\n")
        assert (await fetch(port, "/echo", method="POST", body=b"x" * 10)).status == 200

    image.run(main, SLIGHT_HTTP_MAX_BODY_BYTES="10")


@pytest.mark.parametrize("path", ["/fail/forever", "/sleep/60000"])
def test_handler_that_takes_too_long(
    image: Image, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(port: int) -> None:
        slow = asyncio.create_task(fetch(port, path))
        assert (await fetch(port, "/counter")).status == 200
        assert (await slow).status == 504

    image.run(main, SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS="0.5")
    assert f"GET {path} took more than 0.5 s" in caplog.text


@pytest.mark.parametrize("path", ["/fail/forever", "/sleep/600000"])
def test_guest_whose_client_has_gone_is_ended(
    image: Image, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def main(port: int) -> None:
        async with connected(port) as connection:
            await connection.send(head("GET", path))
            async with asyncio.timeout(30):
                while (await fetch(port, "/counter")).status != 503:
                    pass
            connection.writer.close()
            async with asyncio.timeout(30):
                while (await fetch(port, "/counter")).status != 200:
                    pass

    settings = {"SLIGHT_MAX_INSTANCE_COUNT": "1", "SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS": "600"}
    image.run(main, **settings)
    assert f"GET {path} is given up: the client has gone" in caplog.text


def test_as_many_requests_at_once_as_there_are_places(image: Image) -> None:
    async def main(port: int) -> None:
        async with connected(port) as first, connected(port) as second:
            await first.send(head("GET", "/sleep/500"))
            await second.send(head("GET", "/sleep/501"))
            # Connections are served in the order of their requests.
            assert (await fetch(port, "/counter")).status == 503
            assert (await first.response()).text == "500"
            assert (await second.response()).text == "501"
        assert (await fetch(port, "/counter")).status == 200

    image.run(main, SLIGHT_MAX_INSTANCE_COUNT="2")


def test_200_requests_wait_together(image: Image) -> None:
    async def main(port: int) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        answers = await asyncio.gather(*(fetch(port, "/sleep/1000") for _ in range(200)))
        assert {answer.text for answer in answers} == {"1000"}
        assert loop.time() - start < 20

    image.run(main, SLIGHT_MAX_INSTANCE_COUNT="200")


def test_requests_in_flight_end_when_the_app_stops(image: Image) -> None:
    async def main(port: int) -> None:
        async with connected(port) as connection:
            await connection.send(head("GET", "/sleep/500"))
            assert (await fetch(port, "/counter")).status == 200
            image.stop.set()
            assert (await connection.response()).text == "500"

    image.run(main)


def test_drain_ends_at_its_limit(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    async def main(port: int) -> None:
        async with connected(port) as connection:
            await connection.send(head("GET", "/sleep/60000"))
            assert (await fetch(port, "/counter")).status == 200
            image.stop.set()
            response = await connection.response()
            assert (response.status, response.text) == (503, "the app stops\n")

    image.run(main, SLIGHT_SHUTDOWN_TIMEOUT_SECONDS="0.2")
    assert "GET /sleep/60000 is cut off: the app stops" in caplog.text


# Setting the app up


def test_what_the_guest_prints(image: Image) -> None:
    async def main(port: int) -> None:
        assert (await fetch(port, "/counter")).status == 200

    image.run(main, SETUP="say")
    assert (image.stdout, image.stderr) == ("set up\n", "on stderr\n")


def test_several_servers_with_routes_of_their_own(image: Image) -> None:
    async def main(port: int) -> None:
        other = image.sockets[1].getsockname()[1]
        assert (await fetch(port, "/counter")).status == 200
        assert (await fetch(other, "/counter")).status == 404
        assert (await fetch(other, "/base/hello")).status == 200
        assert (await fetch(other, "/hello")).status == 404

    image.run(main, SETUP="two")


@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        ("error", "on-server-init returned an error: no luck today"),
        ("trap", "on-server-init failed: "),
        ("nothing", "on-server-init has started no server"),
        ("stop", "on-server-init has started no server"),
        ("forever", "on-server-init took more than 0.3 s"),
    ],
)
def test_app_that_cannot_be_set_up(image: Image, setup: str, reason: str) -> None:
    with pytest.raises(ShimError) as caught:
        image.run_to_the_end(SETUP=setup, SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS="0.3")
    assert str(caught.value).startswith(f"/app.wasm: {reason}")
    assert caught.value.exit_code == 69
    for sock in image.sockets:
        assert sock.fileno() == -1


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("example.com:80", "'example.com:80' is not an IP address and port, like 0.0.0.0:3000"),
        ("0.0.0.0", "'0.0.0.0' is not an IP address and port"),
        ("192.0.2.1:80", "cannot listen on 192.0.2.1:80: Cannot assign requested address"),
    ],
)
def test_address_that_cannot_be_had(image: Image, address: str, reason: str) -> None:
    with pytest.raises(ShimError) as caught:
        image.run_to_the_end(ADDRESS=address, SLIGHT_HTTP_LISTEN_ADDR="")
    assert f"on-server-init returned an error: {reason}" in str(caught.value)


def test_address_in_use(image: Image) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ShimError, match=f"cannot listen on {address}: Address already in use"):
            image.run_to_the_end(SLIGHT_HTTP_LISTEN_ADDR=address)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
def test_address_of_the_guest(image: Image, address: str) -> None:
    async def main(port: int) -> None:
        host = "::1" if "::1" in address else "127.0.0.1"
        async with connected(port, host) as connection:
            await connection.send(head("GET", "/counter"))
            assert (await connection.response()).status == 200

    image.run(main, ADDRESS=address, SLIGHT_HTTP_LISTEN_ADDR="")


def test_servers_are_not_started_by_requests(image: Image) -> None:
    async def main(port: int) -> None:
        response = await fetch(port, "/serve")
        assert response.text.startswith("4 servers are started while the app is set up")

    image.run(main)


def test_nothing_is_said_of_requests_that_are_answered(
    image: Image, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(port: int) -> None:
        await fetch(port, "/echo")
        await fetch(port, "/nothing")

    with caplog.at_level(logging.INFO):
        image.run(main)
    assert [r.message for r in caplog.records if "requests for it" not in r.message] == []
