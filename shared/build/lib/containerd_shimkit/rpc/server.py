"""ttrpc on asyncio, the side that answers.

Rules:

- Handlers of one connection begin in the order of the requests and run concurrently, one task each.
- A handler that changes something is never stopped half-way: not by a deadline, not by a caller
  that went away, not by ``close``. The caller gets ``DEADLINE_EXCEEDED``, the handler goes on and
  its result is dropped. Only handlers marked ``cancellable``, which do nothing but wait or look,
  are cancelled.
- At most ``max_in_flight`` handlers run for a connection. Beyond that, or when the peer does not
  read its answers, nothing more is read from it.
- Only root and our own user are served.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from google.protobuf.message import DecodeError, Message

from containerd_shimkit.errors import Status
from containerd_shimkit.rpc.connection import RequestReceived, RequestRefused, ServerConnection
from containerd_shimkit.rpc.errors import LocalProtocolError, RemoteProtocolError

_log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 1024
"""Handlers running for one connection."""

CLOSE_TIMEOUT = 5.0
FLUSH_TIMEOUT = 1.0
ACCEPT_RETRY = 0.5

_UCRED = struct.Struct("=iII")  # pid, uid, gid: struct ucred of unix(7)


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service."""

    request: type[Message]
    handler: Callable[[Any], Awaitable[Message]]
    """Called with an instance of ``request``."""
    cancellable: bool = False
    """Whether the handler may be cancelled when nobody waits for its answer any more."""


@dataclass(eq=False, slots=True)
class _Call:
    stream_id: int
    name: str
    method: Method
    task: asyncio.Task[bytes]
    timer: asyncio.TimerHandle | None = field(default=None)
    answered: bool = False


