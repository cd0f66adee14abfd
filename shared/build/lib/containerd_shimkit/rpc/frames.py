"""Frames of ttrpc, without I/O.

Rules:

- A frame is a header of 10 bytes and a payload of at most 4 MiB.
- A longer payload is announced as ``Oversized`` and then skipped, never stored: the frames after it
  are still good, and the call it belonged to can be answered with an error.
- The first byte of the header is reserved and 0. Anything else is another protocol (the first bytes
  of HTTP would announce a payload of gigabytes), so it is an error and no length to skip.
- Unknown types and flags are for the layer above to judge.

Source: PROTOCOL.md and channel.go of containerd/ttrpc.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from containerd_shimkit.rpc.errors import LocalProtocolError, RemoteProtocolError

HEADER = struct.Struct(">IIBB")
"""Length (bytes, header excluded), stream id, type, flags."""

MAX_PAYLOAD_BYTES = 4 << 20  # 4 MiB
MAX_STREAM_ID = (1 << 32) - 1


class MessageType(IntEnum):
    """What a frame is."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Flag(IntFlag):
    """Flags of a request or data frame; a unary request has none."""

    REMOTE_CLOSED = 0x1
    REMOTE_OPEN = 0x2
    NO_DATA = 0x4


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole frame."""

    stream_id: int
    type: int
    """A ``MessageType``, or a number that a later version may define."""
    flags: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Oversized:
    """A frame whose payload is too long and is not kept."""

    stream_id: int
    type: int
    length: int
    """Bytes, more than ``MAX_PAYLOAD_BYTES``."""

    def __str__(self) -> str:
        return f"message length {self.length} exceeds {MAX_PAYLOAD_BYTES} bytes"


def encode_frame(frame: Frame) -> bytes:
    """Return ``frame`` as bytes.

    Raises LocalProtocolError if the payload is too long or the stream id does not fit.
    """
    length = len(frame.payload)
    if length > MAX_PAYLOAD_BYTES:
        raise LocalProtocolError(f"message length {length} exceeds {MAX_PAYLOAD_BYTES} bytes")
    if not 0 <= frame.stream_id <= MAX_STREAM_ID:
        raise LocalProtocolError(f"stream id {frame.stream_id} exceeds 32 bits")
    return HEADER.pack(length, frame.stream_id, frame.type, frame.flags) + frame.payload


class FrameDecoder:
    """Turns bytes, split anywhere, into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    @property
    def buffered_bytes(self) -> int:
        """How much of an unfinished frame is held; less than a header and a payload."""
        return len(self._buffer)

    def receive_data(self, data: bytes) -> list[Frame | Oversized]:
        """Return what ``data`` completes, in order.

        Raises RemoteProtocolError if the peer does not speak ttrpc; the decoder is then useless.
        """
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._buffer += data[skipped:] if skipped else data
        found: list[Frame | Oversized] = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            length, stream_id, kind, flags = HEADER.unpack_from(self._buffer, start)
            if length >> 24:
                raise RemoteProtocolError(f"not a ttrpc frame: length {length:#010x}")
            end = start + HEADER.size + length
            if length > MAX_PAYLOAD_BYTES:
                found.append(Oversized(stream_id, kind, length))
                self._skip = max(0, end - len(self._buffer))
                start = min(end, len(self._buffer))
            elif end <= len(self._buffer):
                payload = bytes(self._buffer[start + HEADER.size : end])
                found.append(Frame(stream_id, kind, flags, payload))
                start = end
            else:
                break
        del self._buffer[:start]
        return found
