"""The HTTP server: limits, connections and how they end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import uvloop

from containerd_shimkit.errors import ListenError
from containerd_shimkit.http.server import (
    HttpServer,
    HttpSettings,
    Receive,
    Scope,
    Send,
    listen,
    respond_text,
)
from containerd_shimkit.testing.http import Connection, connected, fetch, head

DEADLINE = 20.0  # seconds


class App:
    """Answers with the path and the body; ``/wait`` when it is told to."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = 0
        self.requests: list[tuple[str, bytes]] = []
        self.authorities: list[bytes | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.requests.append((scope["path"], body))
        self.authorities.append(scope.get("authority"))
        if scope["path"] == "/wait":
            self.entered.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        await respond_text(send, 200, f"{scope['method']} {scope['path']} {len(body)}")


class Running:
    """A server that serves, and the way to stop it."""

    def __init__(self, app: App, server: HttpServer, port: int, stop: asyncio.Event) -> None:
        self.app = app
        self.server = server
        self.port = port
        self.stop = stop
        self.task: asyncio.Task[None]

    async def ended(self) -> float:
        """Stop, wait for the end, return how long it took."""
        started = time.monotonic()
        self.stop.set()
        async with asyncio.timeout(DEADLINE):
            await asyncio.shield(self.task)
        return time.monotonic() - started


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Running]:
    app, stop = App(), asyncio.Event()
    sock = listen("127.0.0.1", 0)
    server = HttpServer(app, HttpSettings(**settings))
    running = Running(app, server, sock.getsockname()[1], stop)
    running.task = asyncio.create_task(server.serve(sock, stop))
    try:
        yield running
    finally:
        stop.set()
        app.release.set()
        await running.task


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run on the loop that containers have."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


# Requests


def test_requests_on_one_connection() -> None:
    async def main() -> None:
        async with serving() as running, connected(running.port) as connection:
            for number in range(20):
                await connection.send(head("GET", f"/{number}"))
                assert (await connection.response()).text == f"GET /{number} 0"

    run(main)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_pipelined_requests_are_answered_in_order(chunk: int) -> None:
    async def main() -> None:
        async with serving() as running, connected(running.port) as connection:
            data = b"".join(
                head("POST", f"/{number}", [("content-length", str(number))]) + b"x" * number
                for number in range(10)
            )
            for at in range(0, len(data), chunk):
                await connection.send(data[at : at + chunk])
            for number in range(10):
                assert (await connection.response()).text == f"POST /{number} {number}"

    run(main)


@pytest.mark.parametrize(
    ("target", "path", "authority"),
    [
        ("/a", "/a", None),
        ("http://h/a", "/a", b"h"),
        ("http://h:81/a/b?c", "/a/b", b"h:81"),
        ("HTTPS://h//a", "//a", b"h"),
        ("http://h", "/", b"h"),
        ("http://h?c", "/", b"h"),
        ("http://[::1]:81/a://b", "/a://b", b"[::1]:81"),
    ],
)
def test_target_may_be_a_whole_url(target: str, path: str, authority: bytes | None) -> None:
    async def main() -> None:
        async with serving() as running:
            response = await fetch(running.port, target)
            assert (response.status, response.text) == (200, f"GET {path} 0")
            assert running.app.authorities == [authority]

    run(main)


def test_head_has_the_length_and_no_body() -> None:
    async def main() -> None:
        async with serving() as running, connected(running.port) as connection:
            await connection.send(head("HEAD", "/a") + head("GET", "/b"))
            response = await connection.response("HEAD")
            assert (response.status, response["content-length"]) == (200, "9")
            assert (await connection.response()).text == "GET /b 0"

    run(main)


