"""The server as clients and workers see it, with real guests."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from typing import Any

import pytest

from containerd_shim_wws_v1 import contract
from containerd_shimkit.testing.http import Response, connected, fetch, head

Image = Any  # of conftest.py
FAILED = b"<p>There was an error running this function</p>"


async def put_out(port: int, output: str | dict[str, Any]) -> Response:
    """Have the worker print this, and return what is made of it."""
    text = output if isinstance(output, str) else json.dumps(output)
    return await fetch(port, "/probe?mode=output", method="POST", body=text.encode())


# What a worker gets


def test_request(image: Image) -> None:
    image.worker("api/[user]/[...rest].wasm")

    async def main(port: int) -> None:
        response = await fetch(
            port,
            "//api/a%20b//c/d%2Fe/?x=1&y=%20",
            method="PUT",
            body='Größe "\\\n'.encode(),
            headers=[("X-One", "1"), ("Accept", "*/*")],
            host="example.com:8080",
        )
        assert response.status == 200
        assert json.loads(response.body) == {
            "url": "http://example.com:8080/api/a%20b/c/d%2Fe?x=1&y=%20",
            "method": "PUT",
            "headers": {
                "host": "example.com:8080",
                "x-one": "1",
                "accept": "*/*",
                "content-length": "11",
            },
            "body": 'Größe "\\\n',
            "kv": {},
            "params": {"user": "a b", "rest": "c/d%2Fe"},
        }

    image.run(main)


def test_old_form_of_url(image: Image) -> None:
    image.worker()

    async def main(port: int) -> None:
        request = json.loads((await fetch(port, "/probe/?a=b")).body)
        assert request["url"] == "/probe?a=b"

    image.run(main, WWS_REQUEST_URL="path")


@pytest.mark.parametrize(
    ("headers", "url"),
    [
        ([("x-forwarded-proto", "https")], "https://test/probe"),
        ([("x-forwarded-proto", "gopher")], "http://test/probe"),
        ([("x-forwarded-host", "a.example, b.example")], "http://a.example/probe"),
        ([("forwarded", 'for=1;host="f.example";proto=https, for=2')], "https://f.example/probe"),
        ([("x-forwarded-host", "a b")], "/probe"),
    ],
)
def test_url_behind_a_proxy(image: Image, headers: list[tuple[str, str]], url: str) -> None:
    image.worker()

    async def main(port: int) -> None:
        request = json.loads((await fetch(port, "/probe", headers=headers)).body)
        assert request["url"] == url

    image.run(main)


def test_repeated_headers(image: Image) -> None:
    image.worker()

    async def main(port: int) -> None:
        headers = [("x-odd", "1"), ("x-odd", "2")]
        request = json.loads((await fetch(port, "/probe", headers=headers)).body)
        assert request["headers"]["x-odd"] == "2"
        assert request["headers_list"] == [["host", "test"], ["x-odd", "1"], ["x-odd", "2"]]

    image.run(main)


def test_body_that_is_no_utf8_comes_in_base64(image: Image) -> None:
    image.worker()

    async def main(port: int) -> None:
        body = bytes(range(256))
        request = json.loads((await fetch(port, "/probe", method="POST", body=body)).body)
        assert request["base64"] is True
        assert base64.b64decode(request["body"]) == body

    image.run(main)


def test_large_bodies(image: Image) -> None:
    image.worker()

    async def main(port: int) -> None:
        body = b"x" * (5 << 20)
        response = await fetch(port, "/probe", method="POST", body=body)
        assert json.loads(response.body)["body"].encode() == body
        assert len((await fetch(port, "/probe?mode=big&bytes=9000000")).body) == 9_000_000

    image.run(main)


def test_variables(image: Image) -> None:
    image.worker(
        config='version = "1"\n[vars]\nA = "1"\nB = "$FROM_POD"\nC = "$MISSING"\nD = "$no env"\n'
    )

    async def main(port: int) -> None:
        lines = (await fetch(port, "/probe?mode=environment")).text.splitlines()
        assert lines == ["- probe.wasm", "A=1", "B=secret", "C=", "D=$no env"]

    image.run(main, FROM_POD="secret", OTHER="not for guests")


def test_folders(image: Image) -> None:
    image.file("data/hello.txt", "hello")
    image.file("secret.txt", "secret")
    (image.root / "data" / "link").symlink_to("../secret.txt")
    folder = 'version = "1"\n[[folders]]\nfrom = "../data"\nto = "/mnt"\n'
    image.worker("api/probe.wasm", config=folder)

    async def main(port: int) -> None:
        async def read(path: str) -> str:
            return (await fetch(port, f"/api/probe?mode=read&path={path}")).text

        assert await read("/mnt/hello.txt") == "hello"
        assert await read("/secret.txt") != "secret"
        assert await read("/mnt/link") != "secret"
        assert await read("/mnt/../secret.txt") != "secret"
        assert (await fetch(port, "/api/probe?mode=write&path=/mnt/new")).text == "7 bytes, 0"
        assert (image.root / "data" / "new").read_text() == "written"

    image.run(main)


def test_worker_in_rust(image: Image) -> None:
    image.worker("rust.wasm", "rust_worker")

    async def main(port: int) -> None:
        assert (await fetch(port, "/rust?a=b")).text.startswith("rust a=b ")
        assert (await fetch(port, "/rust?panic")).status == 500

    image.run(main)
    assert "panicked at 'as told'" in image.stderr


# What a worker gives


@pytest.mark.parametrize(
    ("output", "status", "headers", "body"),
    [
        ({"data": "x", "headers": {}, "status": 200, "kv": {}}, 200, {}, b"x"),
        ({"data": "x"}, 200, {"content-type": "text/html"}, b"x"),
        ({"data": "x", "status": 404}, 404, {}, b"x"),
        ({"data": "", "status": 204}, 204, {}, b""),
        ({"data": "x", "status": 99}, 200, {}, b"x"),
        ({"data": "x", "status": 1000}, 200, {}, b"x"),
        ({"data": "x", "status": 101}, 500, {}, b"x"),
        ({"data": "x", "status": 777}, 500, {}, b"x"),
        ({"data": "x", "status": 65536}, 500, {}, FAILED),
        ({"data": "x", "status": -1}, 500, {}, FAILED),
        ({"data": "x", "status": "200"}, 500, {}, FAILED),
        ({"data": "x", "status": True}, 500, {}, FAILED),
        ({"data": "x", "headers": {"X_A": "1"}}, 200, {"x-a": "1"}, b"x"),
        ({"data": "x", "headers": {"Content-Type": "a/b"}}, 200, {"content-type": "a/b"}, b"x"),
        ({"data": "x", "headers": {"content-length": "9"}}, 200, {"content-length": "1"}, b"x"),
        ({"data": "x", "headers": {"a b": "1"}}, 500, {}, FAILED),
        ({"data": "x", "headers": {"a": "1\r\nb: 2"}}, 500, {}, FAILED),
        ({"data": "x", "headers": {"a": 1}}, 500, {}, FAILED),
        ({"data": "x", "headers": [["a", "1"]]}, 500, {}, FAILED),
        ({"data": "x", "headers": {f"x-{n}": "" for n in range(1001)}}, 500, {}, FAILED),
        ({"data": "eA==", "base64": True}, 200, {}, b"x"),
        ({"data": "e!", "base64": True}, 503, {}, b"There was an error running the worker"),
        ({"data": "Gr\u00f6\u00dfe"}, 200, {}, "Größe".encode()),
        ('{"data": "\\ud800"}', 503, {}, b"There was an error running the worker"),
        ({"data": 1}, 500, {}, FAILED),
        ({"data": None}, 500, {}, FAILED),
        ({"status": 200}, 500, {}, FAILED),
        ({"data": "x", "kv": {"a": 1}}, 500, {}, FAILED),
        ({"data": "x", "kv": []}, 500, {}, FAILED),
        ({"data": "x", "more": [1, {"a": None}]}, 200, {}, b"x"),
        ("", 500, {}, FAILED),
        ("Hello!", 500, {}, FAILED),
        ('{"data": "x"} {}', 500, {}, FAILED),
        ("[]", 500, {}, FAILED),
        ("[" * 100_000, 500, {}, FAILED),
        ('{"data": "x", "status": NaN}', 500, {}, FAILED),
    ],
)
def test_response(
    image: Image, output: str | dict[str, Any], status: int, headers: dict[str, str], body: bytes
) -> None:
    image.worker()

    async def main(port: int) -> None:
        response = await put_out(port, output)
        assert (response.status, response.body) == (status, body)
        for name, value in headers.items():
            assert response[name] == value
        assert (await put_out(port, {"data": "still there"})).text == "still there"

    image.run(main)


def test_repeated_response_headers(image: Image) -> None:
    image.worker()

    async def main(port: int) -> None:
        response = await put_out(port, {"data": "", "headers": {"set-cookie": ["a=1", "b=2"]}})
        assert [v for n, v in response.headers if n == "set-cookie"] == ["a=1", "b=2"]

    image.run(main)


@pytest.mark.parametrize(
    ("origins", "headers", "allowed"),
    [
        ("", [], None),
        ("*", [], "*"),
        ("https://a.example", [], "https://a.example"),
        (
            "https://a.example,https://b.example",
            [("origin", "https://b.example")],
            "https://b.example",
        ),
        ("https://a.example,https://b.example", [("origin", "https://c.example")], None),
        ("https://a.example,*", [("origin", "https://c.example")], "*"),
    ],
)
def test_cors(
    image: Image, origins: str, headers: list[tuple[str, str]], allowed: str | None
) -> None:
    image.worker()

    async def main(port: int) -> None:
        response = await fetch(port, "/probe", headers=headers)
        assert dict(response.headers).get("access-control-allow-origin") == allowed

    image.run(main, WWS_CORS=origins)


def test_cors_of_the_worker_counts(image: Image) -> None:
    image.worker()

    async def main(port: int) -> None:
        own = {"data": "", "headers": {"Access-Control-Allow-Origin": "https://own.example"}}
        response = await put_out(port, own)
        assert response["access-control-allow-origin"] == "https://own.example"

    image.run(main, WWS_CORS="*")


# Workers that fail


@pytest.mark.parametrize(
    "output",
    [
        b"[" + b"[]," * 400_000 + b"0]",
        b'{"data":"' + b'\\"' * 600_000,
        b'{"data":"x","more":[' + b'"",' * 400_000 + b"0]}",
        b'"' * 2_000_000,
        b'"' + b"\\" * 2_000_001,
    ],
    ids=["lists", "quotes", "strings", "only quotes", "backslashes"],
)
def test_large_output_that_is_no_response(output: bytes) -> None:
    """What Python makes of it would be many times as large."""
    with pytest.raises(contract.ResponseError):
        asyncio.run(contract.parse_response(output))


def test_large_responses() -> None:
    text = 'a "quoted" \\ text, [with] {all} kinds: of\n' * 50_000
    store = {f"key {n}": "value" for n in range(100_000)}
    output = json.dumps({"data": text, "kv": store}).encode()
    response = asyncio.run(contract.parse_response(output))
    assert response.body.decode() == text
    assert response.kv == store


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("mode=exit&code=3", "exited with status 3"),
        ("mode=trap", "unreachable"),
        ("mode=nothing", "the worker's output is no JSON: it is empty"),
    ],
)
def test_failure(image: Image, caplog: pytest.LogCaptureFixture, query: str, reason: str) -> None:
    image.worker()

    async def main(port: int) -> None:
        response = await fetch(port, f"/probe?{query}")
        assert (response.status, response.body) == (500, FAILED)
        assert response["content-type"] == "text/html"
        assert (await fetch(port, "/probe")).status == 200

    image.run(main)
    assert "/probe.wasm: GET /probe failed" in caplog.text
    assert reason in caplog.text
    if query == "mode=trap":
        assert image.stderr == "about to trap\n"


def test_worker_that_loops_is_ended(image: Image) -> None:
    image.worker()

    async def main(port: int) -> None:
        looping = asyncio.create_task(fetch(port, "/probe?mode=loop"))
        assert (await fetch(port, "/probe")).status == 200
        response = await looping
        assert (response.status, response.text) == (504, "the worker took too long\n")

    image.run(main, WWS_HTTP_REQUEST_TIMEOUT_SECONDS="0.5")


@pytest.mark.parametrize("query", ["mode=loop", "mode=sleep&ms=600000"])
def test_worker_whose_client_has_gone_is_ended(
    image: Image, query: str, caplog: pytest.LogCaptureFixture
) -> None:
    image.worker()
    caplog.set_level(logging.INFO)

    async def main(port: int) -> None:
        async with connected(port) as connection:
            await connection.send(head("GET", f"/probe?{query}"))
            async with asyncio.timeout(30):
                while (await fetch(port, "/probe")).status != 503:
                    pass
            connection.writer.close()
            async with asyncio.timeout(30):
                while (await fetch(port, "/probe")).status != 200:
                    pass

    image.run(main, WWS_MAX_INSTANCE_COUNT="1", WWS_HTTP_REQUEST_TIMEOUT_SECONDS="600")
    assert "GET /probe is given up: the client has gone" in caplog.text


def test_worker_that_floods_is_ended(
    image: Image, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image.worker()
    monkeypatch.setattr("containerd_shim_wws_v1.workers.command.MAX_RESPONSE_BYTES", 1 << 20)

    async def main(port: int) -> None:
        assert (await fetch(port, "/probe?mode=flood")).status == 500
        assert (await fetch(port, "/probe?mode=big&bytes=1048576")).status == 500
        assert (await fetch(port, "/probe?mode=big&bytes=1048000")).status == 200

    image.run(main)
    assert caplog.text.count("the worker writes more than 1048576 bytes") == 2


def test_output_is_bounded_by_more_than_a_large_response() -> None:
    assert contract.MAX_RESPONSE_BYTES == 64 << 20


def test_what_a_worker_says_is_in_the_log(image: Image) -> None:
    image.worker()

    async def main(port: int) -> None:
        assert (await fetch(port, "/probe?mode=stderr")).text == "said"

    image.run(main)
    assert image.stderr == "a line of the worker\n"


# Limits and the end


def test_too_large_body(image: Image) -> None:
    image.worker()

    async def main(port: int) -> None:
        response = await fetch(port, "/probe", method="POST", body=b"x" * 1001)
        assert response.status == 413
        assert (await fetch(port, "/probe", method="POST", body=b"x" * 1000)).status == 200

    image.run(main, WWS_HTTP_MAX_BODY_BYTES="1000")


def test_no_place_for_a_request(image: Image) -> None:
    image.worker()
    image.file("public/page.html", "page")

    async def main(port: int) -> None:
        async with connected(port) as slow:
            await slow.send(head("GET", "/probe?mode=sleep&ms=60000"))
            async with asyncio.timeout(30):
                while (await fetch(port, "/probe")).status != 503:
                    pass
            assert (await fetch(port, "/page.html")).text == "page"

    image.run(main, WWS_MAX_INSTANCE_COUNT="1", WWS_SHUTDOWN_TIMEOUT_SECONDS="0.1")


def test_requests_in_flight_may_end(image: Image) -> None:
    image.worker()

    async def main(port: int) -> None:
        async with connected(port) as slow:
            await slow.send(head("GET", "/probe?mode=sleep&ms=300"))
            assert (await fetch(port, "/probe")).status == 200
            image.stop.set()
            assert (await slow.response()).text == "slept"

    image.run(main)


def test_request_is_cut_off_when_the_time_to_drain_is_over(
    image: Image, caplog: pytest.LogCaptureFixture
) -> None:
    image.worker()

    async def main(port: int) -> None:
        async with connected(port) as slow:
            await slow.send(head("GET", "/probe?mode=sleep&ms=60000"))
            assert (await fetch(port, "/probe")).status == 200
            image.stop.set()
            assert (await slow.response()).status == 503

    image.run(main, WWS_SHUTDOWN_TIMEOUT_SECONDS="0.1")
    assert "is cut off: the app stops" in caplog.text


def test_health(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    image.worker("[...all].wasm")
    caplog.set_level(logging.WARNING)

    async def main(port: int) -> None:
        assert (await fetch(port, "/.well-known/wws/health")).body == b"OK"
        assert (await fetch(port, "/.well-known/wws/other")).status == 200

    image.run(main)
    assert not caplog.records


def test_each_request_has_a_new_instance(image: Image) -> None:
    image.worker()

    async def main(port: int) -> None:
        answers = await asyncio.gather(*(fetch(port, "/probe?mode=sleep&ms=20") for _ in range(40)))
        assert [each.status for each in answers] == [200] * 40

    image.run(main)
