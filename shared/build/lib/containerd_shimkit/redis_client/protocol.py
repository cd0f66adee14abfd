"""RESP version 2, without I/O.

Rules:

- A command is an array of byte strings.
- A reply is a ``Status``, a ``ReplyError``, an int, bytes, None, or a list of these. An error is
  returned, not raised: one inside of a list is a part of the reply.
- A reply is bounded as a whole, each of its values counted with ``VALUE_BYTES`` more. What would be
  too large is an error as soon as a length announces it, as is all that is no RESP 2.

After an error the parser is useless, and so is the connection.

Source: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

VALUE_BYTES: Final = 32  # as Spin counts a value beside its bytes
MAX_REPLY_BYTES: Final = 128 << 20  # Spin: MAX_HOST_BUFFERED_BYTES
_MAX_LINE_BYTES: Final = 64 << 10
_MAX_DEPTH: Final = 32
_MAX_DIGITS: Final = 20  # of a number of 64 bits with its sign
_STATUS, _ERROR, _INTEGER, _STRING, _LIST = b"+-:$*"


@dataclass(frozen=True, slots=True)
class Status:
    """A simple string, as ``OK``."""

    text: bytes


@dataclass(frozen=True, slots=True)
class ReplyError:
    """An error of the server, as ``WRONGTYPE Operation against …``."""

    text: bytes


Reply: TypeAlias = "Status | ReplyError | int | bytes | list[Reply] | None"


class ProtocolError(Exception):
    """The server does not speak RESP 2, or its reply is too large."""


def encode_command(arguments: Iterable[bytes]) -> bytes:
    """Return a command as bytes."""
    parts: list[bytes] = []
    for argument in arguments:
        parts += (b"$%d\r\n" % len(argument), argument, b"\r\n")
    return b"".join((b"*%d\r\n" % (len(parts) // 3), *parts))


class ReplyParser:
    """Turns bytes, split anywhere, into replies."""

    def __init__(self, max_reply_bytes: int = MAX_REPLY_BYTES) -> None:
        self._max_bytes = max_reply_bytes
        self._parts: list[bytes] = []  # joined when they are as many bytes as are needed to go on
        self._held = 0
        self._needed = 0
        # Of the reply that is being read: its bytes, the lists that are not complete and how much
        # each is to hold, and the length of the byte string that comes next.
        self._bytes = 0
        self._open: list[tuple[list[Reply], int]] = []
        self._length: int | None = None

    def receive_data(self, data: bytes) -> list[Reply]:
        """Return what ``data`` completes, in order. Raises ProtocolError."""
        self._parts.append(data)
        self._held += len(data)
        if self._held < self._needed:
            return []
        data = b"".join(self._parts)
        found: list[Reply] = []
        start = 0
        while True:
            if self._length is None:
                end = data.find(b"\r\n", start)
                if (end if end >= 0 else len(data)) - start > _MAX_LINE_BYTES:
                    raise ProtocolError("the reply has a line that is too long")
                if end < 0:
                    self._needed = 0
                    break
                whole, value = self._read_line(data[start], data[start + 1 : end])
                start = end + 2
                if not whole:
                    continue
            else:
                end = start + self._length
                if len(data) < end + 2:
                    self._needed = self._length + 2
                    break
                value = data[start:end]
                _check(data[end : end + 2] == b"\r\n")
                start = end + 2
                self._length = None
            # What is complete may complete the list that it is in, and so on.
            while self._open:
                parent, size = self._open[-1]
                parent.append(value)
                if len(parent) < size:
                    break
                self._open.pop()
                value = parent
            else:
                self._bytes = 0
                found.append(value)
        self._parts = [data[start:]]
        self._held = len(data) - start
        return found

    def _read_line(self, kind: int, line: bytes) -> tuple[bool, Reply]:
        """Take a line; return whether it is a whole value, and that."""
        if kind == _STRING:
            size = self._size(line, 1)
            self._length = None if size < 0 else size
            return size < 0, None
        if kind == _LIST:
            size = self._size(line, VALUE_BYTES)
            if size <= 0:
                return True, [] if size == 0 else None
            _check(len(self._open) < _MAX_DEPTH)
            self._open.append(([], size))
            return False, None
        if kind == _INTEGER:
            self._count(0)
            return True, _number(line)
        _check(kind in (_STATUS, _ERROR))
        self._count(len(line))
        return True, Status(line) if kind == _STATUS else ReplyError(line)

    def _size(self, line: bytes, unit_bytes: int) -> int:
        """Return the length of a byte string or list; -1 is None."""
        size = _number(line)
        _check(size >= -1)
        # The values of a list count when they come: here only so many are let in at all.
        if size * unit_bytes > self._max_bytes:
            raise self._too_large()
        self._count(size if unit_bytes == 1 and size > 0 else 0)
        return size

    def _count(self, more: int) -> None:
        self._bytes += VALUE_BYTES + more
        if self._bytes > self._max_bytes:
            raise self._too_large()

    def _too_large(self) -> ProtocolError:
        return ProtocolError(f"the reply exceeds {self._max_bytes} bytes")


def _number(line: bytes) -> int:
    if line.isdigit() and len(line) < _MAX_DIGITS - 1:  # nearly always
        return int(line)
    _check(len(line) <= _MAX_DIGITS and (line[1:] if line[:1] in (b"-", b"+") else line).isdigit())
    value = int(line)
    _check(-(1 << 63) <= value < 1 << 63)
    return value


def _check(valid: bool) -> None:
    if not valid:
        raise ProtocolError("the reply is not of Redis protocol 2")
