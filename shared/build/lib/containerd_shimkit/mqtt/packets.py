"""The packets of MQTT 3.1.1 that a client sends and gets. No I/O.

A packet: one byte of type and flags, the length of the rest in 7 bits a byte, the lowest first,
then the rest. Strings are UTF-8 after their length in two bytes; all numbers are big-endian.

Source: OASIS MQTT Version 3.1.1, sections 2 and 3; what is said there by number is said here so.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, TypeAlias

MAX_REST_BYTES: Final = 268_435_455  # four bytes of 7 bits: 2.2.3
MAX_STRING_BYTES: Final = 65_535
MAX_KEEP_ALIVE_SECONDS: Final = 65_535

_CLEAN_SESSION: Final = 0x02
_PASSWORD: Final = 0x40
_USER_NAME: Final = 0x80

REFUSALS: Final = {
    1: "it does not speak MQTT 3.1.1",
    2: "the client identifier is not allowed",
    3: "the server is unavailable",
    4: "bad user name or password",
    5: "not authorized",
}
"""What the return code of a CONNACK says: table 3.1."""


class PacketType(IntEnum):
    """Table 2.1, those with an answer or an asking packet here."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


class Qos(IntEnum):
    """How sure it is that a message arrives."""

    AT_MOST_ONCE = 0
    AT_LEAST_ONCE = 1
    EXACTLY_ONCE = 2


class MqttProtocolError(Exception):
    """The server sent what is not MQTT 3.1.1, or not for us."""


@dataclass(frozen=True, slots=True)
class Login:
    """Who connects; None is without."""

    client_id: str
    """Empty: the server chooses one."""
    username: str | None
    password: str | None = field(repr=False)


# Sent


def connect(login: Login, keep_alive_seconds: int) -> bytes:
    """Return a CONNECT: 3.1. keep_alive_seconds: 0 is none."""
    flags = _CLEAN_SESSION
    fields = [_string(login.client_id)]
    username, password = login.username, login.password
    if username is not None or password is not None:  # no password without a name: 3.1.2-22
        flags |= _USER_NAME
        fields.append(_string(username or ""))
    if password is not None:
        flags |= _PASSWORD
        fields.append(_string(password))
    head = _string("MQTT") + struct.pack(">BBH", 4, flags, keep_alive_seconds)
    return _packet(PacketType.CONNECT, 0, head + b"".join(fields))


def publish_head(topic: bytes, payload_bytes: int, qos: Qos, packet_id: int) -> bytes:
    """Return a PUBLISH up to its payload, which follows: 3.3.

    packet_id: without meaning for AT_MOST_ONCE.
    """
    head = struct.pack(">H", len(topic)) + topic
    if qos:
        head += struct.pack(">H", packet_id)
    return bytes([PacketType.PUBLISH << 4 | qos << 1]) + _length(len(head) + payload_bytes) + head


def puback(packet_id: int) -> bytes:
    """Return a PUBACK: 3.4."""
    return _packet(PacketType.PUBACK, 0, struct.pack(">H", packet_id))


def subscribe(topic_filter: str, qos: Qos, packet_id: int) -> bytes:
    """Return a SUBSCRIBE of one topic filter: 3.8."""
    rest = struct.pack(">H", packet_id) + _string(topic_filter) + bytes([qos])
    return _packet(PacketType.SUBSCRIBE, 2, rest)


def pubrel(packet_id: int) -> bytes:
    """Return a PUBREL: 3.6."""
    return _packet(PacketType.PUBREL, 2, struct.pack(">H", packet_id))


PINGREQ: Final = bytes([PacketType.PINGREQ << 4, 0])
DISCONNECT: Final = bytes([PacketType.DISCONNECT << 4, 0])


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">H", len(data)) + data


def _packet(kind: PacketType, flags: int, rest: bytes) -> bytes:
    return bytes([kind << 4 | flags]) + _length(len(rest)) + rest


