"""Accepting connections of a socket, so many in each turn of the loop.

Where other processes accept from it as well, one: a process with much to do turns slowly, and the
next connection goes to another. Where this one is alone, several: an event loop's own server takes
one, and while a guest computes, each turn lasts as long as its slice of time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any, Final

_RETRY_SECONDS: Final = 0.1  # when there are no descriptors left

log = logging.getLogger(__name__)


class Acceptor:
    """Accepts until it is closed."""

    def __init__(
        self, sock: socket.socket, protocol: Callable[[], asyncio.Protocol], most: int = 1
    ) -> None:
        """sock: listening, not blocking; closed with this.  most: connections in a turn."""
        self._most = most
        self._socket = sock
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._watch()

    def _watch(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(self._most):
            if not self._accept_one():
                return

    def _accept_one(self) -> bool:
        """Return whether there may be more."""
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False  # another process was faster, or the client has gone
        except OSError as exc:
            log.error("cannot accept connections: %s", exc.strerror)
            self._loop.remove_reader(self._socket.fileno())
            self._retry = self._loop.call_later(_RETRY_SECONDS, self._watch)
            return False
        connection.setblocking(False)
        task = self._loop.create_task(self._connect(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _connect(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            await self._loop.connect_accepted_socket(self._protocol, connection)

    def close(self) -> None:
        """Accept no more."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
