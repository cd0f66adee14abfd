from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from containerd_shimkit.rpc.errors import LocalProtocolError, RemoteProtocolError
from containerd_shimkit.rpc.frames import (
    HEADER,
    MAX_PAYLOAD_BYTES,
    Frame,
    FrameDecoder,
    MessageType,
    Oversized,
    encode_frame,
)

frames = st.builds(
    Frame,
    stream_id=st.integers(0, 2**32 - 1),
    type=st.integers(0, 255),
    flags=st.integers(0, 255),
    payload=st.binary(max_size=300),
)


def test_frame_bytes() -> None:
    """The header is big-endian: length, stream id, type, flags."""
    frame = Frame(stream_id=1, type=MessageType.REQUEST, flags=0, payload=b"abc")
    assert encode_frame(frame) == bytes.fromhex("00000003 00000001 01 00") + b"abc"


@settings(deadline=None)
@given(st.lists(frames, max_size=8))
def test_frames_survive_the_wire(sent: list[Frame]) -> None:
    assert FrameDecoder().receive_data(b"".join(map(encode_frame, sent))) == sent


@settings(deadline=None)
@given(st.lists(frames, min_size=1, max_size=4), st.data())
def test_frames_split_anywhere(sent: list[Frame], data: st.DataObject) -> None:
    wire = b"".join(map(encode_frame, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    decoder = FrameDecoder()
    received = [
        frame
        for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)
        for frame in decoder.receive_data(wire[start:end])
    ]
    assert received == sent


def test_frame_split_at_every_byte() -> None:
    sent = [Frame(1, 1, 0, b"first"), Frame(3, 1, 2, b""), Frame(5, 3, 1, b"last")]
    wire = b"".join(map(encode_frame, sent))
    decoder = FrameDecoder()
    assert [f for byte in wire for f in decoder.receive_data(bytes([byte]))] == sent
    assert decoder.buffered_bytes == 0


@settings(deadline=None)
@given(st.lists(st.binary(max_size=64), max_size=20))
def test_garbage_is_a_remote_error_or_frames(chunks: list[bytes]) -> None:
    decoder = FrameDecoder()
    try:
        for chunk in chunks:
            decoder.receive_data(chunk)
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize("greeting", [b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\n", b"\xff" * 10])
def test_other_protocol_is_refused(greeting: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="not a ttrpc frame"):
        FrameDecoder().receive_data(greeting)


@pytest.mark.parametrize("chunk_bytes", [1 << 12, 65_537, 1 << 23])
def test_oversized_frame_is_skipped_without_being_stored(chunk_bytes: int) -> None:
    after = Frame(3, MessageType.REQUEST, 0, b"after")
    length = MAX_PAYLOAD_BYTES + 1
    wire = HEADER.pack(length, 1, MessageType.REQUEST, 0) + bytes(length) + encode_frame(after)
    decoder = FrameDecoder()
    received: list[Frame | Oversized] = []
    for start in range(0, len(wire), chunk_bytes):
        received += decoder.receive_data(wire[start : start + chunk_bytes])
        assert decoder.buffered_bytes < HEADER.size + len(after.payload)
    assert received == [Oversized(1, MessageType.REQUEST, length), after]


def test_largest_frame_is_accepted() -> None:
    frame = Frame(1, MessageType.REQUEST, 0, bytes(MAX_PAYLOAD_BYTES))
    assert FrameDecoder().receive_data(encode_frame(frame)) == [frame]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (Frame(1, 1, 0, bytes(MAX_PAYLOAD_BYTES + 1)), "message length 4194305 exceeds 4194304"),
        (Frame(1 << 32, 1, 0, b""), "exceeds 32 bits"),
    ],
    ids=["payload", "stream id"],
)
def test_encode_refuses_what_cannot_be_sent(frame: Frame, message: str) -> None:
    with pytest.raises(LocalProtocolError, match=message):
        encode_frame(frame)
