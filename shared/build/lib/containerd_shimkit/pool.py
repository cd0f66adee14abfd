"""Connections to servers, kept for the app and lent to one guest at a time.

- A connection is lent as if it were new: when it comes back it is reset, beside the requests, and
  what cannot be reset is closed.
- No more than a limit are open, to one address and altogether. Whoever finds none free waits in
  turn, for a time; an idle connection to another address is closed to make room.
- One that has been idle for long is closed, and so is one that the server closed: whoever asks
  gets one that is open as far as this side knows.
- A guest that is cut off while it waits for an answer leaves a connection in an unknown state,
  which is closed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

ADDRESS_LIMIT: Final = 32
TOTAL_LIMIT: Final = 128

_WAIT_SECONDS: Final = 30.0
_CONNECT_SECONDS: Final = 10.0
_IDLE_SECONDS: Final = 60.0
_RESET_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 2.0


class PooledConnection(Protocol):
    """What a connection has to know for being lent."""

    @property
    def usable(self) -> bool:
        """Whether it is open, and nothing is under way on it."""

    async def reset(self) -> None:
        """Make it as a new one; an exception means that it cannot be used any more."""

    async def quit(self) -> None:
        """Close it, with a word to the server; whatever is under way is given up."""

    def abort(self) -> None:
        """Close it at once; it is not usable afterwards."""


C = TypeVar("C", bound=PooledConnection)
K = TypeVar("K", bound=Hashable)


class ConnectionLostError(Exception):
    """A connection ended before an answer came; raised by those who use one."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        """sent: the server may have done what it was asked for."""
        super().__init__(reason)
        self.sent = sent


class PoolBusyError(Exception):
    """All connections that may be made are in use, and none came back in time."""


class PoolClosedError(Exception):
    """The app ends."""


@dataclass(slots=True)
class _Idle(Generic[C]):
    connection: C
    timer: asyncio.TimerHandle


@dataclass(slots=True)
class _Address(Generic[C]):
    """What there is of one address."""

    open: int = 0
    """Connections: lent, idle, being made and being reset."""
    idle: list[_Idle[C]] = field(default_factory=list)
    """Those used last come last."""
    waiters: deque[asyncio.Future[C | None]] = field(default_factory=deque)
    """In turn. They get a connection; None is the permission to make one."""


class Pool(Generic[K, C]):
    """All connections of one kind. K is what they are told apart by: address and credentials."""

    def __init__(
        self,
        connect: Callable[[K], Awaitable[C]],
        total: int | None = None,
        *,
        wait_seconds: float = _WAIT_SECONDS,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        """connect: makes a connection; it gets ten seconds.  total: None is the default limit."""
        self._connect = connect
        self._total = TOTAL_LIMIT if total is None else total
        self._wait_seconds = wait_seconds
        self._idle_seconds = idle_seconds
        self._addresses: dict[K, _Address[C]] = {}
        self._open = 0
        self._lent: set[C] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def take(self, key: K) -> C:
        """Return a connection that is nobody else's until ``give_back``.

        Raises PoolBusyError, PoolClosedError, TimeoutError and what ``connect`` raises.
        """
        connection = self._take_idle(key) or await self._wait_turn(key)
        if connection is None:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    connection = await self._connect(key)
            except BaseException:
                self._forget(key)
                raise
            if self._closed:
                connection.abort()
                self._forget(key)
                raise PoolClosedError("the app ends")
        self._lent.add(connection)
        return connection

    def give_back(self, key: K, connection: C) -> None:
        """Take a connection back, whatever became of it; whoever gave it must not use it again."""
        self._lent.discard(connection)
        if self._closed:
            connection.abort()
            self._forget(key)
        elif connection.usable:
            self._start(self._recycle(key, connection))
        else:
            self._start(self._quit(key, connection))

    async def close(self) -> None:
        """End every connection; whoever waits for one, or for an answer, fails."""
        self._closed = True
        for connection in self._lent:
            connection.abort()
        for key, address in list(self._addresses.items()):
            for turn in address.waiters:
                if not turn.done():
                    turn.set_exception(PoolClosedError("the app ends"))
            address.waiters.clear()
            for idle in address.idle:
                idle.timer.cancel()
                self._start(self._quit(key, idle.connection))
            address.idle.clear()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0)  # transports that were aborted end in the loop's next turn

    # Turns

    def _take_idle(self, key: K) -> C | None:
        """Return an idle connection, or None where one has to be waited for or made."""
        address = self._addresses.get(key)
        if address is None or address.waiters:
            return None
        return self._pop_idle(key, address)

    def _pop_idle(self, key: K, address: _Address[C]) -> C | None:
        """Return an idle connection; those that the server closed meanwhile are found here."""
        while address.idle:
            idle = address.idle.pop()
            idle.timer.cancel()
            if idle.connection.usable:
                return idle.connection
            idle.connection.abort()
            self._uncount(address)
        return None

    async def _wait_turn(self, key: K) -> C | None:
        if self._closed:
            raise PoolClosedError("the app ends")
        turn: asyncio.Future[C | None] = asyncio.get_running_loop().create_future()
        address = self._addresses.setdefault(key, _Address())
        address.waiters.append(turn)
        self._serve(key)
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._return_turn(key, turn.result())
            elif turn in address.waiters:
                address.waiters.remove(turn)
                self._settle(key)
            if isinstance(exc, TimeoutError):
                raise PoolBusyError(
                    f"no connection became free within {self._wait_seconds:g} s"
                ) from None
            raise

    def _return_turn(self, key: K, connection: C | None) -> None:
        """Give to others what came too late for whoever waited."""
        if connection is None:
            self._forget(key)
        else:
            self._keep(key, connection)

    def _serve(self, key: K) -> None:
        """Give what there is to those who wait for ``key``."""
        address = self._addresses[key]
        while address.waiters:
            if address.waiters[0].done():  # cut off; it has not come to removing itself
                address.waiters.popleft()
                continue
            connection = self._pop_idle(key, address)
            if connection is None:
                if address.open >= ADDRESS_LIMIT or not self._make_room():
                    return
                address.open += 1
                self._open += 1
            address.waiters.popleft().set_result(connection)
        if not address.open:
            del self._addresses[key]

    def _make_room(self) -> bool:
        """Return whether one more connection may be made, after closing an idle one if need be."""
        if self._open < self._total:
            return True
        for address in self._addresses.values():
            if address.idle:
                idle = address.idle.pop(0)
                idle.timer.cancel()
                self._uncount(address)
                self._start(self._say_goodbye(idle.connection))
                return True
        return False

    # What becomes of connections

    async def _recycle(self, key: K, connection: C) -> None:
        try:
            async with asyncio.timeout(_RESET_SECONDS):
                await connection.reset()
        except Exception:
            connection.abort()
        self._keep(key, connection)

    def _keep(self, key: K, connection: C) -> None:
        if self._closed:
            connection.abort()
        if not connection.usable:
            self._forget(key)
            return
        timer = asyncio.get_running_loop().call_later(
            self._idle_seconds, self._expire, key, connection
        )
        self._addresses[key].idle.append(_Idle(connection, timer))
        self._settle(key)

    def _expire(self, key: K, connection: C) -> None:
        address = self._addresses[key]
        address.idle = [idle for idle in address.idle if idle.connection is not connection]
        self._start(self._quit(key, connection))

    async def _quit(self, key: K, connection: C) -> None:
        await self._say_goodbye(connection)
        self._forget(key)

    async def _say_goodbye(self, connection: C) -> None:
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await connection.quit()
        except Exception:
            connection.abort()

    def _forget(self, key: K) -> None:
        """A connection is no more, or was never made."""
        self._uncount(self._addresses[key])
        self._settle(key)

    def _settle(self, key: K) -> None:
        """Serve whoever waits, after a connection to ``key`` has become free or has gone."""
        self._serve(key)
        # Others may have waited for the total only.
        for other in [key for key, address in self._addresses.items() if address.waiters]:
            self._serve(other)

    def _uncount(self, address: _Address[C]) -> None:
        address.open -= 1
        self._open -= 1

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
