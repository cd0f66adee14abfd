"""One guest's connections to database servers of one kind.

A guest of Spin 1.x names an address in each call; its connection to that address is kept for as
long as it lives, as in Spin 1. Guests for 2.0 open connections, each of which is one of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from containerd_shim_spin_v1.host.database import (
    AddressError,
    ConnectionFailedError,
    QueryFailedError,
)
from containerd_shimkit.pool import (
    ConnectionLostError,
    Pool,
    PoolBusyError,
    PoolClosedError,
    PooledConnection,
)

MAX_CONNECTIONS: Final = 16
"""Of one guest, to servers of one kind."""

_MAX_MESSAGE: Final = 4096

Where: TypeAlias = str | int
"""An address, or the handle of an opened connection."""


class Address(Protocol):
    """A server, and who connects to it."""

    @property
    def shown(self) -> str:
        """What messages call it, without a password."""

    def __hash__(self) -> int: ...


class Connection(PooledConnection, Protocol):
    lent_before: bool
    """Another guest had it."""


A = TypeVar("A", bound=Address)
C = TypeVar("C", bound=Connection)
T = TypeVar("T")


class GuestConnections(Generic[A, C]):
    """The connections that a guest has been lent."""

    def __init__(
        self,
        pool: Pool[A, C],
        parse: Callable[[str], A],
        check: Callable[[A], Awaitable[None]],
        reason: Callable[[BaseException], str],
    ) -> None:
        """parse: raises AddressError.  check: raises where the guest may not connect to.

        reason: says why connecting failed.
        """
        self._pool = pool
        self._parse = parse
        self._check = check
        self._reason = reason
        self._lent: dict[Where, tuple[A, C]] = {}
        self._used: set[Where] = set()
        """Those that a statement was sent on."""
        self._opened: dict[int, str] = {}
        self._next = 0

    @property
    def has_any(self) -> bool:
        """Whether there is anything to give back."""
        return bool(self._lent)

    async def open(self, address: str) -> int:
        """Return a handle of a new connection. Raises ConnectionFailedError, and as ``check``."""
        handle = self._next
        self._next += 1
        self._lent[handle] = await self._take(address)
        self._opened[handle] = address
        return handle

    def drop(self, handle: int) -> None:
        """Give an opened connection back; any number is fine."""
        self._opened.pop(handle, None)
        self._give_back(handle)

    async def call(self, where: Where, function: Callable[[C], Awaitable[T]]) -> T:
        """Return what ``function`` does with the connection.

        A connection that the server closed while it was idle has not seen the statement, which is
        sent on another one then. Later on a guest has to know: a transaction may be gone.
        Raises ConnectionFailedError, QueryFailedError, and as ``check`` and ``function``.
        """
        while True:
            address, connection = await self._connection(where)
            first = where not in self._used
            self._used.add(where)
            try:
                return await function(connection)
            except ConnectionLostError as exc:
                if first and connection.lent_before and not exc.sent:
                    continue
                raise QueryFailedError(
                    f"the connection to {address.shown} was lost: {exc}"[:_MAX_MESSAGE]
                ) from None
            finally:
                if not connection.usable:
                    self._give_back(where)

    def close(self) -> None:
        """Give all back: nothing of this guest is left on them for the next."""
        self._opened.clear()
        for where in list(self._lent):
            self._give_back(where)

    def _give_back(self, where: Where) -> None:
        self._used.discard(where)
        if (lent := self._lent.pop(where, None)) is not None:
            self._pool.give_back(*lent)

    async def _connection(self, where: Where) -> tuple[A, C]:
        lent = self._lent.get(where)
        if lent is None:
            address = self._opened.get(where) if isinstance(where, int) else where
            if address is None:
                raise ConnectionFailedError(f"there is no connection {where}")
            lent = self._lent[where] = await self._take(address)
        return lent

    async def _take(self, text: str) -> tuple[A, C]:
        try:
            address = self._parse(text)
        except AddressError as exc:
            raise ConnectionFailedError(f"the address {exc}") from None
        if len(self._lent) >= MAX_CONNECTIONS:
            raise ConnectionFailedError(
                f"a guest may have {MAX_CONNECTIONS} connections to databases"
            )
        await self._check(address)
        try:
            return address, await self._pool.take(address)
        except (PoolBusyError, PoolClosedError) as exc:
            reason = str(exc)
        except TimeoutError:
            reason = "no answer in time"
        except Exception as exc:
            reason = self._reason(exc)
        raise ConnectionFailedError(f"cannot connect to {address.shown}: {reason}"[:_MAX_MESSAGE])
