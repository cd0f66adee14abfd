"""A small gRPC client: synchronous, unary and server-streaming calls over a unix socket.

For commands a person runs; shims speak ttrpc. HTTP/2 itself is h2's, which does no I/O. Source of
the rest: grpc/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Final, Self, TypeVar
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
from google.protobuf.message import DecodeError, Message

from containerd_shimkit.errors import ShimError, Status, UnavailableError

MAX_MESSAGE_BYTES: Final = 16 << 20
_PREFIX_BYTES: Final = 5  # a flag and the length, big endian
_READ_BYTES: Final = 64 << 10
_WINDOW_BYTES: Final = 4 << 20  # how far the server may be ahead of what was read

M = TypeVar("M", bound=Message)


class GrpcError(ShimError):
    """The server refused a call; ``code`` is its status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message or f"gRPC status {code}")
        self.code = code


class GrpcClient:
    """One connection, one call at a time. Use as a context manager."""

    def __init__(
        self,
        address: str,
        *,
        seconds: float = 30.0,
        metadata: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """address: path of the socket; seconds: that the server may be silent; metadata: of each
        call. Raises UnavailableError."""
        self._address = address
        self._metadata = list(metadata.items())
        self._seconds = seconds
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(address)
            config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
            self._http = h2.connection.H2Connection(config)
            self._http.initiate_connection()
            self._http.increment_flow_control_window(_WINDOW_BYTES)
            self._flush()
        except OSError as exc:
            self._socket.close()
            raise UnavailableError(f"{address}: {exc.strerror or exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def unary(self, service: str, method: str, request: Message, answer: type[M]) -> M:
        """Call and return the one answer. Raises GrpcError, UnavailableError."""
        found = list(self.stream(service, method, request, answer))
        if len(found) != 1:
            raise UnavailableError(f"{self._address}: {len(found)} answers to {method}, not one")
        return found[0]

    def stream(self, service: str, method: str, request: Message, answer: type[M]) -> Iterator[M]:
        """Call and yield the answers as they come.

        Who does not read to the end closes the client. Raises GrpcError, UnavailableError.
        """
        try:
            call = self._send(f"/{service}/{method}", request.SerializeToString())
            for data in self._messages(call):
                yield answer.FromString(data)
        except (OSError, h2.exceptions.ProtocolError, DecodeError) as exc:
            raise UnavailableError(f"{self._address}: {exc}") from exc

    def _send(self, path: str, data: bytes) -> int:
        call = self._http.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *self._metadata,
        ]
        body = b"\0" + len(data).to_bytes(4, "big") + data
        self._http.send_headers(call, headers)
        # Requests are names: far below the window that every connection begins with.
        self._http.send_data(call, body, end_stream=True)
        self._http.increment_flow_control_window(_WINDOW_BYTES, call)
        self._flush()
        return call

    def _messages(self, call: int) -> Iterator[bytes]:
        buffer = bytearray()
        for event in self._events():
            if isinstance(event, h2.events.DataReceived) and event.stream_id == call:
                buffer += event.data or b""
                self._http.acknowledge_received_data(event.flow_controlled_length or 0, call)
                self._flush()
                while (message := _take_message(buffer)) is not None:
                    yield message
            elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                if event.stream_id == call:
                    _check_status({str(name): str(value) for name, value in event.headers or ()})
            elif isinstance(event, h2.events.StreamEnded) and event.stream_id == call:
                if buffer:
                    raise UnavailableError(f"{self._address}: the answer ends in a message")
                return
            elif isinstance(event, h2.events.StreamReset) and event.stream_id == call:
                raise UnavailableError(f"{self._address}: reset the call: {event.error_code}")

    def _events(self) -> Iterator[h2.events.Event]:
        """Yield what comes. Raises UnavailableError at the end of the connection."""
        left = self._seconds  # for waiting alone: what the reader does between is not the server's
        while True:
            begin = time.monotonic()
            self._socket.settimeout(max(0.001, left))
            data = self._socket.recv(_READ_BYTES)
            left -= time.monotonic() - begin
            if not data:
                raise UnavailableError(f"{self._address}: the connection was closed")
            for event in self._http.receive_data(data):
                if isinstance(event, h2.events.ConnectionTerminated):
                    raise UnavailableError(f"{self._address}: ended the connection")
                if isinstance(event, h2.events.DataReceived):
                    left = self._seconds
                yield event
            self._flush()

    def _flush(self) -> None:
        self._socket.sendall(self._http.data_to_send())


def _take_message(buffer: bytearray) -> bytes | None:
    if len(buffer) < _PREFIX_BYTES:
        return None
    if buffer[0] != 0:
        raise UnavailableError("a compressed message, which was not asked for")
    length = int.from_bytes(buffer[1:_PREFIX_BYTES], "big")
    if length > MAX_MESSAGE_BYTES:
        raise UnavailableError(f"a message of {length} bytes; at most {MAX_MESSAGE_BYTES} are read")
    if len(buffer) < _PREFIX_BYTES + length:
        return None
    message = bytes(buffer[_PREFIX_BYTES : _PREFIX_BYTES + length])
    del buffer[: _PREFIX_BYTES + length]
    return message


def _check_status(headers: Mapping[str, str]) -> None:
    text = headers.get("grpc-status", "0")  # it comes with the trailers
    code = int(text) if text.isdecimal() else int(Status.UNKNOWN)
    if code:
        raise GrpcError(code, unquote(headers.get("grpc-message", "")))
