"""ttrpc on asyncio, the side that calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar, cast

from google.protobuf.message import DecodeError, Message

from containerd_shimkit.errors import InvalidArgumentError, Status
from containerd_shimkit.rpc.connection import ClientConnection, ResponseReceived
from containerd_shimkit.rpc.errors import RemoteError, RemoteProtocolError

M = TypeVar("M", bound=Message)

CLOSE_TIMEOUT = 1.0


class Client:
    """One connection to a ttrpc server; any number of calls at a time."""

    def __init__(self, link: _Link) -> None:
        """Use ``connect``."""
        self._link = link

    @classmethod
    async def connect(cls, address: str, timeout: float) -> Client:
        """Return a client of the server at ``address``: ``unix:///path`` or ``/path``.

        timeout: seconds.
        Raises OSError, of which TimeoutError is one, if nobody answers there, and
        InvalidArgumentError if the address is of another form.
        """
        path = socket_path(address)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout):
            _, link = await loop.create_unix_connection(_Link, path)
        return cls(link)

    @property
    def closed(self) -> bool:
        """Whether the connection is gone; every further call fails."""
        return self._link.transport.is_closing()

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_type: type[M],
        *,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> M:
        """Return the answer to ``request``.

        timeout: seconds, told to the server and enforced here too; None waits for ever.
        Raises RemoteError if the answer is an error or late, ConnectionError if the connection is
        or gets lost (whether the call was carried out is not known then), LocalProtocolError if the
        request is too long, and RemoteProtocolError if the answer is no ``response_type``.
        """
        name = f"{service}/{method}"
        if self.closed:
            raise ConnectionResetError(f"{name}: the connection is closed")
        timeout_nano = 0 if timeout is None else max(1, int(timeout * 1e9))
        stream_id, wire = self._link.connection.send_request(
            service,
            method,
            request.SerializeToString(),
            timeout_nano=timeout_nano,
            metadata=metadata,
        )
        try:
            async with asyncio.timeout(timeout):
                response = await self._link.exchange(stream_id, wire)
        except TimeoutError:
            message = f"{name}: no answer within {timeout:g} s"
            raise RemoteError(Status.DEADLINE_EXCEEDED, message) from None
        if response.status is not Status.OK:
            raise RemoteError(response.status, response.message)
        try:
            return response_type.FromString(response.payload)
        except DecodeError as exc:
            raise RemoteProtocolError(f"{name}: cannot parse the response: {exc}") from exc

    async def close(self) -> None:
        """Close the connection; calls in flight fail with ConnectionError."""
        transport = self._link.transport
        transport.close()
        await asyncio.wait([self._link.lost], timeout=CLOSE_TIMEOUT)
        transport.abort()


class _Link(asyncio.Protocol):
    """The connection and who waits for what on it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.connection = ClientConnection()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._pending: dict[int, asyncio.Future[ResponseReceived]] = {}
        self._fault: Exception | None = None

    async def exchange(self, stream_id: int, wire: bytes) -> ResponseReceived:
        answer: asyncio.Future[ResponseReceived] = self._loop.create_future()
        self._pending[stream_id] = answer
        self.transport.write(wire)
        try:
            return await answer
        finally:
            self._pending.pop(stream_id, None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            responses = self.connection.receive_data(data)
        except RemoteProtocolError as exc:
            self._fault = exc
            self.transport.abort()
            return
        for response in responses:
            # A call that timed out is no longer there.
            answer = self._pending.pop(response.stream_id, None)
            if answer is not None and not answer.done():
                answer.set_result(response)

    def connection_lost(self, exc: Exception | None) -> None:
        cause = self._fault or exc
        for answer in self._pending.values():
            if not answer.done():
                error = ConnectionResetError(f"connection lost: {cause or 'closed'}")
                error.__cause__ = cause
                answer.set_exception(error)
        self._pending.clear()
        self.lost.set_result(None)


def socket_path(address: str) -> str:
    """Return the path in ``unix:///path`` or ``/path``.

    Raises InvalidArgumentError.
    """
    path = address.removeprefix("unix://")
    if not path.startswith("/"):
        raise InvalidArgumentError(f"address {address!r} is no absolute path of a unix socket")
    return path
