"""What triggers share: limits of a request, and what is answered beyond them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from containerd_shimkit.http.limits import RequestLimits
from containerd_shimkit.http.messages import respond
from containerd_shimkit.http.server import HttpServer, HttpSettings, Receive, Scope, Send, listen
from containerd_shimkit.testing.http import connected, fetch, head

HEADERS = ((b"content-type", b"text/plain"), (b"x-own", b"1"))
DEADLINE = 30.0  # seconds


class App:
    """Answers with the body's length; waits for ever, or fails, if the path says so."""

    def __init__(self, seconds: float | None) -> None:
        self.limits = RequestLimits("app", seconds, 10, HEADERS)
        self.waiting = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(body: bytes) -> bytes:
            if scope["path"] == "/fail":
                raise KeyError("fail")
            if scope["path"] == "/wait":
                self.waiting.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.ended.set()
            return b"%d" % len(body)

        try:
            text = await self.limits.run(scope, receive, send, lambda: "the request", answer)
        except KeyError:
            text = b"failed"
        if text is not None:
            await respond(send, 200, [], text)


def run(
    main: Callable[[App, int, asyncio.Event], Coroutine[Any, Any, None]],
    seconds: float | None = None,
) -> None:
    async def serve() -> None:
        app, stop = App(seconds), asyncio.Event()
        sock = listen("127.0.0.1", 0)
        port = sock.getsockname()[1]
        server = HttpServer(app, HttpSettings(drain_seconds=0.1))
        task = asyncio.create_task(server.serve(sock, stop))
        try:
            async with asyncio.timeout(DEADLINE):
                await main(app, port, stop)
        finally:
            stop.set()
            await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def test_answer_is_given_back() -> None:
    async def main(_app: App, port: int, _stop: asyncio.Event) -> None:
        assert (await fetch(port, method="POST", body=b"x" * 10)).text == "10"
        assert (await fetch(port, "/fail")).text == "failed"

    run(main)


def test_body_beyond_the_limit() -> None:
    async def main(_app: App, port: int, _stop: asyncio.Event) -> None:
        response = await fetch(port, method="POST", body=b"x" * 11)
        assert (response.status, response.text) == (413, "the body has 11 bytes, more than 10\n")
        assert (response["x-own"], response["connection"]) == ("1", "close")

    run(main)


def test_time_beyond_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    async def main(app: App, port: int, _stop: asyncio.Event) -> None:
        response = await fetch(port, "/wait")
        assert (response.status, response.text) == (504, "the app took too long\n")
        assert response["x-own"] == "1"
        assert app.ended.is_set()

    run(main, seconds=0.1)
    assert "the request took more than 0.1 s" in caplog.text


def test_end_of_the_app(caplog: pytest.LogCaptureFixture) -> None:
    async def main(app: App, port: int, stop: asyncio.Event) -> None:
        async with connected(port) as connection:
            await connection.send(head("GET", "/wait"))
            await app.waiting.wait()
            stop.set()
            response = await connection.response()
            assert (response.status, response.text) == (503, "the app stops\n")
            assert (response["x-own"], response["connection"]) == ("1", "close")
        assert app.ended.is_set()

    run(main)
    assert "the request is cut off: the app stops" in caplog.text


@pytest.mark.parametrize(
    "sent", [head("GET", "/wait"), head("POST", "/", [("content-length", "1")])]
)
def test_client_that_leaves(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def main(app: App, port: int, _stop: asyncio.Event) -> None:
        async with connected(port) as connection:
            await connection.send(sent)
            if b"/wait" in sent:
                await app.waiting.wait()
        if b"/wait" in sent:
            await app.ended.wait()
        assert (await fetch(port)).text == "0"

    run(main)
    assert "cut off" not in caplog.text
