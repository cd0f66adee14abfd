"""A client for tests of HTTP servers: it says exactly what it is told, also what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

DEADLINE_SECONDS: Final = 30.0
_READ_LIMIT: Final = 1 << 20  # of one line


@dataclass(frozen=True, slots=True)
class Response:
    """A response as it came."""

    status: int
    headers: tuple[tuple[str, str], ...]
    """Names in lower case, repetitions kept."""
    body: bytes

    def __getitem__(self, name: str) -> str:
        """Return the only header of that name."""
        (value,) = [v for n, v in self.headers if n == name]
        return value

    def __contains__(self, name: str) -> bool:
        return any(n == name for n, _ in self.headers)

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


class Connection:
    """One connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def local_port(self) -> int:
        """The client's own port."""
        return int(self.writer.get_extra_info("sockname")[1])

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.writer.drain()

    async def response(self, method: str = "GET") -> Response:
        """Read one response; ``100 Continue`` is one of its own."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self._response(method)

    async def _response(self, method: str) -> Response:
        status_line = await self.reader.readuntil(b"\r\n")
        status = int(status_line.split(b" ", 2)[1])
        headers: list[tuple[str, str]] = []
        while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.decode("latin-1").rstrip("\r\n").partition(":")
            headers.append((name.lower(), value.strip()))
        if method == "HEAD" or status in (100, 204, 304):
            return Response(status, tuple(headers), b"")
        if ("transfer-encoding", "chunked") in headers:
            return Response(status, tuple(headers), await self._chunks())
        lengths = [int(v) for n, v in headers if n == "content-length"]
        body = await (self.reader.readexactly(lengths[0]) if lengths else self.reader.read())
        return Response(status, tuple(headers), body)

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return body

    async def rest(self) -> bytes:
        """Read until the server closes; a reset counts as that."""
        data = b""
        async with asyncio.timeout(DEADLINE_SECONDS):
            try:
                while part := await self.reader.read(1 << 16):
                    data += part
            except ConnectionResetError:
                pass
        return data

    def abort(self) -> None:
        """Close at once, without the politeness of a FIN where data is unread."""
        self.writer.transport.abort()


@asynccontextmanager
async def connected(port: int, host: str = "127.0.0.1") -> AsyncIterator[Connection]:
    """A connection for a ``with`` block."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        reader, writer = await asyncio.open_connection(host, port, limit=_READ_LIMIT)
    connection = Connection(reader, writer)
    try:
        yield connection
    finally:
        writer.transport.abort()


def head(
    method: str, target: str, headers: Sequence[tuple[str, str | bytes]] = (), host: str = "test"
) -> bytes:
    """Return a request's head."""
    lines = [f"{method} {target} HTTP/1.1\r\n".encode("latin-1")]
    for name, value in [("host", host), *headers]:
        encoded = value if isinstance(value, bytes) else value.encode("latin-1")
        lines.append(name.encode("latin-1") + b": " + encoded + b"\r\n")
    return b"".join([*lines, b"\r\n"])


async def fetch(
    port: int,
    target: str = "/",
    *,
    method: str = "GET",
    headers: Sequence[tuple[str, str | bytes]] = (),
    body: bytes | None = None,
    host: str = "test",
) -> Response:
    """Make one request on a connection of its own."""
    if body is not None:
        headers = [*headers, ("content-length", str(len(body)))]
    async with connected(port) as connection:
        data = head(method, target, headers, host) + (body or b"")
        # Both at once: a server may answer, and close, before it has read everything.
        sending = asyncio.create_task(_send_quietly(connection, data))
        try:
            return await connection.response(method)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def _send_quietly(connection: Connection, data: bytes) -> None:
    try:
        await connection.send(data)
    except ConnectionError:
        return
