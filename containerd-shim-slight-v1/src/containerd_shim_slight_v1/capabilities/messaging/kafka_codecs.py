"""Kafka's compressed batches, within bounds: aiokafka has none, and fifty bytes may be a megabyte.

Whoever may publish to a topic could end every app that receives from it.

Source: aiokafka 0.14 codec.py, record/default_records.py, record/legacy_records.py; Apache Kafka,
"Record Batch".
"""

from __future__ import annotations

import mmap
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import cramjam
from aiokafka.errors import UnsupportedCodecError
from aiokafka.record import default_records, legacy_records

from containerd_shim_slight_v1.capabilities.messaging.base import MAX_MESSAGE_BYTES

Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_BATCH_BYTES: Final = 2 * MAX_MESSAGE_BYTES
"""Of the messages that are compressed together."""
_GZIP: Final = 16 + zlib.MAX_WBITS
_XERIAL: Final = b"\x82SNAPPY\0"
_XERIAL_HEAD_BYTES: Final = 16
_LENGTH: Final = struct.Struct(">i")


def _too_large() -> UnsupportedCodecError:
    return UnsupportedCodecError(f"a batch of more than {MAX_BATCH_BYTES} bytes")


def gzip_decode(payload: Buffer) -> bytes:
    """Raises UnsupportedCodecError, as all of these."""
    left, content = bytes(payload), bytearray()
    while left:
        member = zlib.decompressobj(_GZIP)
        try:
            content += member.decompress(left, MAX_BATCH_BYTES - len(content) + 1)
        except zlib.error as exc:
            raise UnsupportedCodecError(str(exc)) from None
        if len(content) > MAX_BATCH_BYTES:
            raise _too_large()
        if not member.eof:
            raise UnsupportedCodecError("a batch that is cut off")
        left = member.unused_data
    return bytes(content)


def snappy_decode(payload: Buffer) -> bytes:
    """Read Java's blocks, or a single one."""
    data = bytes(payload)
    if not data.startswith(_XERIAL):
        return _snappy_block(data, MAX_BATCH_BYTES)
    content, at = bytearray(), _XERIAL_HEAD_BYTES
    if at > len(data):
        raise UnsupportedCodecError("a batch that is cut off")
    while at < len(data):
        if at + _LENGTH.size > len(data):
            raise UnsupportedCodecError("a batch that is cut off")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if not 0 < length <= len(data) - at:
            raise UnsupportedCodecError("a batch that is cut off")
        content += _snappy_block(data[at : at + length], MAX_BATCH_BYTES - len(content))
        at += length
    return bytes(content)


def _snappy_block(data: bytes, most: int) -> bytes:
    try:
        if cramjam.snappy.decompress_raw_len(data) > most:
            raise _too_large()
        return bytes(cramjam.snappy.decompress_raw(data))
    except cramjam.DecompressionError as exc:
        raise UnsupportedCodecError(str(exc)) from None


def lz4_decode(payload: Buffer) -> bytes:
    return _into_room(cramjam.lz4.decompress_into, payload)


def zstd_decode(payload: Buffer) -> bytes:
    return _into_room(cramjam.zstd.decompress_into, payload)


def _into_room(decompress_into: Callable[[Any, Any], int], payload: Buffer) -> bytes:
    # Memory that is taken as it is filled.
    with mmap.mmap(-1, MAX_BATCH_BYTES) as room:
        try:
            count = decompress_into(bytes(payload), room)
        except cramjam.DecompressionError as exc:
            raise UnsupportedCodecError(f"more than {MAX_BATCH_BYTES} bytes, or {exc}") from None
        return room[:count]


def bound_decoders() -> None:
    """Have the library use these. It has no other place for them."""
    for decode in (gzip_decode, snappy_decode, lz4_decode, zstd_decode):
        for reader in (default_records.DefaultRecordBatch, legacy_records.LegacyRecordBatch):
            module = sys.modules[reader.__module__]
            if hasattr(module, decode.__name__):
                setattr(module, decode.__name__, decode)
