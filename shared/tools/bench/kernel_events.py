"""Forks, executions and ends of all processes, told by the kernel: its process connector.

It costs those that are watched about a microsecond for each event, and nothing when nobody
listens. Source: connector and cn_proc, Linux include/uapi/linux/{netlink,connector,cn_proc}.h.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self

Kind = Literal["fork", "exec", "exit"]

_NETLINK_CONNECTOR: Final = 11
_CN_IDX_PROC: Final = 1  # group and id of the connector; its only value is 1, too
_LISTEN: Final = 1  # PROC_CN_MCAST_LISTEN
_NLMSG_DONE: Final = 3
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h; Python does not name it
_BUFFER_BYTES: Final = 4 << 20  # some 10,000 events: nobody reads while containers start
_PACKET_BYTES: Final = 64 << 10

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, number, port
_MESSAGE: Final = struct.Struct(
    "=IIIIHH"
)  # struct cn_msg: index, value, number, ack, length, flags
_EVENT: Final = struct.Struct("=IIQ")  # struct proc_event: what, processor, nanoseconds
_FORK: Final = struct.Struct("=iiii")  # parent's thread and process, child's thread and process
_TASK: Final = struct.Struct("=ii")  # thread, process
_KINDS: Final[dict[int, Kind]] = {0x1: "fork", 0x2: "exec", 0x80000000: "exit"}


@dataclass(frozen=True)
class ProcessEvent:
    """What happened to a process; threads do not count."""

    kind: Kind
    seconds: float
    """By the clock of ``time.monotonic`` and ``time.perf_counter``."""
    pid: int
    parent: int = 0
    """Of a fork."""


class ProcessEvents:
    """Listens from its making until it is closed. Raises OSError where that is not allowed."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_CONNECTOR
        )
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._socket.bind((os.getpid(), _CN_IDX_PROC))
            self._socket.send(_listen_request())
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def take(self) -> list[ProcessEvent]:
        """Return what has happened since the last time. Raises OSError if some of it was lost."""
        events: list[ProcessEvent] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                events += parse_events(self._socket.recv(_PACKET_BYTES))
        return events


def _listen_request() -> bytes:
    operation = struct.pack("=I", _LISTEN)
    message = _MESSAGE.pack(_CN_IDX_PROC, 1, 0, 0, len(operation), 0) + operation
    return _HEADER.pack(_HEADER.size + len(message), _NLMSG_DONE, 0, 0, os.getpid()) + message


def parse_events(packet: bytes) -> Iterator[ProcessEvent]:
    """Yield the events of one packet from the kernel, without those of threads."""
    offset = 0
    while offset + _HEADER.size + _MESSAGE.size + _EVENT.size <= len(packet):
        length = _HEADER.unpack_from(packet, offset)[0]
        start = offset + _HEADER.size + _MESSAGE.size
        what, _, nanoseconds = _EVENT.unpack_from(packet, start)
        data = start + _EVENT.size
        kind = _KINDS.get(what)
        if kind == "fork":
            _, parent, thread, pid = _FORK.unpack_from(packet, data)
            if thread == pid:
                yield ProcessEvent(kind, nanoseconds / 1e9, pid, parent)
        elif kind is not None:
            thread, pid = _TASK.unpack_from(packet, data)
            if thread == pid:
                yield ProcessEvent(kind, nanoseconds / 1e9, pid)
        offset += max(_HEADER.size, (length + 3) & ~3)  # NLMSG_ALIGN
