"""``messaging.filesystem``: a file for each topic, ``$TMPDIR/NAME/TOPIC``, which only grows.

A message in it: its length in four bytes, the lowest first, then its content. A subscription begins
with the topic's first message; ``TOPIC+NUMBER``, its token, is also the name of a file with the
position of the next message, so that it is kept as long as the directory. Messages are received in
the order in which they were published, whoever published them; several containers may share the
directory. ``.queue`` and ``.queue+`` are the same for a queue, whose receivers share one position.

In file names ``%``, ``/``, ``+``, NUL and a dot in front are written as in a URL.

Source: SpiderLightning 0.5 crates/messaging/src/providers/fs.rs, 0.2
crates/mq/src/implementors/filesystem.rs.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.directories import (
    CREATE,
    READ,
    Directories,
    name_fault,
    reason,
)
from containerd_shim_slight_v1.capabilities.messaging.base import (
    MAX_MESSAGE_BYTES,
    SHORT_WAIT_SECONDS,
    DeliveryFailedError,
    MessagingBackend,
    MessagingError,
    TopicNotFoundError,
    check_size,
)

_LENGTH: Final = struct.Struct("<I")
_POSITION: Final = struct.Struct("<Q")
_NUMBER_BYTES: Final = 33  # and the plus sign
_TOKEN: Final = re.compile(r"[^./\0+][^/\0+]*\+[0-9a-f]{32}")
_APPEND: Final = (
    os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
)
_UPDATE: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_POSITION: Final = 1 << 62  # beyond any file's size
_QUEUE: Final = ".queue"


class Backend(MessagingBackend):
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._directories = Directories(context.app.environment)
        self._published = asyncio.Event()
        """Replaced whenever something is published: it wakes whoever waits."""

    async def publish(self, name: str, topic: str, message: bytes) -> None:
        self._append(name, _topic_file(topic), message)

    async def subscribe(self, name: str, topic: str) -> str:
        token = f"{_topic_file(topic)}+{uuid.uuid4().hex}"
        with self._opened(name) as directory:
            _create_position(directory, token)
        return token

    async def receive(self, name: str, token: str) -> bytes:
        if _TOKEN.fullmatch(token) is None:
            raise TopicNotFoundError("there is no such subscription")
        return await self._take(name, token)

    async def unsubscribe(self, name: str, token: str) -> None:
        with self._opened(name) as directory, suppress(FileNotFoundError):
            os.unlink(token, dir_fd=directory)

    async def send(self, name: str, message: bytes) -> None:
        self._append(name, _QUEUE, message)

    async def receive_from_queue(self, name: str) -> bytes:
        with self._opened(name) as directory, suppress(FileExistsError):
            _create_position(directory, f"{_QUEUE}+")
        return await self._take(name, f"{_QUEUE}+")

    def _append(self, name: str, file: str, message: bytes) -> None:
        check_size(message)
        with self._opened(name) as directory:
            descriptor = os.open(file, _APPEND, 0o644, dir_fd=directory)
            try:
                _check_regular(descriptor)
                _append(descriptor, _LENGTH.pack(len(message)) + message)
            finally:
                os.close(descriptor)
        self._published.set()
        self._published = asyncio.Event()

    async def _take(self, name: str, position_file: str) -> bytes:
        with suppress(TimeoutError):
            async with asyncio.timeout(SHORT_WAIT_SECONDS):
                while True:
                    published = self._published
                    if (message := self._next(name, position_file)) is not None:
                        return message
                    await published.wait()
        return b""

    def _next(self, name: str, position_file: str) -> bytes | None:
        """Return the next message and move the position behind it. None is no message."""
        with self._opened(name) as directory:
            try:
                descriptor = os.open(position_file, _UPDATE, dir_fd=directory)
            except FileNotFoundError:
                raise TopicNotFoundError("there is no such subscription") from None
            with open(descriptor, "r+b", buffering=0) as positions:
                _check_regular(descriptor)
                data = os.pread(descriptor, _POSITION.size, 0)
                at = _POSITION.unpack(data)[0] if len(data) == _POSITION.size else 0
                if at > _MAX_POSITION:
                    raise MessagingError(f"file {position_file!r} does not hold a position")
                message = _read(directory, position_file.rpartition("+")[0], at)
                if message is not None:
                    after = at + _LENGTH.size + len(message)
                    os.pwrite(positions.fileno(), _POSITION.pack(after), 0)
        return message

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """Yield a descriptor of the directory. What fails with it open is a MessagingError."""
        if (fault := name_fault(name)) is not None:
            raise MessagingError(f"{fault}, which topics are in")
        try:
            with self._directories.opened(name) as directory:
                yield directory
        except OSError as exc:
            raise MessagingError(f"directory {name!r}: {reason(exc)}") from exc


def _topic_file(topic: str) -> str:
    """Return the name of a topic's file. Raises TopicNotFoundError."""
    name = topic.replace("%", "%25").replace("/", "%2F").replace("\0", "%00").replace("+", "%2B")
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    if not name or len(name.encode()) + _NUMBER_BYTES > 255:  # NAME_MAX
        raise TopicNotFoundError("a topic's name must not be empty, nor longer than a file's")
    return name


def _create_position(directory: int, name: str) -> None:
    with open(os.open(name, CREATE, 0o644, dir_fd=directory), "wb") as file:
        file.write(_POSITION.pack(0))


def _append(descriptor: int, data: bytes) -> None:
    """Append all or nothing. One write is not mixed with those of others."""
    written = os.write(descriptor, data)
    if written < len(data):
        # Nobody can have read it as a message: it is not complete.
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise DeliveryFailedError("there is no room for the message")


def _read(directory: int, file: str, at: int) -> bytes | None:
    try:
        descriptor = os.open(file, READ, dir_fd=directory)
    except FileNotFoundError:  # nothing was published
        return None
    try:
        _check_regular(descriptor)
        head = os.pread(descriptor, _LENGTH.size, at)
        if len(head) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > MAX_MESSAGE_BYTES:
            raise MessagingError(f"file {file!r} does not hold messages")
        message = os.pread(descriptor, length, at + _LENGTH.size)
        return message if len(message) == length else None
    finally:
        os.close(descriptor)


def _check_regular(descriptor: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise MessagingError("what has the topic's name is not a regular file")
