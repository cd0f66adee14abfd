"""One connection to a Redis server.

Rules:

- A connection is one user's at a time, who waits for the reply to each command before the next.
- Whatever ends a command before its reply, a cancellation too, ends the connection: the reply would
  be taken for that of the next command.
- When ``MAX_UNREAD_BYTES`` of replies wait to be read, the socket is not read until they are: a
  subscriber that is slow so holds back the server.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, cast

from containerd_shimkit.redis_client.address import RedisAddress
from containerd_shimkit.redis_client.protocol import (
    MAX_REPLY_BYTES,
    ProtocolError,
    Reply,
    ReplyError,
    ReplyParser,
    encode_command,
)
from containerd_shimkit.tls import TlsConfigError

CONNECT_SECONDS: Final = 10.0
"""For the name, the connection, TLS and the password together."""
MAX_UNREAD_BYTES: Final = 1 << 20
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 3))
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
_MAX_SHOWN: Final = 300


class Resolver(Protocol):
    """What finds the addresses of a host; see ``lookups``, and Spin's ``host.networks``."""

    @property
    def active(self) -> bool: ...

    async def resolve(self, host: str, port: int) -> list[str]: ...


class RedisError(Exception):
    """A command had no reply; the message names the server."""


class ServerError(RedisError):
    """The server's own error."""

    def __init__(self, address: RedisAddress, text: bytes) -> None:
        super().__init__(f"{address}: {shown(text)}")
        self.code = text.split(b" ", 1)[0]
        """Its first word, as ``WRONGTYPE``."""


class CannotConnectError(RedisError):
    """There is no connection, or the server does not let us in."""


class LoginRefusedError(CannotConnectError):
    """The server does not let us in."""


class ConnectTimeoutError(CannotConnectError):
    """There is no connection within ``CONNECT_SECONDS``."""


class ConnectionLostError(RedisError):
    """The connection ended before the reply."""


def shown(text: bytes) -> str:
    """Return a server's text for messages: one line, not too long."""
    line = "".join(
        c if c.isprintable() else "?" for c in text[:_MAX_SHOWN].decode(errors="replace")
    )
    return line + ("…" if len(text) > _MAX_SHOWN else "")


class RedisConnection(asyncio.Protocol):
    """Made by ``connect``."""

    def __init__(self, address: RedisAddress, max_reply_bytes: int) -> None:
        self.address = address
        self._parser = ReplyParser(max_reply_bytes)
        self._transport: asyncio.Transport | None = None
        self._replies: deque[Reply] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._failure: RedisError | None = None
        self._unread_bytes = 0
        self._paused = False
        self._poll = select.poll()

    # Of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self._poll.register(sock.fileno(), _GONE)

    def data_received(self, data: bytes) -> None:
        try:
            self._replies += self._parser.receive_data(data)
        except ProtocolError as exc:
            self._fail(RedisError(f"{self.address}: {exc}"))
            return
        if not self._replies:
            return
        self._wake()
        self._unread_bytes += len(data)
        if self._unread_bytes > MAX_UNREAD_BYTES and self._transport is not None:
            self._transport.pause_reading()
            self._paused = True

    def connection_lost(self, exc: Exception | None) -> None:
        reason = f": {exc}" if exc else ""
        self._fail(ConnectionLostError(f"{self.address}: the connection was closed{reason}"))

    def _fail(self, failure: RedisError) -> None:
        if self._failure is None:
            self._failure = failure
        self.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Of the user

    @property
    def usable(self) -> bool:
        """Whether a command can be sent; the kernel may know of an end before the loop does."""
        return (
            self._failure is None
            and self._transport is not None
            and not self._transport.is_closing()
            and not self._replies
            and not self._poll.poll(0)
        )

    async def call(self, *arguments: bytes) -> Reply:
        """Send a command and return its reply, which is no error. Raises RedisError."""
        self.send(arguments)
        reply = await self.read()
        if isinstance(reply, ReplyError):
            raise ServerError(self.address, reply.text)
        return reply

    def send(self, *commands: Sequence[bytes]) -> None:
        """Send commands; each has its reply to ``read``."""
        if self._transport is not None:
            self._transport.write(b"".join(map(encode_command, commands)))

    async def read(self) -> Reply:
        """Return the next reply. Raises RedisError; then, or if cancelled, the connection ends."""
        while not self._replies:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except BaseException:
                self.abort()
                raise
            finally:
                self._waiter = None
        reply = self._replies.popleft()
        if not self._replies:
            self._unread_bytes = 0
            if self._paused and self._transport is not None:
                self._paused = False
                self._transport.resume_reading()
        return reply

    def abort(self) -> None:
        """Close the connection at once."""
        if self._failure is None:
            self._failure = ConnectionLostError(f"{self.address}: the connection was closed")
        if self._transport is not None:
            self._transport.abort()


async def connect(
    address: RedisAddress,
    tls: Callable[[], ssl.SSLContext],
    networks: Resolver | None = None,
    *,
    max_reply_bytes: int = MAX_REPLY_BYTES,
) -> RedisConnection:
    """Return a connection that is logged in.

    tls: returns the context for ``rediss://``; may raise TlsConfigError.  networks: None is any.
    Raises CannotConnectError and what ``networks`` raises.
    """
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await _open(address, tls, networks, max_reply_bytes)
            await _log_in(connection)
            return connection
    except TimeoutError:
        raise ConnectTimeoutError(
            f"{address}: cannot connect: no answer within {CONNECT_SECONDS:g} s"
        ) from None
    except OSError as exc:
        raise CannotConnectError(f"{address}: cannot connect: {_reason(exc)}") from exc
    except TlsConfigError as exc:
        raise CannotConnectError(f"{address}: cannot connect: {exc}") from exc


async def _open(
    address: RedisAddress,
    tls: Callable[[], ssl.SSLContext],
    networks: Resolver | None,
    max_reply_bytes: int,
) -> RedisConnection:
    hosts = [address.host]
    if networks is not None and networks.active:
        hosts = await networks.resolve(address.host, address.port)
    security: dict[str, Any] = {}
    if address.tls:
        security = {"ssl": tls(), "server_hostname": address.host}
    loop = asyncio.get_running_loop()
    for host in hosts:
        made = RedisConnection(address, max_reply_bytes)
        try:
            await loop.create_connection(partial(_same, made), host, address.port, **security)
        except OSError:
            if host == hosts[-1]:
                raise
        except BaseException:
            made.abort()
            raise
        else:
            return made
    raise OSError("the host has no address")


def _same(connection: RedisConnection) -> RedisConnection:
    return connection


async def _log_in(connection: RedisConnection) -> None:
    address = connection.address
    commands: list[Sequence[bytes]] = []
    if address.password is not None:
        user = () if address.username is None else (address.username,)
        commands.append((b"AUTH", *user, address.password))
    if address.database:
        commands.append((b"SELECT", b"%d" % address.database))
    if not commands:
        return
    try:
        connection.send(*commands)
        for _ in commands:
            reply = await connection.read()
            if isinstance(reply, ReplyError):
                raise LoginRefusedError(f"{address}: {shown(reply.text)}")
    except ConnectionLostError as exc:
        raise CannotConnectError(str(exc)) from exc
    except BaseException:
        connection.abort()
        raise


def _reason(exc: OSError) -> str:
    return exc.strerror or str(exc) or type(exc).__name__
