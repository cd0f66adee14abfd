"""A publisher that remembers."""

from __future__ import annotations

from google.protobuf.message import Message

from containerd_shimkit.events import TOPICS


class MemoryPublisher:
    """Keeps what was published, in order."""

    def __init__(self) -> None:
        self.published: list[tuple[str, Message]] = []
        """Topic and event; the event is a copy."""
        self.closed = False

    def publish(self, event: Message) -> None:
        self.published.append(
            (TOPICS[type(event)], type(event).FromString(event.SerializeToString()))
        )

    async def close(self) -> None:
        self.closed = True

    @property
    def topics(self) -> list[str]:
        """The topics alone, for tests of the order."""
        return [topic for topic, _ in self.published]