def test_expect_continue_is_answered_before_the_body() -> None:
    async def main() -> None:
        async with serving() as running, connected(running.port) as connection:
            headers = [("content-length", "5"), ("expect", "100-continue")]
            await connection.send(head("POST", "/", headers))
            assert (await connection.response()).status == 100
            await connection.send(b"12345")
            assert (await connection.response()).text == "POST / 5"

    run(main)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_close_is_honoured(version: bytes) -> None:
    async def main() -> None:
        async with serving() as running, connected(running.port) as connection:
            await connection.send(
                b"GET / HTTP/%b\r\nhost: a\r\nconnection: close\r\n\r\n" % version
            )
            assert (await connection.response())["connection"] == "close"
            assert await connection.rest() == b""

    run(main)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad name: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n folded\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    ],
)
def test_malformed_request_is_400_and_the_end_of_the_connection(data: bytes) -> None:
    async def main() -> None:
        async with serving() as running:
            async with connected(running.port) as connection:
                await connection.send(data)
                response = await connection.response()
                assert (response.status, response["connection"]) == (400, "close")
                assert await connection.rest() == b""
            assert running.app.requests == []
            assert (await fetch(running.port)).status == 200

    run(main)


def test_every_response_has_the_date() -> None:
    async def main() -> None:
        async with serving() as running:
            for _ in range(3):
                before = int(time.time())
                response = await fetch(running.port)
                date = parsedate_to_datetime(response["date"]).timestamp()
                assert before <= date <= time.time()
                assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", response["date"])
                assert "server" not in response

    run(main)


def test_date_follows_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving() as running:
            for now, text in [(1.9, "00:00:01"), (59.9, "00:00:59"), (60, "00:01:00")]:
                monkeypatch.setattr("containerd_shimkit.http.server.time.time", lambda t=now: t)
                assert text in (await fetch(running.port))["date"]

    run(main)


# Limits


