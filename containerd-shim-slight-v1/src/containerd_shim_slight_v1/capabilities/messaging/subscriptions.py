"""The subscriptions of an app, by tokens: mostly ones that nobody can guess."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, Protocol, TypeVar

from containerd_shim_slight_v1.capabilities.messaging.base import TopicNotFoundError

MAX_SUBSCRIPTIONS: Final = 1000


class Subscription(Protocol):
    """What a token stands for."""

    async def close(self) -> None:
        """End it; who receives from it is told."""


S = TypeVar("S", bound=Subscription)


class Subscriptions(Generic[S]):
    """At most 1000: then the one whose last use is longest ago ends, unless somebody waits there.

    No guest can say that it will not come back, since another may have its token.
    """

    def __init__(self, most: int | None = None) -> None:
        """most: another number than 1000."""
        self._most = MAX_SUBSCRIPTIONS if most is None else most
        self._open: dict[str, S] = {}
        """Those used last come last."""
        self._in_use: dict[str, int] = {}

    def __contains__(self, token: str) -> bool:
        return token in self._open

    async def add(self, make: Callable[[], Awaitable[S]], token: str = "") -> str:
        """Return the token of what ``make`` returns; it raises what that does.

        token: one that nothing has; empty is a new one.
        """
        subscription, token = await make(), token or uuid.uuid4().hex
        self._open[token] = subscription
        if len(self._open) > self._most:
            idle = next((other for other in self._open if other not in self._in_use), token)
            await self.remove(idle)
        return token

    @contextmanager
    def used(self, token: str) -> Iterator[S]:
        """Yield what a token stands for. Raises TopicNotFoundError."""
        subscription = self._open.pop(token, None)
        if subscription is None:
            raise TopicNotFoundError("there is no such subscription")
        self._open[token] = subscription
        self._in_use[token] = self._in_use.get(token, 0) + 1
        try:
            yield subscription
        finally:
            self._in_use[token] -= 1
            if not self._in_use[token]:
                del self._in_use[token]

    async def remove(self, token: str) -> None:
        """End a subscription, if there is one of this token."""
        subscription = self._open.pop(token, None)
        if subscription is not None:
            await subscription.close()

    async def close(self) -> None:
        """End all at once: a server that hangs makes each take its time."""
        while self._open:
            ending = [self.remove(token) for token in self._open]
            await asyncio.gather(*ending, return_exceptions=True)