def _length(length: int) -> bytes:
    digits = bytearray()
    while True:
        length, low = length >> 7, length & 0x7F
        digits.append(low | (0x80 if length else 0))
        if not length:
            return bytes(digits)


# Received

_REST_BYTES: Final = {
    PacketType.CONNACK: 2,
    PacketType.PUBACK: 2,
    PacketType.PUBREC: 2,
    PacketType.PUBCOMP: 2,
    PacketType.SUBACK: 3,  # of a SUBSCRIBE with one filter
    PacketType.PINGRESP: 0,
}


@dataclass(frozen=True, slots=True)
class Message:
    """What a server sends a subscriber."""

    topic: str
    payload: bytes
    packet_id: int
    """0 of those that want no answer."""


Packet: TypeAlias = tuple[PacketType, int] | Message


class PacketReader:
    """Finds packets in what arrives. All but messages are short."""

    def __init__(self, max_message_bytes: int | None = None) -> None:
        """max_message_bytes: with the topic. None: there is nothing to be sent to us."""
        self._buffer = bytearray()
        self._max_message_bytes = max_message_bytes

    def feed(self, data: bytes) -> list[Packet]:
        """Return each packet that is complete; of what is no message its type, and a number or 0.

        It is the return code of a CONNACK, the packet identifier of an answer to PUBLISH; of a
        SUBACK the packet identifier, times 256, and the return code.  Raises MqttProtocolError.
        """
        self._buffer += data
        found: list[Packet] = []
        while len(self._buffer) >= 2:
            is_message = self._is_message()
            head = self._message_head() if is_message else (2, self._short_size())
            if head is None or len(self._buffer) < sum(head):
                break
            start, size = head
            rest = bytes(self._buffer[start : start + size])
            if is_message:
                found.append(_message(self._buffer[0], rest))
            else:
                found.append((PacketType(self._buffer[0] >> 4), int.from_bytes(rest)))
            del self._buffer[: start + size]
        return found

    def _is_message(self) -> bool:
        return self._max_message_bytes is not None and self._buffer[0] >> 4 == PacketType.PUBLISH

    def _message_head(self) -> tuple[int, int] | None:
        """Return where the rest begins and its length, None if that has not come: 2.2.3."""
        size = 0
        for position, digit in enumerate(self._buffer[1:5]):
            size |= (digit & 0x7F) << 7 * position
            if size > (self._max_message_bytes or 0):
                raise MqttProtocolError(f"a message is larger than {self._max_message_bytes} bytes")
            if not digit & 0x80:
                return position + 2, size
        if len(self._buffer) >= 5:
            raise MqttProtocolError("PUBLISH with a length that is none")
        return None

    def _short_size(self) -> int:
        first, size = self._buffer[:2]
        try:
            kind = PacketType(first >> 4)
            expected = _REST_BYTES[kind]
        except (ValueError, KeyError):
            raise MqttProtocolError(f"packet type {first >> 4} is not for a client") from None
        if first & 0x0F or size != expected:
            raise MqttProtocolError(f"{kind.name} with flags {first & 0x0F} and {size} bytes")
        return size


def _message(first: int, rest: bytes) -> Message:
    """Return a PUBLISH with at most QoS 1, which is all that is subscribed to: 3.3."""
    qos = first >> 1 & 3
    if qos > Qos.AT_LEAST_ONCE:
        raise MqttProtocolError(f"PUBLISH with flags {first & 0x0F}")
    topic_end = 2 + int.from_bytes(rest[:2])
    start = topic_end + (2 if qos else 0)
    if start > len(rest) or len(rest) < 2:
        raise MqttProtocolError(f"PUBLISH with {len(rest)} bytes")
    packet_id = int.from_bytes(rest[topic_end:start])
    if qos and not packet_id:
        raise MqttProtocolError("PUBLISH without its packet identifier")
    return Message(rest[2:topic_end].decode(errors="replace"), rest[start:], packet_id)