LIMIT = 4096


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/", [("x-long", "v" * LIMIT)]),
        ("/", [("x" * LIMIT, "v")]),
        ("/", [(f"x-{n}", "v") for n in range(LIMIT // 8)]),
        ("/" + "u" * LIMIT, []),
        ("/?" + "q" * LIMIT, []),
        ("/" + "u" * 70_000, []),
        ("/", [("x-long", "v" * 1_000_000)]),
    ],
    ids=["value", "name", "many", "path", "query", "huge path", "huge value"],
)
def test_head_beyond_the_limit_is_431(target: str, headers: list[tuple[str, str]]) -> None:
    async def main() -> None:
        async with serving(max_head_bytes=LIMIT) as running:
            response = await fetch(running.port, target, headers=headers)
            assert response.status == 431
            assert response["connection"] == "close"
            assert response.text == "the request's headers are too large\n"
            assert running.app.requests == []
            assert (await fetch(running.port)).status == 200

    run(main)


def test_head_below_the_limit_is_good() -> None:
    async def main() -> None:
        async with serving() as running:
            headers = [("x-long", "v" * 60_000)]
            assert (await fetch(running.port, headers=headers)).status == 200
            assert (await fetch(running.port, "/" + "u" * 60_000)).status == 200

    run(main)


def test_431_comes_after_the_responses_before_it() -> None:
    async def main() -> None:
        async with serving(max_head_bytes=LIMIT) as running, connected(running.port) as connection:
            await connection.send(head("GET", "/wait") + head("GET", "/", [("x", "v" * LIMIT)]))
            await running.app.entered.wait()
            running.app.release.set()
            assert (await connection.response()).text == "GET /wait 0"
            assert (await connection.response()).status == 431
            assert await connection.rest() == b""

    run(main)


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nx: ", b"GET /", b"GET / HTTP/1.1\r\n"])
def test_head_that_never_ends_is_refused(start: bytes) -> None:
    """The parser would collect it for as long as it comes."""

    async def main() -> None:
        async with serving(max_head_bytes=LIMIT) as running:
            async with connected(running.port) as connection:
                answer = asyncio.create_task(connection.rest())
                await connection.send(start)
                for _ in range(100_000):
                    if answer.done():
                        break
                    await connection.send(b"a" * 512)
                    await asyncio.sleep(0)
                assert (await answer).startswith(b"HTTP/1.1 431")
            assert running.app.requests == []

    run(main)


def test_large_body_before_the_next_head_does_not_count() -> None:
    """What arrives with the end of a body is not all of the next request's head."""

    async def main() -> None:
        async with serving(max_head_bytes=LIMIT) as running, connected(running.port) as connection:
            size = 200_000
            second = head("GET", "/second")
            data = head("POST", "/first", [("content-length", str(size))]) + b"x" * size
            await connection.send(data + second[:10])
            assert (await connection.response()).text == f"POST /first {size}"
            await connection.send(second[10:])
            assert (await connection.response()).text == "GET /second 0"

    run(main)


def test_unfinished_head_behind_a_request_in_flight_is_not_answered_in_its_place() -> None:
    """A client, or a proxy before it, would take the 431 for the answer to the first request."""

    async def main() -> None:
        async with serving(max_head_bytes=LIMIT) as running:
            async with connected(running.port) as connection:
                await connection.send(head("GET", "/wait"))
                await running.app.entered.wait()
                await connection.send(b"GET / HTTP/1.1\r\nx: " + b"a" * LIMIT * 2)
                await fetch(running.port)  # the server has read that by now, most likely
                running.app.release.set()
                data = await connection.rest()
            assert not data.startswith(b"HTTP/1.1 431")

    run(main)


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nhost: a\r\n"])
def test_head_that_does_not_come_in_time_ends_the_connection(sent: bytes) -> None:
    async def main() -> None:
        async with (
            serving(head_timeout_seconds=0.1) as running,
            connected(running.port) as connection,
        ):
            await connection.send(sent)
            assert await connection.rest() == b""

    run(main)


def test_later_head_that_does_not_come_in_time_ends_the_connection() -> None:
    """The first byte of a second request stops the keep-alive timer."""

    async def main() -> None:
        async with (
            serving(head_timeout_seconds=0.2) as running,
            connected(running.port) as connection,
        ):
            await connection.send(head("GET", "/"))
            await connection.response()
            await connection.send(b"GET / HTTP/1.1\r\nhost: a\r\n")
            assert await connection.rest() == b""

    run(main)


def test_head_timeout_does_not_cut_requests_or_idle_connections() -> None:
    async def main() -> None:
        async with (
            serving(head_timeout_seconds=0.05) as running,
            connected(running.port) as connection,
        ):
            await connection.send(head("GET", "/wait"))
            await running.app.entered.wait()
            async with connected(running.port) as other:  # closed by the timeout itself
                assert await other.rest() == b""
            running.app.release.set()
            assert (await connection.response()).status == 200
            async with connected(running.port) as other:
                assert await other.rest() == b""
            await connection.send(head("GET", "/again"))
            assert (await connection.response()).text == "GET /again 0"

    run(main)


def test_idle_connection_is_closed_after_a_while() -> None:
    async def main() -> None:
        async with (
            serving(keep_alive_seconds=0.05) as running,
            connected(running.port) as connection,
        ):
            await connection.send(head("GET", "/"))
            assert (await connection.response()).status == 200
            assert await connection.rest() == b""

    run(main)


def test_many_connections_wait_to_be_accepted() -> None:
    """The kernel keeps them while the loop has no turn; beyond the backlog it refuses them."""

    async def main() -> None:
        async with serving() as running:
            await fetch(running.port, "/")
            address = ("127.0.0.1", running.port)
            waiting = [socket.create_connection(address, timeout=0.9) for _ in range(400)]
            for connection in waiting:
                connection.close()

    run(main)


# The end


def test_stop_before_any_connection() -> None:
    async def main() -> None:
        async with serving() as running:
            assert await running.ended() < 5

    run(main)


def test_stop_that_was_set_before_the_start() -> None:
    async def main() -> None:
        stop = asyncio.Event()
        stop.set()
        async with asyncio.timeout(DEADLINE):
            await HttpServer(App()).serve(listen("127.0.0.1", 0), stop)

    run(main)


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
def test_idle_connections_are_closed_at_once(sent: bytes) -> None:
    async def main() -> None:
        async with serving() as running, connected(running.port) as fresh:
            await fresh.send(sent)
            async with connected(running.port) as used:
                await used.send(head("GET", "/"))
                await used.response()
                assert await running.ended() < 5
                assert await used.rest() == b""
            assert await fresh.rest() == b""

    run(main)


def test_request_in_flight_ends_and_new_ones_are_refused() -> None:
    async def main() -> None:
        async with serving() as running, connected(running.port) as connection:
            await connection.send(head("GET", "/wait"))
            await running.app.entered.wait()
            running.stop.set()
            async with asyncio.timeout(DEADLINE):
                while True:
                    try:
                        async with connected(running.port):
                            await asyncio.sleep(0)
                    except ConnectionRefusedError:
                        break
            assert not running.task.done()
            running.app.release.set()
            response = await connection.response()
            assert (response.status, response["connection"]) == (200, "close")
            assert await connection.rest() == b""
            await running.ended()

    run(main)


def test_body_that_still_arrives_is_waited_for() -> None:
    async def main() -> None:
        async with serving() as running, connected(running.port) as connection:
            await connection.send(head("POST", "/", [("content-length", "4")]) + b"12")
            await fetch(running.port)
            running.stop.set()
            await asyncio.sleep(0)
            await connection.send(b"34")
            assert (await connection.response()).text == "POST / 4"
            await running.ended()

    run(main)


def test_request_that_does_not_end_is_cut_at_the_drain_timeout() -> None:
    async def main() -> None:
        async with serving(drain_seconds=0.2) as running, connected(running.port) as connection:
            await connection.send(head("GET", "/wait"))
            await running.app.entered.wait()
            assert 0.15 <= await running.ended() < 10
            assert running.app.cancelled == 1
            await connection.rest()
            assert not running.server.state.connections
            assert not running.server.state.tasks

    run(main)


def test_client_that_does_not_read_is_cut_at_the_drain_timeout() -> None:
    async def main() -> None:
        async with serving(drain_seconds=0.2) as running:

            async def flood(_scope: Scope, _receive: Receive, send: Send) -> None:
                await respond_text(send, 200, "x" * (64 << 20))

            running.server.config.loaded_app = flood
            async with connected(running.port) as connection:
                connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
                await connection.send(head("GET", "/"))
                await asyncio.sleep(0)
                assert await running.ended() < 10

    run(main)


def test_drain_of_zero_seconds_ends_at_once() -> None:
    async def main() -> None:
        async with serving(drain_seconds=0) as running, connected(running.port) as connection:
            await connection.send(head("GET", "/wait"))
            await running.app.entered.wait()
            assert await running.ended() < 5
            assert running.app.cancelled == 1

    run(main)


async def nothing_in_flight(running: Running) -> None:
    state = running.server.state
    async with asyncio.timeout(DEADLINE):
        while state.connections or state.tasks:  # noqa: ASYNC110
            await asyncio.sleep(0)


def test_client_that_goes_away_leaves_nothing() -> None:
    async def main() -> None:
        async with serving() as running:
            for data in (b"", b"GET", head("POST", "/", [("content-length", "9")]) + b"1"):
                async with connected(running.port) as connection:
                    await connection.send(data)
                    connection.abort()
            await nothing_in_flight(running)
            assert (await fetch(running.port)).status == 200

    run(main)


# Clients that go away


def close(connection: Connection) -> None:
    connection.writer.close()


def shut_down(connection: Connection) -> None:
    connection.writer.write_eof()


def reset(connection: Connection) -> None:
    sock = connection.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.abort()


@pytest.mark.parametrize("size", [0, 1, 300_000, 5_000_000])
@pytest.mark.parametrize("leave", [close, shut_down, reset])
def test_request_of_a_client_that_has_gone_is_given_up(
    leave: Callable[[Connection], None], size: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with serving() as running, connected(running.port) as connection:
            body = b"x" * size
            await connection.send(head("POST", "/wait", [("content-length", str(size))]) + body)
            await running.app.entered.wait()
            leave(connection)
            await nothing_in_flight(running)
            assert running.app.cancelled == 1
            assert running.app.requests == [("/wait", body)]
            assert (await fetch(running.port)).status == 200

    run(main)
    assert "POST /wait is given up: the client has gone" in caplog.text
    assert all(record.levelno < logging.WARNING for record in caplog.records)


def test_requests_behind_one_that_is_given_up_are_not_begun() -> None:
    async def main() -> None:
        async with serving() as running, connected(running.port) as connection:
            await connection.send(head("GET", "/wait") + head("GET", "/behind"))
            await running.app.entered.wait()
            (server_side,) = running.server.state.connections
            server_side.transport.abort()  # its reading is paused, so that it would not notice
            await nothing_in_flight(running)
            assert running.app.cancelled == 1
            assert running.app.requests == [("/wait", b"")]

    run(main)


def test_request_given_up_during_the_drain_ends_it() -> None:
    async def main() -> None:
        async with serving(drain_seconds=600) as running, connected(running.port) as connection:
            await connection.send(head("GET", "/wait"))
            await running.app.entered.wait()
            running.stop.set()
            close(connection)
            await running.ended()
            assert running.app.cancelled == 1

    run(main)


def test_request_that_ends_in_its_body_is_given_up() -> None:
    async def main() -> None:
        async with serving() as running, connected(running.port) as connection:
            await connection.send(head("POST", "/", [("content-length", "9")]) + b"1")
            connection.writer.write_eof()
            assert await connection.rest() == b""
            await nothing_in_flight(running)
            assert running.app.requests == []

    run(main)


# Listening


def test_address_in_use_is_named() -> None:
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        message = f"cannot listen on 127.0.0.1:{port}: Address already in use"
        with pytest.raises(ListenError, match=re.escape(message)):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EADDRNOTAVAIL])
