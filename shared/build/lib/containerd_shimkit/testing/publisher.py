"""A publisher that remembers."""

from __future__ import annotations

import asyncio

from google.protobuf.message import Message

from containerd_shimkit.events import TOPICS


class MemoryPublisher:
    """Keeps what was published, in order."""

    def __init__(self) -> None:
        self.published: list[tuple[str, Message]] = []
        """Topic and event; the event is a copy."""
        self.closed = False
        self._changed = asyncio.Event()

    def publish(self, event: Message) -> None:
        self.published.append(
            (TOPICS[type(event)], type(event).FromString(event.SerializeToString()))
        )
        self._changed.set()

    async def until(self, topic: str, count: int = 1) -> None:
        """Return when so many events of a topic were published."""
        while self.topics.count(topic) < count:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        self.closed = True

    @property
    def topics(self) -> list[str]:
        """The topics alone, for tests of the order."""
        return [topic for topic, _ in self.published]
