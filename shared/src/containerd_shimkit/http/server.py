"""Serving an ASGI app over HTTP/1.1 with uvicorn's protocol on a socket that is already bound.

uvicorn's own ``Server`` wakes ten times a second and re-raises signals; a pod should sleep when
it is idle and exit 0 when it is told to stop. So the protocol is uvicorn's and the loop around it
is ours, driven by events.

When a client has gone the task that answers it is cancelled, as hyper drops the service's future,
and ``client_gone`` tells it why. One that shuts only its own side down looks the same, and is taken
for gone too, as by hyper and nginx.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Final

import uvicorn
import uvicorn.lifespan.off  # named in a setting below: in a container nothing is imported late
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from containerd_shimkit.errors import ListenError
from containerd_shimkit.http.acceptor import Acceptor
from containerd_shimkit.http.corked import Cork, CorkedTransport

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_BACKLOG: Final = 2048
_ACCEPTED_AT_ONCE: Final = 64
_LINGER_SECONDS: Final = 2.0
_GONE: Final = "client_gone"  # in a scope

_ABSOLUTE: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)/?(.*)", re.S)
"""A whole URL as a request's target: RFC 9112 section 3.2.2."""

log = logging.getLogger(__name__)


def client_gone(scope: Scope) -> bool:
    """Return whether a task that is cancelled is so because nobody waits for its answer."""
    return _GONE in scope


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Limits of the server; requests beyond them are answered with the status that says so."""

    max_head_bytes: int = 64 << 10
    """Request line and headers together; beyond it 431."""
    head_timeout_seconds: float = 30.0
    """For a request's head to arrive, on a new connection or from its first byte on."""
    keep_alive_seconds: float = 75.0
    """An idle connection is closed after this (nginx's default)."""
    drain_seconds: float = 10.0
    """Requests in flight may take this long once the server is told to stop."""
    take_turns: bool = False
    """Other processes serve the same socket: accept one connection at a time, so that whoever has
    less to do takes the next."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket. Raises ListenError with the address and the reason."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise ListenError(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    return sock


class HttpServer:
    """One listening socket, its connections, and the way they end."""

    def __init__(self, app: AsgiApp, settings: HttpSettings | None = None) -> None:
        self.settings = settings or HttpSettings()
        self.state = ServerState()
        self.connection_closed = asyncio.Event()
        self.cork = Cork(asyncio.get_running_loop())
        self.config = uvicorn.Config(
            _while_wanted(app),
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,  # added by refresh_date
            # uvicorn wants whole seconds, the event loop does not mind.
            timeout_keep_alive=self.settings.keep_alive_seconds,  # type: ignore[arg-type]
        )
        self.config.load()
        self._date_second = 0

    async def serve(self, sock: socket.socket, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, then let the requests in flight end. Closes the socket."""
        most = 1 if self.settings.take_turns else _ACCEPTED_AT_ONCE
        server = Acceptor(sock, lambda: LimitedProtocol(self), most)
        try:
            await stop.wait()
        finally:
            server.close()
            await self._drain()

    async def _drain(self) -> None:
        deadline = time.monotonic() + self.settings.drain_seconds
        for connection in list(self.state.connections):
            connection.shutdown()  # closes it if idle, else after the response
        while self.state.connections or self.state.tasks:
            self.connection_closed.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._one_ended()
            except TimeoutError:
                break
        for task in list(self.state.tasks):
            task.cancel()
        await asyncio.gather(*self.state.tasks, return_exceptions=True)
        for connection in list(self.state.connections):
            connection.transport.abort()

    async def _one_ended(self) -> None:
        if self.state.tasks:
            await asyncio.wait(self.state.tasks, return_when=asyncio.FIRST_COMPLETED)
        else:
            await self.connection_closed.wait()

    def refresh_date(self) -> None:
        """Keep the Date header true without a timer: called once for each request."""
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            date = formatdate(second, usegmt=True).encode()
            self.state.default_headers[:] = [(b"date", date)]


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a bound on the request's head, in bytes and in time.

    If a request's target is a whole URL, ``scope["authority"]`` is the host and port in it.
    """

    def __init__(self, server: HttpServer) -> None:
        super().__init__(server.config, server.state, {})
        self._server = server
        self._head_bytes = 0
        self._piece_bytes = 0
        self._in_head = True
        self._mixed = False
        self._refused = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._answering: tuple[RequestResponseCycle, asyncio.Task[None]] | None = None

    def connection_made(  # type: ignore[override]  # uvicorn's protocol takes full transports only
        self, transport: asyncio.Transport
    ) -> None:
        super().connection_made(transport)
        self.transport = CorkedTransport(transport, self._server.cork)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)
        self.pipeline.clear()
        if self._answering is not None:
            cycle, task = self._answering
            if not cycle.response_complete:
                cycle.disconnected = True  # uvicorn's code has said so to the last in the pipeline
                cycle.scope[_GONE] = True  # type: ignore[typeddict-unknown-key]
                task.cancel()
        self._server.connection_closed.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Do as uvicorn's code does, and remember the task."""
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        self._answering = cycle, task

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._mixed = False
        self._piece_bytes = len(data)
        super().data_received(data)
        # The parser collects an unfinished header without any bound of its own. Where a head begins
        # behind another request is not known, so that piece does not count.
        if self._in_head and not self._mixed and self.parser is not None:
            self._head_bytes += len(data)
            if self._head_bytes > self._server.settings.max_head_bytes:
                self._refuse_head()
        # Here and not when it begins: most heads arrive in one piece, and need no timer.
        if self._in_head and self._head_timer is None and not self.transport.is_closing():
            self._start_head_timer()

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._stop_head_timer()
        self._server.refresh_date()
        if self._head_size() <= self._server.settings.max_head_bytes:
            if not self.url.startswith(b"/"):
                self._split_url()
            super().on_headers_complete()
            return
        app, self.app = self.app, _answer_431
        self.url = b"/"  # the parser of URLs refuses long ones with a 400
        super().on_headers_complete()
        self.app = app

    def _split_url(self) -> None:
        """Leave path and query of a whole URL; uvicorn's code fails on one without a path."""
        if (found := _ABSOLUTE.fullmatch(self.url)) is not None:
            authority, rest = found.groups()
            self.scope["authority"] = authority  # type: ignore[typeddict-unknown-key]
            self.url = b"/" + rest

    def _head_size(self) -> int:
        """Return at least what the head has, in bytes; exactly if it may be too large."""
        # A header of "n:\n" is counted as five bytes below, so a sum is less than twice the input.
        most = 2 * (self._head_bytes + self._piece_bytes)
        if most <= self._server.settings.max_head_bytes:
            return most
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def on_message_complete(self) -> None:
        self._mixed = True
        super().on_message_complete()
        if not self.pipeline:  # a large body has paused it: now only the connection's end can come
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        self._server.cork.note_complete()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        if not self._end_after_response():
            super().send_400_response(msg)

    def _end_after_response(self) -> bool:
        """Take no more requests if one is in flight: what we wrote now would pass for its answer.

        Returns whether one is.
        """
        if self.cycle is None or self.cycle.response_complete:
            return False
        self._refused = True
        self.cycle.keep_alive = False
        return True

    def _refuse_head(self) -> None:
        self._stop_head_timer()
        if self._end_after_response():
            return
        self._refused = True
        message = b"the request's headers are too large\n"
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
            b"content-type: text/plain\r\ncontent-length: %d\r\n\r\n%b" % (len(message), message)
        )
        # Closing with data unread resets the connection, and the client may never see the answer.
        self.transport.write_eof()
        self._head_timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _close_silently(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing() and not self._end_after_response():
            self.transport.close()

    def _start_head_timer(self) -> None:
        timeout = self._server.settings.head_timeout_seconds
        self._head_timer = self.loop.call_later(timeout, self._close_silently)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _while_wanted(app: AsgiApp) -> AsgiApp:
    """Return ``app`` without the error of being cancelled because the client has gone."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            if not client_gone(scope):
                raise
            path = scope["raw_path"].decode("latin-1")
            log.info("%s %s is given up: the client has gone", scope["method"], path)

    return run


async def respond_text(
    send: Send, status: int, text: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    """Send a whole response of plain text."""
    body = text.encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", b"%d" % len(body)),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def _answer_431(_scope: Scope, _receive: Receive, send: Send) -> None:
    closing = ((b"connection", b"close"),)
    await respond_text(send, 431, "the request's headers are too large\n", closing)
