"""What a backend of messaging does, and how it fails.

A subscription outlives the guest that made it, since each request has a guest of its own: whoever
knows its token receives. How long a call waits where there is no message is the backend's; then
the result is an empty message, which is what guests look for.

A backend that can holds a message until the guest that received it receives another, or ends, and
has it come again if the guest fails, is cut off, or dies with its container: at least once. One
that cannot has given it away.

Source: SpiderLightning 0.5 wit/messaging.wit, 0.2 wit/mq.wit and wit/pubsub.wit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final

from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.errors import CapabilityError

MAX_MESSAGE_BYTES: Final = 16 << 20
"""A larger message is neither sent nor received."""
SHORT_WAIT_SECONDS: Final = 0.5
"""How long backends wait for a message that do not wait for ever."""
CONNECT_SECONDS: Final = 10.0


class MessagingError(CapabilityError):
    """A message could not be sent or received: ``unexpected-error``."""


class PayloadTooLargeError(MessagingError):
    """A message has more bytes than the backend takes."""

    case = "payload-too-large"

    def __init__(self, size: int | None, limit: int | None = MAX_MESSAGE_BYTES) -> None:
        """size: None is not known.  limit: None is one that only the server knows."""
        of_size = "" if size is None else f" of {size} bytes"
        what = "the server takes" if limit is None else f"{limit} bytes"
        super().__init__(f"a message{of_size} is larger than {what}")


class TopicNotFoundError(MessagingError):
    """There is no such topic, queue or subscription."""

    case = "queue-or-topic-not-found"


class InsufficientPermissionsError(MessagingError):
    """The server refuses the login, or what was asked for."""

    case = "insufficient-permissions"


class ServiceUnavailableError(MessagingError):
    """The server is away."""

    case = "service-unavailable"


class DeliveryFailedError(MessagingError):
    """The server does not take the message."""

    case = "delivery-failed"


class ConnectionLostError(MessagingError):
    """The connection ended in the middle: the message may have arrived."""

    case = "connection-lost"


class UnsupportedFormatError(MessagingError):
    """A message that the backend cannot carry."""

    case = "unsupported-message-format"


class Held:
    """A message that a guest has received, and may have come again."""

    __slots__ = ("message",)

    def __init__(self, message: bytes) -> None:
        """message: empty if there is none."""
        self.message = message

    async def done(self) -> None:
        """Say that it need not come again. It never fails: the guest cannot be told."""

    async def give_back(self) -> None:
        """Have it come again, for another guest. It never fails."""


class MessagingBackend(ABC):
    """One capability's topics; its module has it under the name ``Backend``.

    Made in the event loop that serves, without any waiting: connections are made when they are
    first needed. ``name`` is what the guest opened.
    """

    def __init__(self, context: BackendContext) -> None:
        self.context = context

    @abstractmethod
    async def publish(self, name: str, topic: str, message: bytes) -> None:
        """Send a message to all subscriptions of a topic. Raises MessagingError."""

    @abstractmethod
    async def subscribe(self, name: str, topic: str) -> str:
        """Return the token of a new subscription. Raises MessagingError."""

    @abstractmethod
    async def receive(self, name: str, token: str) -> bytes:
        """Return the next message of a subscription, empty if none came.

        Raises MessagingError.
        """

    async def receive_held(self, name: str, token: str) -> Held:
        """Do as ``receive`` for a guest that says what became of the message."""
        return Held(await self.receive(name, token))

    @abstractmethod
    async def unsubscribe(self, name: str, token: str) -> None:
        """End a subscription, if there is one of this token."""

    async def send(self, name: str, message: bytes) -> None:
        """Put a message into the queue ``name``. Raises MessagingError."""
        raise self._no_queues()

    async def receive_from_queue(self, name: str) -> bytes:
        """Take the next message from the queue ``name``, empty if none is there.

        Raises MessagingError.
        """
        raise self._no_queues()

    async def hold_from_queue(self, name: str) -> Held:
        """Do as ``receive_from_queue`` for a guest that says what became of the message."""
        return Held(await self.receive_from_queue(name))

    def _no_queues(self) -> MessagingError:
        return MessagingError(f"{self.context.capability.resource.name} has topics, and no queues")

    async def close(self) -> None:
        """End every connection and subscription."""
        return


def check_size(message: bytes, limit: int = MAX_MESSAGE_BYTES) -> None:
    """Raise PayloadTooLargeError for a message that is too large."""
    if len(message) > limit:
        raise PayloadTooLargeError(len(message), limit)


@dataclass(frozen=True, slots=True)
class OpenPublisher:
    """What a guest has opened to publish."""

    backend: MessagingBackend
    name: str


class Holder:
    """Holds the message that a guest received last, until it receives another, or ends."""

    def __init__(self, backend: MessagingBackend, name: str) -> None:
        self.backend = backend
        self.name = name
        self._held: Held | None = None
        self._failed = False

    def give_up(self) -> None:
        """Be told that the guest has failed, or is cut off."""
        self._failed = True

    async def let_go(self) -> None:
        """Let go of the message."""
        held, self._held = self._held, None
        if held is not None:
            await (held.give_back() if self._failed else held.done())

    async def close(self) -> None:
        """Let the guest end."""
        await self.let_go()

    async def _hold(self, receiving: Awaitable[Held]) -> bytes:
        self._held = await receiving
        return self._held.message


class OpenSubscriber(Holder):
    """What a guest has opened to subscribe."""

    async def receive_by(self, token: str) -> bytes:
        """Return the next message of a subscription. Raises MessagingError."""
        await self.let_go()
        return await self._hold(self.backend.receive_held(self.name, token))


class OpenQueue(Holder):
    """What a guest has opened to send and receive."""

    async def receive(self) -> bytes:
        """Return the next message of the queue. Raises MessagingError."""
        await self.let_go()
        return await self._hold(self.backend.hold_from_queue(self.name))


class OldSubscriber(OpenSubscriber):
    """A subscriber of SpiderLightning 0.2, which is its own only subscription."""

    token: str | None = None

    async def subscribe(self, topic: str) -> None:
        """Subscribe to a topic in place of the one before. Raises MessagingError."""
        token = await self.backend.subscribe(self.name, topic)
        await self.close()
        self.token = token

    async def receive(self) -> bytes:
        """Return the next message. Raises MessagingError."""
        if self.token is None:
            raise MessagingError("nothing was subscribed to")
        return await self.receive_by(self.token)

    async def close(self) -> None:
        """End the subscription."""
        await self.let_go()
        token, self.token = self.token, None
        if token is not None:
            await self.backend.unsubscribe(self.name, token)