def test_address_that_is_refused_is_named(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    class Refusing(socket.socket):
        def bind(self, address: Any) -> None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(ListenError, match=f"cannot listen on 0.0.0.0:80: {os.strerror(number)}"):
        listen("0.0.0.0", 80)


def test_foreign_address_is_refused() -> None:
    with pytest.raises(ListenError, match=r"cannot listen on 192\.0\.2\.1:80: Cannot assign"):
        listen("192.0.2.1", 80)


def test_ipv6_is_served() -> None:
    try:
        sock = listen("::1", 0)
    except ListenError:
        pytest.skip("needs IPv6 on the loopback device")

    async def main() -> None:
        stop = asyncio.Event()
        port = sock.getsockname()[1]
        task = asyncio.create_task(HttpServer(App()).serve(sock, stop))
        async with connected(port, "::1") as connection:
            await connection.send(head("GET", "/six"))
            assert (await connection.response()).text == "GET /six 0"
        stop.set()
        await task

    run(main)


def test_port_can_be_used_again_at_once() -> None:
    async def main() -> None:
        port = 0
        for _ in range(3):
            sock = listen("127.0.0.1", port)
            port = sock.getsockname()[1]
            stop = asyncio.Event()
            task = asyncio.create_task(HttpServer(App()).serve(sock, stop))
            async with connected(port) as connection:
                await connection.send(head("GET", "/"))
                assert (await connection.response()).status == 200
                stop.set()
                await task

    run(main)


def test_connection_helper_reads_chunks() -> None:
    """The client of these tests: what else would be trusted blindly."""

    async def main() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
        connection = Connection(reader, None)  # type: ignore[arg-type]
        assert (await connection.response()).body == b"abcde"

    run(main)
