"""Calls on one ttrpc connection, without I/O: bytes in, events out; calls in, bytes out.

Rules:

- The client opens a stream for each call. Its ids are odd and increase; an even or reused id is a
  ``RemoteProtocolError``, since no answer could be told from that of the call it belongs to.
- Only unary calls are served. One that wants to go on sending (``REMOTE_OPEN``) is refused; its
  data frames, which follow before it knows, are ignored.
- A request that cannot be read, or is too long, is refused and the connection stays good.
- A response ends the stream, exactly one for each request.
- Frames of unknown type are ignored: that is how the protocol may grow.

Source: PROTOCOL.md and server.go of containerd/ttrpc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from containerd_shimkit.errors import Status
from containerd_shimkit.proto import ttrpc_pb2
from containerd_shimkit.rpc.errors import LocalProtocolError, RemoteProtocolError
from containerd_shimkit.rpc.frames import (
    Flag,
    Frame,
    FrameDecoder,
    MessageType,
    Oversized,
    encode_frame,
)

MAX_STATUS_MESSAGE_CHARS = 16 << 10
"""A longer message of an error is cut; containerd logs it and shows it to users."""


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A call to be answered with ``send_response`` or ``send_status``."""

    stream_id: int
    service: str
    method: str
    payload: bytes
    timeout_nano: int
    """Nanoseconds from now; 0 means no deadline, less than 0 that it has passed."""
    metadata: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A call that cannot be served, to be answered with ``send_status`` and this."""

    stream_id: int
    status: Status
    message: str


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """The answer to a call; ``payload`` counts only if ``status`` is OK."""

    stream_id: int
    status: Status
    message: str
    payload: bytes


class ServerConnection:
    """The side that answers."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self._last_stream_id = 0
        self._open: set[int] = set()

    def receive_data(self, data: bytes) -> list[RequestReceived | RequestRefused]:
        """Return the calls that ``data`` completes.

        Raises RemoteProtocolError; the connection is then to be closed.
        """
        events = [self._receive(frame) for frame in self._decoder.receive_data(data)]
        return [event for event in events if event is not None]

    def send_response(self, stream_id: int, payload: bytes) -> bytes:
        """Return the bytes that answer the call with ``payload``.

        Raises LocalProtocolError if there is no such call, or the payload is too long; the call can
        then still be answered with ``send_status``.
        """
        return self._respond(stream_id, ttrpc_pb2.Response(payload=payload))

    def send_status(self, stream_id: int, status: Status, message: str) -> bytes:
        """Return the bytes that answer the call with an error.

        Raises LocalProtocolError if there is no such call.
        """
        # A path from the file system may hold what UTF-8 cannot.
        text = message[:MAX_STATUS_MESSAGE_CHARS].encode(errors="backslashreplace").decode()
        answer = ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=status, message=text))
        return self._respond(stream_id, answer)

    def _receive(self, frame: Frame | Oversized) -> RequestReceived | RequestRefused | None:
        if frame.type == MessageType.RESPONSE:
            raise RemoteProtocolError("a client sent a response")
        if frame.type == MessageType.DATA and frame.stream_id > self._last_stream_id:
            raise RemoteProtocolError(f"data on stream {frame.stream_id}, which was never opened")
        if frame.type != MessageType.REQUEST:
            return None
        self._open_stream(frame.stream_id)
        if isinstance(frame, Oversized):
            return RequestRefused(frame.stream_id, Status.RESOURCE_EXHAUSTED, str(frame))
        if frame.flags & Flag.REMOTE_OPEN:
            return RequestRefused(
                frame.stream_id, Status.UNIMPLEMENTED, "streaming calls are not supported"
            )
        try:
            request = ttrpc_pb2.Request.FromString(frame.payload)
        except DecodeError as exc:
            return RequestRefused(
                frame.stream_id, Status.INVALID_ARGUMENT, f"cannot parse the request: {exc}"
            )
        return RequestReceived(
            stream_id=frame.stream_id,
            service=request.service,
            method=request.method,
            payload=request.payload,
            timeout_nano=request.timeout_nano,
            metadata=tuple((pair.key, pair.value) for pair in request.metadata),
        )

    def _open_stream(self, stream_id: int) -> None:
        if stream_id % 2 == 0:
            raise RemoteProtocolError(f"stream id {stream_id} of a client is even")
        if stream_id <= self._last_stream_id:
            raise RemoteProtocolError(
                f"stream id {stream_id} does not increase, the last was {self._last_stream_id}"
            )
        self._last_stream_id = stream_id
        self._open.add(stream_id)

    def _respond(self, stream_id: int, response: ttrpc_pb2.Response) -> bytes:
        if stream_id not in self._open:
            raise LocalProtocolError(f"stream {stream_id} has no call to answer")
        frame = Frame(stream_id, MessageType.RESPONSE, 0, response.SerializeToString())
        wire = encode_frame(frame)
        self._open.remove(stream_id)
        return wire


class ClientConnection:
    """The side that calls."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self._next_stream_id = 1
        self._open: set[int] = set()

    def send_request(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout_nano: int = 0,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> tuple[int, bytes]:
        """Return the new stream id and the bytes of the call.

        Raises LocalProtocolError if the payload is too long or all stream ids are used up; no call
        was begun then.
        """
        request = ttrpc_pb2.Request(
            service=service,
            method=method,
            payload=payload,
            timeout_nano=timeout_nano,
            metadata=[ttrpc_pb2.KeyValue(key=key, value=value) for key, value in metadata],
        )
        stream_id = self._next_stream_id
        frame = Frame(stream_id, MessageType.REQUEST, 0, request.SerializeToString())
        wire = encode_frame(frame)
        self._next_stream_id += 2
        self._open.add(stream_id)
        return stream_id, wire

    def receive_data(self, data: bytes) -> list[ResponseReceived]:
        """Return the answers that ``data`` completes.

        Raises RemoteProtocolError; the connection is then to be closed.
        """
        events = [self._receive(frame) for frame in self._decoder.receive_data(data)]
        return [event for event in events if event is not None]

    def _receive(self, frame: Frame | Oversized) -> ResponseReceived | None:
        if frame.type == MessageType.REQUEST:
            raise RemoteProtocolError("a server sent a request")
        if frame.type == MessageType.DATA:
            raise RemoteProtocolError(f"data on stream {frame.stream_id}, which is unary")
        if frame.type != MessageType.RESPONSE:
            return None
        if frame.stream_id not in self._open:
            raise RemoteProtocolError(f"response on stream {frame.stream_id}, which is not open")
        self._open.remove(frame.stream_id)
        if isinstance(frame, Oversized):
            return ResponseReceived(frame.stream_id, Status.RESOURCE_EXHAUSTED, str(frame), b"")
        try:
            response = ttrpc_pb2.Response.FromString(frame.payload)
        except DecodeError as exc:
            raise RemoteProtocolError(f"cannot parse a response: {exc}") from exc
        return ResponseReceived(
            stream_id=frame.stream_id,
            status=_known_status(response.status.code),
            message=response.status.message,
            payload=response.payload,
        )


def _known_status(code: int) -> Status:
    try:
        return Status(code)
    except ValueError:
        return Status.UNKNOWN
