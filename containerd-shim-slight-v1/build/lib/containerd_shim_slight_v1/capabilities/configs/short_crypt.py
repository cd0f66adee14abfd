"""ShortCrypt, by which SpiderLightning hides secrets in a slightfile.

It keeps readers of the file from seeing a secret, and no more: it is no strong encryption.

- The key is hashed by CRC-64/WE to eight bytes; the plaintext by CRC-8/CDMA2000 to five bits, the
  *base*.
- Each byte is combined with a byte of the hashed key and the base. Then bytes change places, in an
  order that follows from their sum and the key.
- The text is base64url of these, without padding, and one character for the base, at a place that
  follows from the sum of all characters and the key.

Source: short-crypt 1.0.27, https://docs.rs/short-crypt, and its examples.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

_MASK_64: Final = (1 << 64) - 1
_CRC_64_POLYNOMIAL: Final = 0x42F0E1EBA9EA3693
_CRC_8_POLYNOMIAL: Final = 0x9B
_BASES: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUV"
_TEXT: Final = re.compile("[A-Za-z0-9_-]+")


class UndecryptableError(Exception):
    """The text is not a secret that this key has hidden."""


def encrypt(key: str, plaintext: bytes) -> str:
    """Return the text that hides ``plaintext``."""
    hashed = _crc_64(key.encode())
    base = _base_of(plaintext)
    content = _combined(hashed, base, plaintext)
    for here, there in enumerate(_places(hashed, base, content)):
        content[here], content[there] = content[there], content[here]
    text = base64.urlsafe_b64encode(content).rstrip(b"=").decode()
    character = _BASES[base]
    at = _place_of_base(key, text + character)
    return text[:at] + character + text[at:]


def decrypt(key: str, text: str) -> bytes:
    """Return what ``text`` hides. Raises UndecryptableError: of other keys most are found out."""
    if not _TEXT.fullmatch(text):
        raise UndecryptableError("it is not of ShortCrypt's form")
    hashed = _crc_64(key.encode())
    at = _place_of_base(key, text)
    base = _BASES.find(text[at])
    encoded = text[:at] + text[at + 1 :]
    try:
        content = bytearray(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except binascii.Error:
        base = -1
    if base < 0:
        raise UndecryptableError("it is of another key")
    # Neither sum nor number changes with the order.
    places = _places(hashed, base, content)
    for here in reversed(range(len(content))):
        there = places[here]
        content[here], content[there] = content[there], content[here]
    plaintext = bytes(_combined(hashed, base, content))
    if _base_of(plaintext) != base:
        raise UndecryptableError("it is of another key")
    return plaintext


def _combined(hashed: bytes, base: int, content: bytes | bytearray) -> bytearray:
    return bytearray(byte ^ hashed[n % 8] ^ base for n, byte in enumerate(content))


def _places(hashed: bytes, base: int, content: bytes | bytearray) -> list[int]:
    """Return for each place the other one whose byte it changes with."""
    mixed = base
    for byte in content:
        mixed ^= byte
    total = (base + sum(content)) & _MASK_64
    order = _crc_64(bytes([mixed]) + total.to_bytes(8, "big"))
    size = len(content)
    return [(order[n % 8] ^ hashed[n % 8]) % size for n in range(size)]


def _place_of_base(key: str, characters: str) -> int:
    """Return where the base's character is, of all characters in any order."""
    of_key = sum(key.encode()) & _MASK_64
    reversed_bits = int(f"{of_key:064b}"[::-1], 2)
    return (reversed_bits ^ sum(characters.encode())) % len(characters)


def _base_of(plaintext: bytes) -> int:
    crc = 0xFF
    for byte in plaintext:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (_CRC_8_POLYNOMIAL if crc & 0x80 else 0)) & 0xFF
    return crc % len(_BASES)


def _crc_64(data: bytes) -> bytes:
    crc = _MASK_64
    for byte in data:
        crc ^= byte << 56
        for _ in range(8):
            crc = (crc << 1 ^ (_CRC_64_POLYNOMIAL if crc >> 63 else 0)) & _MASK_64
    return (crc ^ _MASK_64).to_bytes(8, "big")
