from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from containerd_shimkit.errors import Status
from containerd_shimkit.proto import ttrpc_pb2
from containerd_shimkit.rpc.connection import (
    ClientConnection,
    RequestReceived,
    RequestRefused,
    ResponseReceived,
    ServerConnection,
)
from containerd_shimkit.rpc.errors import LocalProtocolError, RemoteProtocolError
from containerd_shimkit.rpc.frames import (
    HEADER,
    MAX_PAYLOAD_BYTES,
    Flag,
    Frame,
    MessageType,
    encode_frame,
)


def request_frame(stream_id: int, flags: int = 0, payload: bytes | None = None) -> bytes:
    message = ttrpc_pb2.Request(service="s", method="m").SerializeToString()
    return encode_frame(
        Frame(stream_id, MessageType.REQUEST, flags, message if payload is None else payload)
    )


def test_request_carries_everything() -> None:
    client, server = ClientConnection(), ServerConnection()
    stream_id, wire = client.send_request(
        "service", "Method", b"payload", timeout_nano=5, metadata=[("k", "1"), ("k", "2")]
    )
    assert server.receive_data(wire) == [
        RequestReceived(stream_id, "service", "Method", b"payload", 5, (("k", "1"), ("k", "2")))
    ]


def test_stream_ids_are_odd_and_increase() -> None:
    client = ClientConnection()
    assert [client.send_request("s", "m", b"")[0] for _ in range(3)] == [1, 3, 5]


def test_responses_may_come_in_any_order() -> None:
    client, server = ClientConnection(), ServerConnection()
    for _ in range(2):
        server.receive_data(client.send_request("s", "m", b"")[1])
    wire = server.send_response(3, b"later") + server.send_response(1, b"earlier")
    assert client.receive_data(wire) == [
        ResponseReceived(3, Status.OK, "", b"later"),
        ResponseReceived(1, Status.OK, "", b"earlier"),
    ]


def test_status_reaches_the_client() -> None:
    client, server = ClientConnection(), ServerConnection()
    server.receive_data(client.send_request("s", "m", b"")[1])
    wire = server.send_status(1, Status.NOT_FOUND, "no task a")
    assert client.receive_data(wire) == [ResponseReceived(1, Status.NOT_FOUND, "no task a", b"")]


@pytest.mark.parametrize(
    ("message", "received"),
    [("a/\udcff", "a/\\udcff"), ("x" * 100_000, "x" * (16 << 10))],
    ids=["not UTF-8", "too long"],
)
def test_status_message_is_made_sendable(message: str, received: str) -> None:
    client, server = ClientConnection(), ServerConnection()
    server.receive_data(client.send_request("s", "m", b"")[1])
    [event] = client.receive_data(server.send_status(1, Status.UNKNOWN, message))
    assert event.message == received


def test_unknown_status_code_becomes_unknown() -> None:
    client = ClientConnection()
    client.send_request("s", "m", b"")
    response = ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=99, message="new"))
    wire = encode_frame(Frame(1, MessageType.RESPONSE, 0, response.SerializeToString()))
    assert client.receive_data(wire) == [ResponseReceived(1, Status.UNKNOWN, "new", b"")]


@pytest.mark.parametrize(
    ("wire", "status", "message"),
    [
        (request_frame(1, Flag.REMOTE_OPEN), Status.UNIMPLEMENTED, "streaming"),
        (request_frame(1, payload=b"\xff"), Status.INVALID_ARGUMENT, "cannot parse"),
        (
            HEADER.pack(MAX_PAYLOAD_BYTES + 1, 1, MessageType.REQUEST, 0),
            Status.RESOURCE_EXHAUSTED,
            "message length 4194305 exceeds 4194304 bytes",
        ),
    ],
    ids=["streaming", "garbage", "oversized"],
)
def test_refused_request(wire: bytes, status: Status, message: str) -> None:
    server = ServerConnection()
    [event] = server.receive_data(wire)
    assert isinstance(event, RequestRefused)
    assert (event.stream_id, event.status) == (1, status)
    assert message in event.message
    assert server.send_status(1, event.status, event.message)