class Server:
    """Serves methods on a listening unix socket."""

    def __init__(
        self,
        services: Mapping[str, Mapping[str, Method]],
        *,
        status_of: Callable[[BaseException], Status],
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        """
        services: service name, as on the wire, to method name to method.
        status_of: the status that tells the caller of an exception of a handler.
        """
        self._services = services
        self._status_of = status_of
        self._max_in_flight = max_in_flight
        self._peers: set[_Peer] = set()
        self._calls: set[_Call] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def start(self, sock: socket.socket) -> None:
        """Serve on ``sock``, which listens already and belongs to the server from now on."""
        sock.setblocking(False)
        self._listener = sock
        self._accepting = asyncio.create_task(self._accept(sock))

    async def close(self, timeout: float = CLOSE_TIMEOUT, linger: float = 0.0) -> None:
        """Stop serving: wait for the handlers that must finish, then close every connection.

        timeout: seconds for those handlers; one that takes longer goes on without an audience.
        linger: seconds in which the clients may close first. A client in Go that finds an answer
        and the end of the connection at once takes either.
        Not to be awaited by a handler, which would wait for itself.  The path of the socket is left
        to who bound it.
        """
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        if self._listener is not None:
            self._listener.close()
        for peer in self._peers:
            peer.drain()
        if self._calls:
            tasks = [call.task for call in self._calls]
            _, unfinished = await asyncio.wait(tasks, timeout=timeout)
            if unfinished:
                _log.warning("%d calls still run after %g s", len(unfinished), timeout)
        peers = list(self._peers)
        if peers and linger:
            await asyncio.wait([peer.lost for peer in peers], timeout=linger)
        for peer in peers:
            peer.transport.close()
        if peers:
            await asyncio.wait([peer.lost for peer in peers], timeout=FLUSH_TIMEOUT)
        for peer in peers:
            peer.transport.abort()

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(sock)
            except OSError as exc:
                # Out of descriptors or memory: the backlog waits until there is some again.
                _log.warning("cannot accept a connection: %s", exc)
                await asyncio.sleep(ACCEPT_RETRY)
                continue
            try:
                await self._welcome(accepted)
            except OSError as exc:
                accepted.close()
                _log.warning("cannot serve a connection: %s", exc)

    async def _welcome(self, accepted: socket.socket) -> None:
        uid = peer_uid(accepted)
        if uid not in (0, os.geteuid()):
            accepted.close()
            _log.warning("refused a connection of uid %d", uid)
            return
        accepted.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(self._new_peer, accepted)

    def _new_peer(self) -> _Peer:
        return _Peer(self._services, self._status_of, self._max_in_flight, self._peers, self._calls)


class _Peer(asyncio.Protocol):
    """One connection; in ``peers`` while it is open, its calls in ``calls`` while they run."""

    transport: asyncio.Transport

    def __init__(
        self,
        services: Mapping[str, Mapping[str, Method]],
        status_of: Callable[[BaseException], Status],
        max_in_flight: int,
        peers: set[_Peer],
        calls: set[_Call],
    ) -> None:
        self._services = services
        self._status_of = status_of
        self._max_in_flight = max_in_flight
        self._peers = peers
        self._all_calls = calls
        self._calls: set[_Call] = set()
        self._connection = ServerConnection()
        self._waiting: deque[RequestReceived | RequestRefused] = deque()
        self._loop = asyncio.get_running_loop()
        self._reading = True
        self._writable = True
        self._draining = False
        self.lost: asyncio.Future[None] = self._loop.create_future()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._peers.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._waiting.extend(self._connection.receive_data(data))
        except RemoteProtocolError as exc:
            _log.warning("closing a connection: %s", exc)
            self.transport.close()
            return
        self._begin_waiting()

    def pause_writing(self) -> None:
        self._writable = False
        self._begin_waiting()

    def resume_writing(self) -> None:
        self._writable = True
        self._begin_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._peers.discard(self)
        self._waiting.clear()
        for call in self._calls:
            self._abandon(call)
        self.lost.set_result(None)

    # Calls

    def drain(self) -> None:
        """Begin no further calls and cancel those that may be cancelled."""
        self._draining = True
        self._waiting.clear()
        for call in self._calls:
            if call.method.cancellable:
                call.task.cancel()

    def _begin_waiting(self) -> None:
        while self._waiting and self._has_room() and not self._draining:
            event = self._waiting.popleft()
            if isinstance(event, RequestRefused):
                self._send_status(event.stream_id, event.status, event.message)
            else:
                self._begin(event)
        self._set_reading(self._has_room() and not self._waiting)

    def _has_room(self) -> bool:
        return self._writable and len(self._calls) < self._max_in_flight

    def _set_reading(self, wanted: bool) -> None:
        if wanted == self._reading or self.transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def _begin(self, request: RequestReceived) -> None:
        name = f"{request.service}/{request.method}"
        method = self._services.get(request.service, {}).get(request.method)
        if method is None:
            what = "method" if request.service in self._services else "service"
            subject = name if what == "method" else request.service
            message = f"{what} {subject} is not implemented"
            self._send_status(request.stream_id, Status.UNIMPLEMENTED, message)
            return
        if request.timeout_nano < 0:
            message = f"{name}: the deadline had passed before the call"
            self._send_status(request.stream_id, Status.DEADLINE_EXCEEDED, message)
            return
        try:
            argument = method.request.FromString(request.payload)
        except DecodeError as exc:
            message = f"{name}: cannot parse the {method.request.DESCRIPTOR.name}: {exc}"
            self._send_status(request.stream_id, Status.INVALID_ARGUMENT, message)
            return
        call = _Call(
            request.stream_id, name, method, self._loop.create_task(_run(method, argument))
        )
        if request.timeout_nano:
            seconds = request.timeout_nano / 1e9
            call.timer = self._loop.call_later(seconds, self._expire, call, seconds)
        self._calls.add(call)
        self._all_calls.add(call)
        _log.debug("%s called", name)
        call.task.add_done_callback(lambda _: self._finish(call))

    def _expire(self, call: _Call, seconds: float) -> None:
        message = f"{call.name}: not done within {round(seconds, 3):g} s"
        self._send_status(call.stream_id, Status.DEADLINE_EXCEEDED, message)
        self._abandon(call)

    def _abandon(self, call: _Call) -> None:
        call.answered = True
        if call.timer is not None:
            call.timer.cancel()
        if call.method.cancellable:
            call.task.cancel()

    def _finish(self, call: _Call) -> None:
        self._calls.discard(call)
        self._all_calls.discard(call)
        if call.timer is not None:
            call.timer.cancel()
        exc = asyncio.CancelledError() if call.task.cancelled() else call.task.exception()
        if call.answered:
            if exc is not None and not isinstance(exc, asyncio.CancelledError):
                _log.warning("%s failed when nobody waited for it: %s", call.name, exc)
        elif exc is None:
            _log.debug("%s answered", call.name)
            self._send_response(call, call.task.result())
        else:
            self._send_error(call, exc)
        if not self.lost.done():
            self._begin_waiting()

    # Answers

    def _send_response(self, call: _Call, payload: bytes) -> None:
        try:
            wire = self._connection.send_response(call.stream_id, payload)
        except LocalProtocolError as exc:
            message = f"{call.name}: cannot send the response: {exc}"
            self._send_status(call.stream_id, Status.RESOURCE_EXHAUSTED, message)
        else:
            self.transport.write(wire)

    def _send_error(self, call: _Call, exc: BaseException) -> None:
        if isinstance(exc, asyncio.CancelledError):
            self._send_status(call.stream_id, Status.CANCELLED, f"{call.name} was cancelled")
            return
        status = self._status_of(exc)
        if status is Status.UNKNOWN:
            _log.error("%s failed", call.name, exc_info=exc)
        self._send_status(call.stream_id, status, str(exc) or type(exc).__name__)

    def _send_status(self, stream_id: int, status: Status, message: str) -> None:
        self.transport.write(self._connection.send_status(stream_id, status, message))


def peer_uid(sock: socket.socket) -> int:
    """Return the user id of the process that connected ``sock``. Source: unix(7), SO_PEERCRED."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(credentials)
    return int(uid)


async def _run(method: Method, argument: Message) -> bytes:
    return (await method.handler(argument)).SerializeToString()
