"""Real guests make requests: to servers, and to each other within the app."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterator
from typing import Any

import pytest

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import Response, connected, fetch, head
from containerd_shimkit.testing.servers.http import Received, answering, http_server, response
from containerd_shimkit.testing.servers.tls import Authority, certificate_authority

MANIFEST = """
spin_manifest_version = 2
[application]
name = "test"
[[trigger.http]]
route = "/call/..."
component = "caller"
[[trigger.http]]
route = "/probe/:what/..."
component = "probe"
[[trigger.http]]
route = { private = true }
component = "hidden"
[[trigger.http]]
route = "/wagi/..."
component = "wagi"
executor = { type = "wagi" }
[[trigger.http]]
route = "/static"
static_response = { status_code = 201, headers = { x-static = "yes" }, body = "static" }
[component.caller]
source = "outbound_http.wasm"
allowed_outbound_hosts = [ALLOWED]
[component.probe]
source = "probe.wasm"
[component.hidden]
source = "probe.wasm"
[component.wagi]
source = "wagi_probe.wasm"
[component.uncalled]
source = "probe.wasm"
"""
EVERYWHERE = '"*://*:*", "http://*.spin.internal", "http://self"'
DENIED, INVALID_URL, BAD_REQUEST, FAILED, TOO_MANY = (f"error {n}" for n in (1, 2, 3, 4, 5))


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with certificate_authority() as made:
        yield made


@pytest.fixture
def app(image: Any) -> Any:
    for guest in ("outbound_http", "probe", "wagi_probe"):
        image.component(guest, f"/{guest}")
    return allow(image, EVERYWHERE)


def allow(image: Any, entries: str) -> Any:
    image.manifest(MANIFEST.replace("ALLOWED", entries))
    return image


async def call(
    port: int, url: str, method: str = "GET", body: bytes = b"", *, abi: str = "v1", **send: str
) -> Response:
    """Have the guest make a request; keywords are headers."""
    headers = [("x-url", url.encode()), ("x-method", method.encode()), ("x-abi", abi.encode())]
    headers += [
        (f"x-send-{name.replace('_', '-')}", value.encode()) for name, value in send.items()
    ]
    answer = await fetch(port, "/call/x", method="POST", headers=headers, body=body)
    assert answer.status == 200, answer
    return answer


def split(answer: Response) -> tuple[int, list[str], bytes]:
    """Return what the guest got: status, headers, body."""
    head, _, body = answer.body.partition(b"\n\n")
    status, *headers = head.decode().split("\n")
    return int(status), headers, body


# Servers


@pytest.mark.parametrize("abi", ["v1", "v1.5"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_methods(app: Any, method: str, abi: str) -> None:
    async def main(port: int) -> None:
        make = answering(lambda r: response(299, b"" if r.method == "HEAD" else r.body, "X-A: é"))
        async with http_server(make) as server:
            body = b"" if method in ("GET", "HEAD") else b"a\0b"
            answer = await call(port, f"{server.url}/a?b", method, body, abi=abi, x_one="1")
            length = f"content-length: {len(body)}"
            # The server's bytes are Latin-1, which no string of a guest can be.
            assert split(answer) == (299, [length], body)
            (request,) = server.requests
            assert (request.method, request.target, request.body) == (method, "/a?b", body)
            assert request.all("x-one") == ["1"]

    app.run(main)


def test_ten_megabytes(app: Any) -> None:
    async def main(port: int) -> None:
        async with http_server(answering(lambda r: response(200, r.body))) as server:
            body = bytes(range(256)) * 40_000
            assert split(await call(port, server.url, "POST", body))[2] == body

    app.run(main)


def test_gzip_and_redirects(app: Any) -> None:
    def make(request: Received) -> bytes:
        if request.target == "/end":
            return response(200, gzip.compress(b"end"), "content-encoding: gzip")
        return response(302, b"", "location: /end")

    async def main(port: int) -> None:
        async with http_server(answering(make)) as server:
            assert split(await call(port, server.url)) == (200, [], b"end")

    app.run(main)


def test_errors(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    address = "{}:{}".format(*free_address())
    allow(app, f'"http://{address}", "http://no.invalid"')
    cases = [
        (f"http://{address}/?token=s3cret", FAILED),
        ("http://no.invalid/", FAILED),
        (f"https://{address}/", DENIED),
        ("http://127.0.0.2/", DENIED),
        ("/own", DENIED),
        ("http://probe.spin.internal/", DENIED),
        ("no url", INVALID_URL),
        ("", INVALID_URL),
    ]
    answers: list[str] = []

    async def main(port: int) -> None:
        for url, _ in cases:
            answers.append((await call(port, url)).text)
        # Of all that cannot be sent only this gets into the guest by a header.
        answers.append((await call(port, f"http://{address}/", host="a", Host="b")).text)

    app.run(main)
    assert answers == [*(expected for _, expected in cases), BAD_REQUEST]
    assert "s3cret" not in caplog.text
    assert "cannot connect: Connection refused" in caplog.text
    assert 'it needs allowed_outbound_hosts = ["http://127.0.0.2"] in the manifest' in caplog.text


def test_blocked_networks(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = '[outbound_networking]\nblock_networks = ["127.0.0.0/8"]\n'
    (app.root / "runtime-config.toml").write_text(config)

    async def main(port: int) -> None:
        async with http_server(answering(lambda _: response(200))) as server:
            assert (await call(port, server.url)).text == DENIED
            assert not server.connections

    app.run(main)
    assert "block_networks" in caplog.text


@pytest.mark.parametrize("trusted", [True, False])
def test_tls(app: Any, authority: Authority, trusted: bool) -> None:
    (app.root / "authority.pem").write_bytes(authority.cert.read_bytes())
    address = free_address()
    certificate = authority.issue("guest", f"IP:{address[0] if trusted else '127.0.0.1'}")

    async def main(port: int) -> None:
        context = certificate.server_context()
        async with http_server(answering(lambda _: response(200)), context, address) as server:
            text = (await call(port, server.url)).text
            assert text.startswith("200\n") if trusted else text == FAILED

    app.run(main, SSL_CERT_FILE="/authority.pem")


def test_a_request_cut_off_at_its_deadline(app: Any) -> None:
    async def never(request: Received, _: asyncio.StreamWriter) -> bool:
        await request.gone()
        return False

    async def main(port: int) -> None:
        async with http_server(never) as server:
            headers = [("x-url", server.url.encode())]
            answer = await fetch(port, "/call/x", method="POST", headers=headers)
            assert answer.status == 504
            await server.all_closed()

    app.run(main, SPIN_HTTP_REQUEST_TIMEOUT_SECONDS="0.3")


def test_a_request_whose_client_has_gone(app: Any) -> None:
    async def never(request: Received, _: asyncio.StreamWriter) -> bool:
        asked.set()
        await request.gone()
        return False

    asked = asyncio.Event()

    async def main(port: int) -> None:
        async with http_server(never) as server, connected(port) as connection:
            headers = [("x-url", server.url.encode())]
            await connection.send(head("POST", "/call/x", headers))
            await asked.wait()
            connection.writer.close()
            await server.all_closed()

    app.run(main, SPIN_HTTP_REQUEST_TIMEOUT_SECONDS="600")


# Within the app


def test_one_component_calls_another(app: Any) -> None:
    async def main(port: int) -> None:
        url = "http://hidden.spin.internal/headers?a=b"
        answer = await call(port, url, "POST", b"in", x_one="1", spin_path_info="forged", host="h")
        status, _, body = split(answer)
        assert status == 200
        assert body.decode().splitlines() == [
            "POST /headers?a=b",
            "host: hidden.spin.internal",
            "x-one: 1",
            "accept-encoding: gzip",
            "spin-path-info: /headers",
            "spin-full-url: http://hidden.spin.internal/headers?a=b",
            "spin-matched-route: /...",
            "spin-base-path: /",
            "spin-raw-component-route: /...",
            "spin-component-route: ",
            "spin-client-addr: 0.0.0.0:0",
        ]
        echo = await call(port, "http://probe.spin.internal/echo", "POST", b"a\0b" * 100_000)
        assert split(echo)[2] == b"a\0b" * 100_000

    app.run(main)


def test_a_component_calls_the_apps_own_routes(app: Any) -> None:
    async def main(port: int) -> None:
        answer = await call(port, "/probe/headers/headers?x")
        lines = split(answer)[2].decode().splitlines()
        assert lines[0] == "GET /probe/headers/headers?x"
        assert "spin-path-match-what: headers" in lines
        assert "spin-path-info: /headers" in lines
        assert split(await call(port, "http://self.alt/static")) == (
            201,
            ["x-static: yes"],
            b"static",
        )
        assert split(await call(port, "/nowhere"))[0] == 404
        assert split(await call(port, "/.well-known/spin/health"))[2] == b"OK"
        assert split(await call(port, "http://hidden.spin.internal/status?code=418"))[0] == 418
        status, _, body = split(await call(port, "http://wagi.spin.internal/?mode=env"))
        assert (status, b"X_MATCHED_ROUTE=/..." in body) == (200, True)

    app.run(main)


@pytest.mark.parametrize("id_", ["uncalled", "unknown"])
def test_a_component_that_no_trigger_calls(
    app: Any, id_: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(port: int) -> None:
        assert (await call(port, f"http://{id_}.spin.internal/")).text == FAILED

    allow(app, f'"http://{id_}.spin.internal"')
    app.run(main)
    assert f"no component '{id_}' with an HTTP trigger" in caplog.text


def test_a_component_that_is_called_and_fails(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main(port: int) -> None:
        assert split(await call(port, "http://hidden.spin.internal/trap")) == (500, [], b"")

    app.run(main)
    assert "component 'hidden': GET /trap failed" in caplog.text


def test_the_deadline_is_that_of_the_outer_request(app: Any) -> None:
    async def main(port: int) -> None:
        for path in ("/sleep?ms=60000", "/loop"):
            headers = [("x-url", f"http://hidden.spin.internal{path}".encode())]
            answer = await fetch(port, "/call/x", method="POST", headers=headers)
            assert answer.status == 504
        assert (await fetch(port, "/static")).status == 201

    app.run(main, SPIN_HTTP_REQUEST_TIMEOUT_SECONDS="0.3")


def test_requests_within_the_app_take_a_place(app: Any) -> None:
    """Who waits for another holds a place: with one in all there is none left."""

    async def main(port: int) -> None:
        for _ in range(3):
            assert (await call(port, "http://hidden.spin.internal/headers")).text == TOO_MANY
            assert (await call(port, "/nowhere")).text.startswith("404\n")

    app.run(main, SPIN_MAX_INSTANCE_COUNT="1")


def test_many_that_call_each_other_end(app: Any) -> None:
    async def main(port: int) -> None:
        headers = [("x-url", b"http://hidden.spin.internal/sleep?ms=10")]
        answers = await asyncio.gather(
            *(fetch(port, "/call/x", method="POST", headers=headers) for _ in range(40))
        )
        found = {(answer.status, answer.text.split("\n")[0]) for answer in answers}
        served, refused = (200, "200"), {(200, TOO_MANY), (503, "too many requests in flight")}
        assert found <= {served} | refused
        alone = await fetch(port, "/call/x", method="POST", headers=headers)
        assert (alone.status, alone.text.split("\n")[0]) == served

    app.run(main, SPIN_MAX_INSTANCE_COUNT="20")


def test_a_component_that_calls_itself_for_ever(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main(port: int) -> None:
        url = "http://caller.spin.internal/"
        deeper = {"x_send_" * level + "x_url": url for level in range(20)}
        answer = await call(port, url, "GET", b"", **deeper)
        assert answer.text.count("200\n") == 16
        assert answer.text.endswith(FAILED)

    app.run(main)
    assert "16 components wait for each other already" in caplog.text


def test_hosts_of_components_are_none_from_outside(app: Any) -> None:
    async def main(port: int) -> None:
        for host in ("hidden.spin.internal", "HIDDEN.spin.internal:80"):
            answer = await fetch(port, "/probe/a/headers", host=host)
            assert "internal" not in answer.text.lower()
            assert "spin-full-url: http://localhost/probe/a/headers" in answer.text

    app.run(main)
