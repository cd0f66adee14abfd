"""An HTTP server for tests of clients: it answers with the bytes it is told, also wrong ones.

It runs in the test's own event loop. What it was asked, and how often somebody connected, can be
looked at afterwards.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from containerd_shimkit.testing.apps import free_address

_MAX_HEAD_BYTES = 1 << 20
_BACKLOG = 1024  # hundreds may come at once


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    """Names in lower case, repetitions kept."""
    body: bytes
    connection: int
    """Which of the server's connections it came by, from 1."""
    reader: asyncio.StreamReader = field(compare=False, repr=False)

    def all(self, name: str) -> list[str]:
        """Return the headers of that name."""
        return [v for n, v in self.headers if n == name]

    async def gone(self) -> None:
        """Return when the client has closed the connection."""
        while await self.reader.read(1 << 16):
            pass


Answer: TypeAlias = Callable[[Received, asyncio.StreamWriter], Awaitable[bool | None]]
"""Writes a response; False closes the connection after it."""


class HttpServer:
    """Listens for as long as ``http_server`` runs."""

    def __init__(self, answer: Answer, scheme: str, host: str, port: int) -> None:
        self.requests: list[Received] = []
        self.connections = 0
        self.host, self.port = host, port
        self.url = f"{scheme}://{host}:{port}"
        self.open: dict[int, asyncio.StreamWriter] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        self._answer = answer

    async def all_closed(self) -> None:
        """Return when no client is connected any more; fails after ten seconds."""
        async with asyncio.timeout(10):
            while self.open:
                self._closed.clear()
                await self._closed.wait()

    async def stop(self) -> None:
        """Close every connection, whatever is being answered."""
        for task in self._tasks:
            task.cancel()
        await self.all_closed()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one more connection."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self.open[number] = writer
        try:
            while (request := await _receive(reader, number)) is not None:
                self.requests.append(request)
                if await self._answer(request, writer) is False:
                    break
                await writer.drain()
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            pass  # the client left in the middle
        finally:
            writer.close()
            del self.open[number]
            self._closed.set()


def response(status: int, body: bytes = b"", *headers: str) -> bytes:
    """Return a response with the length of its body."""
    lines = [f"HTTP/1.1 {status} Something", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def answering(make: Callable[[Received], bytes]) -> Answer:
    """Return what answers each request with the bytes that ``make`` returns."""

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(make(request))

    return answer


@asynccontextmanager
async def http_server(
    answer: Answer,
    context: ssl.SSLContext | None = None,
    address: tuple[str, int] | None = None,
) -> AsyncIterator[HttpServer]:
    """A server that accepts connections. context: by TLS. address: see ``free_address``."""
    server = HttpServer(answer, "https" if context else "http", *(address or free_address()))
    listener = await asyncio.start_server(
        *(server.accept, server.host, server.port),
        ssl=context,
        limit=_MAX_HEAD_BYTES,
        backlog=_BACKLOG,
    )
    try:
        yield server
    finally:
        listener.close()
        await server.stop()


async def _receive(reader: asyncio.StreamReader, connection: int) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as exc:
        if exc.partial:
            raise
        return None
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    pairs = [line.split(":", 1) for line in lines]
    headers = tuple((name.lower(), value.strip()) for name, value in pairs)
    fields = dict(headers)
    if fields.get("transfer-encoding") == "chunked":
        body = await _chunks(reader)
    else:
        body = await reader.readexactly(int(fields.get("content-length", "0")))
    return Received(method, target, headers, body, connection, reader)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        body += await reader.readexactly(size)
        await reader.readexactly(2)
        if not size:
            return body
