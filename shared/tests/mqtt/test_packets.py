"""Packets of MQTT 3.1.1, byte by byte."""

from __future__ import annotations

import pytest

from containerd_shimkit.mqtt.packets import (
    MAX_REST_BYTES,
    Login,
    Message,
    MqttProtocolError,
    PacketReader,
    PacketType,
    Qos,
    connect,
    puback,
    publish_head,
    pubrel,
    subscribe,
)

HEAD = b"\x00\x04MQTT\x04"


@pytest.mark.parametrize(
    ("login", "rest"),
    [
        (Login("", None, None), b"\x02\x00\x3c\x00\x00"),
        (Login("id", None, None), b"\x02\x00\x3c\x00\x02id"),
        (Login("id", "é", None), b"\x82\x00\x3c\x00\x02id\x00\x02\xc3\xa9"),
        (Login("id", "ann", "pw"), b"\xc2\x00\x3c\x00\x02id\x00\x03ann\x00\x02pw"),
        (Login("id", None, "pw"), b"\xc2\x00\x3c\x00\x02id\x00\x00\x00\x02pw"),
    ],
)
def test_connect(login: Login, rest: bytes) -> None:
    assert connect(login, 60) == b"\x10" + bytes([len(HEAD + rest)]) + HEAD + rest


def test_login_does_not_show_its_password() -> None:
    assert "s3cret" not in repr(Login("id", "ann", "s3cret"))


@pytest.mark.parametrize(
    ("qos", "head"),
    [
        (Qos.AT_MOST_ONCE, b"\x30\x08\x00\x03a/b"),
        (Qos.AT_LEAST_ONCE, b"\x32\x0a\x00\x03a/b\x01\x02"),
        (Qos.EXACTLY_ONCE, b"\x34\x0a\x00\x03a/b\x01\x02"),
    ],
)
def test_publish(qos: Qos, head: bytes) -> None:
    assert publish_head(b"a/b", 3, qos, 0x0102) == head


@pytest.mark.parametrize(
    ("length", "encoded"),
    [
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (16_383, b"\xff\x7f"),
        (16_384, b"\x80\x80\x01"),
        (2_097_151, b"\xff\xff\x7f"),
        (2_097_152, b"\x80\x80\x80\x01"),
        (MAX_REST_BYTES, b"\xff\xff\xff\x7f"),
    ],
)
def test_length(length: int, encoded: bytes) -> None:
    head = publish_head(b"a", length - 3, Qos.AT_MOST_ONCE, 0)
    assert head == b"\x30" + encoded + b"\x00\x01a"


def test_pubrel() -> None:
    assert pubrel(0x0102) == b"\x62\x02\x01\x02"


def test_puback() -> None:
    assert puback(0x0102) == b"\x40\x02\x01\x02"


def test_subscribe() -> None:
    sent = subscribe("a/+", Qos.AT_LEAST_ONCE, 0x0102)
    assert sent == b"\x82\x08\x01\x02\x00\x03a/+\x01"


STREAM = b"\x20\x02\x00\x05" + b"\x40\x02\x01\x02" + b"\xd0\x00" + b"\x50\x02\xff\xff"
PACKETS = [
    (PacketType.CONNACK, 5),
    (PacketType.PUBACK, 0x0102),
    (PacketType.PINGRESP, 0),
    (PacketType.PUBREC, 0xFFFF),
]


@pytest.mark.parametrize("size", range(1, len(STREAM) + 1))
def test_packets_split_anywhere(size: int) -> None:
    reader, found = PacketReader(), []
    for start in range(0, len(STREAM), size):
        found += reader.feed(STREAM[start : start + size])
    assert found == PACKETS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x30\x03\x00\x01a", "packet type 3 is not for a client"),
        (b"\x10\x00", "packet type 1 is not for a client"),
        (b"\x00\x00", "packet type 0"),
        (b"HTTP/1.1", "PUBACK with flags 8 and 84 bytes"),
        (b"\x40\x03", "PUBACK with flags 0 and 3 bytes"),
        (b"\x40\xff\xff\xff\x7f", "PUBACK with flags 0 and 255 bytes"),
        (b"\x41\x02", "PUBACK with flags 1"),
        (b"\xd0\x01", "PINGRESP with flags 0 and 1 bytes"),
    ],
)
def test_what_is_not_for_us(data: bytes, message: str) -> None:
    with pytest.raises(MqttProtocolError, match=message):
        PacketReader().feed(data)


MESSAGES = (
    b"\x30\x05\x00\x01tab" + b"\x33\x06\x00\x01t\x01\x02c" + b"\x90\x03\x01\x02\x80"
    b"\x32\xcc\x01\x00\x01t\x00\x07" + b"x" * 199
)
RECEIVED = [
    Message("t", b"ab", 0),
    Message("t", b"c", 0x0102),
    (PacketType.SUBACK, 0x010280),
    Message("t", b"x" * 199, 7),
]


@pytest.mark.parametrize("size", range(1, 20))
def test_messages_split_anywhere(size: int) -> None:
    reader, found = PacketReader(204), []
    for start in range(0, len(MESSAGES), size):
        found += reader.feed(MESSAGES[start : start + size])
    assert found == RECEIVED


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x30\x65", "a message is larger than 100 bytes"),
        (b"\x30\xff\xff\xff\x7f", "a message is larger than 100 bytes"),
        (b"\x30\x80\x80\x80\x80", "PUBLISH with a length that is none"),
        (b"\x34\x05\x00\x01t\x01\x02", "PUBLISH with flags 4"),
        (b"\x36\x05\x00\x01t\x01\x02", "PUBLISH with flags 6"),
        (b"\x32\x05\x00\x01t\x00\x00", "PUBLISH without its packet identifier"),
        (b"\x32\x04\x00\x01t\x00", "PUBLISH with 4 bytes"),
        (b"\x30\x03\x00\x09t", "PUBLISH with 3 bytes"),
        (b"\x30\x01\x00", "PUBLISH with 1 bytes"),
        (b"\x30\x00", "PUBLISH with 0 bytes"),
    ],
)
def test_message_that_cannot_be(data: bytes, message: str) -> None:
    with pytest.raises(MqttProtocolError, match=message):
        PacketReader(100).feed(data)