def test_data_of_a_refused_stream_is_ignored() -> None:
    server = ServerConnection()
    server.receive_data(request_frame(1, Flag.REMOTE_OPEN))
    assert server.receive_data(encode_frame(Frame(1, MessageType.DATA, 0, b"x"))) == []


def test_unary_request_marked_closed_is_served() -> None:
    """No more data is to come: one response is what the caller expects."""
    [event] = ServerConnection().receive_data(request_frame(1, Flag.REMOTE_CLOSED))
    assert isinstance(event, RequestReceived)


def test_frame_of_unknown_type_is_ignored() -> None:
    wire = encode_frame(Frame(1, 9, 0, b"from the future"))
    assert ServerConnection().receive_data(wire) == []
    assert ClientConnection().receive_data(wire) == []


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (request_frame(2), "even"),
        (request_frame(3) + request_frame(3), "does not increase"),
        (request_frame(3) + request_frame(1), "does not increase"),
        (encode_frame(Frame(1, MessageType.DATA, 0, b"")), "never opened"),
        (encode_frame(Frame(1, MessageType.RESPONSE, 0, b"")), "sent a response"),
    ],
    ids=["even", "duplicate", "decreasing", "data", "response"],
)
def test_server_detects_protocol_errors(wire: bytes, message: str) -> None:
    with pytest.raises(RemoteProtocolError, match=message):
        ServerConnection().receive_data(wire)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (Frame(3, MessageType.RESPONSE, 0, b""), "not open"),
        (Frame(1, MessageType.REQUEST, 0, b""), "sent a request"),
        (Frame(1, MessageType.DATA, 0, b""), "unary"),
        (Frame(1, MessageType.RESPONSE, 0, b"\xff"), "cannot parse"),
    ],
    ids=["unknown stream", "request", "data", "garbage"],
)
def test_client_detects_protocol_errors(frame: Frame, message: str) -> None:
    client = ClientConnection()
    client.send_request("s", "m", b"")
    with pytest.raises(RemoteProtocolError, match=message):
        client.receive_data(encode_frame(frame))


def test_second_response_is_a_local_error() -> None:
    server = ServerConnection()
    server.receive_data(request_frame(1))
    server.send_response(1, b"")
    with pytest.raises(LocalProtocolError, match="no call to answer"):
        server.send_response(1, b"")


def test_too_long_response_can_still_be_answered() -> None:
    server = ServerConnection()
    server.receive_data(request_frame(1))
    with pytest.raises(LocalProtocolError, match="exceeds"):
        server.send_response(1, bytes(MAX_PAYLOAD_BYTES))
    assert server.send_status(1, Status.RESOURCE_EXHAUSTED, "too long")


def test_too_long_request_begins_no_call() -> None:
    client = ClientConnection()
    with pytest.raises(LocalProtocolError, match="exceeds"):
        client.send_request("s", "m", bytes(MAX_PAYLOAD_BYTES))
    assert client.send_request("s", "m", b"")[0] == 1


def test_oversized_response_fails_that_call_only() -> None:
    client = ClientConnection()
    client.send_request("s", "m", b"")
    length = MAX_PAYLOAD_BYTES + 1
    [event] = client.receive_data(HEADER.pack(length, 1, MessageType.RESPONSE, 0) + bytes(length))
    assert event.status is Status.RESOURCE_EXHAUSTED


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_a_remote_error_or_events(data: bytes) -> None:
    for connection in (ServerConnection(), ClientConnection()):
        with contextlib.suppress(RemoteProtocolError):
            connection.receive_data(data)


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(1, 3), st.integers(0, 7), st.binary(max_size=40))
def test_garbage_in_good_frames_is_a_remote_error_or_events(
    stream_id: int, kind: int, flags: int, payload: bytes
) -> None:
    wire = encode_frame(Frame(stream_id, kind, flags, payload))
    client = ClientConnection()
    client.send_request("s", "m", b"")
    for connection in (ServerConnection(), client):
        with contextlib.suppress(RemoteProtocolError):
            connection.receive_data(wire)
