"""``messaging.azsbus``: Azure Service Bus, by its REST API.

Topics and queues have to be there, and as upstream has it a topic's subscription of the same name.
A token is the topic's name, so all who subscribe to a topic share its messages. A message is locked
when it is read, and removed when the guest that received it receives another or ends. If it fails,
or is cut off, the message is unlocked and comes again, at once; so does one whose lock has ended
meanwhile, or whose container has died. The server counts, and puts what fails too often into its
dead-letter queue. Whoever receives waits five seconds.

``AZURE_SERVICE_BUS_ENDPOINT``, which upstream does not have, is the URL of another server than
``https://NAMESPACE.servicebus.windows.net``.

Source: Azure Service Bus REST API, "Send Message", "Peek-Lock Message (Non-Destructive Read)",
"Delete Message", "Unlock Message", "Shared Access Signature"; SpiderLightning 0.5
crates/messaging/src/implementors/azsbus.rs, 0.2 crates/mq/src/providers/azure.rs.
"""

from __future__ import annotations

import base64
import hmac
import logging
import re
import time
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, quote_plus, urlsplit

from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.errors import CapabilityError
from containerd_shim_slight_v1.capabilities.messaging.base import (
    MAX_MESSAGE_BYTES,
    ConnectionLostError,
    DeliveryFailedError,
    Held,
    InsufficientPermissionsError,
    MessagingBackend,
    MessagingError,
    PayloadTooLargeError,
    ServiceUnavailableError,
    TopicNotFoundError,
    check_size,
)
from containerd_shim_slight_v1.capabilities.rest import (
    MAX_SMALL_BYTES,
    RestAnswer,
    RestClient,
    RestConnectionError,
    RestError,
    RestTooLargeError,
    place,
)

_WAIT_SECONDS: Final = 5
_SIGNED_SECONDS: Final = 600
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9-]{1,63}")
_ENTITY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_MAX_ENTITY: Final = 260

log = logging.getLogger(__name__)


class Backend(MessagingBackend):
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._rest = RestClient(context.app.certificates.context)

    async def publish(self, name: str, topic: str, message: bytes) -> None:
        check_size(message)
        path = f"/{_entity(topic)}/messages"
        answer = await self._ask("POST", path, message, topic)
        if answer.status != HTTPStatus.CREATED:
            raise DeliveryFailedError(f"topic {topic!r}: the server answers {answer.status}")

    async def subscribe(self, name: str, topic: str) -> str:
        return _entity(topic)

    async def receive(self, name: str, token: str) -> bytes:
        return await _at_once(await self.receive_held(name, token))

    async def receive_held(self, name: str, token: str) -> Held:
        entity = _entity(token)
        return await self._lock(f"{entity}/subscriptions/{entity.rpartition('/')[2]}", token)

    async def unsubscribe(self, name: str, token: str) -> None:
        """Leave the server's subscription as it is: others share it."""

    async def send(self, name: str, message: bytes) -> None:
        await self.publish(name, name, message)

    async def receive_from_queue(self, name: str) -> bytes:
        return await _at_once(await self.hold_from_queue(name))

    async def hold_from_queue(self, name: str) -> Held:
        return await self._lock(_entity(name), name)

    async def close(self) -> None:
        await self._rest.close()

    async def _lock(self, entity: str, shown: str) -> Held:
        path = f"/{entity}/messages/head?timeout={_WAIT_SECONDS}"
        answer = await self._ask("POST", path, b"", shown, MAX_MESSAGE_BYTES)
        if answer.status == HTTPStatus.NO_CONTENT:
            return Held(b"")
        try:
            lock = urlsplit(answer.headers.get("location", "")).path
        except ValueError:
            lock = ""
        # Signed for this server, whatever host it names.
        if answer.status != HTTPStatus.CREATED or not lock.startswith(f"/{entity}/messages/"):
            raise MessagingError(f"{shown!r}: unknown answer, of status {answer.status}")
        return _Locked(self, quote(lock, safe="/%"), shown, answer.body)

    async def end_lock(self, method: str, lock: str, shown: str) -> None:
        """Remove a message, or unlock it. Raises MessagingError."""
        answer = await self._ask(method, lock, b"", shown)
        if answer.status != HTTPStatus.OK:
            raise MessagingError(f"{shown!r}: the server answers {answer.status}")

    async def _ask(
        self,
        method: str,
        path: str,
        body: bytes,
        shown: str,
        most_bytes: int = MAX_SMALL_BYTES,
    ) -> RestAnswer:
        """Return an answer that is neither a refusal nor a fault. Raises MessagingError."""
        base = await self._base()
        headers = {
            "authorization": await self._signature(f"{base}{path.partition('?')[0]}"),
            "content-type": "application/octet-stream",
        }
        try:
            answer = await self._rest.ask(method, f"{base}{path}", headers, body, most_bytes)
        except RestTooLargeError:
            raise PayloadTooLargeError(None, most_bytes) from None
        except RestConnectionError as exc:
            raise ServiceUnavailableError(str(exc)) from None
        except RestError as exc:
            raise ConnectionLostError(str(exc)) from None
        where = f"{place(base)}: {shown!r}"
        match answer.status:
            case 401 | 403:
                raise InsufficientPermissionsError(f"{where}: the server refuses the key")
            case 404 | 410:
                raise TopicNotFoundError(f"{where}: there is no such topic, subscription or queue")
            case 413:
                raise PayloadTooLargeError(len(body))
            case status if status == 429 or status >= 500:
                raise ServiceUnavailableError(f"{where}: the server answers {status}")
        return answer

    async def _base(self) -> str:
        endpoint = await self.context.endpoint("AZURE_SERVICE_BUS_ENDPOINT")
        if endpoint is not None:
            return endpoint
        namespace = await self.context.value("AZURE_SERVICE_BUS_NAMESPACE")
        if _NAMESPACE.fullmatch(namespace) is None:
            raise MessagingError("AZURE_SERVICE_BUS_NAMESPACE is not the name of a namespace")
        return f"https://{namespace}.servicebus.windows.net"

    async def _signature(self, url: str) -> str:
        name = await self.context.value("AZURE_POLICY_NAME")
        key = await self.context.value("AZURE_POLICY_KEY")
        resource, end = quote_plus(url), int(time.time()) + _SIGNED_SECONDS
        digest = hmac.digest(key.encode(), f"{resource}\n{end}".encode(), "sha256")
        signature = quote_plus(base64.b64encode(digest))
        return (
            f"SharedAccessSignature sr={resource}&sig={signature}&se={end}&skn={quote_plus(name)}"
        )


class _Locked(Held):
    """A message that the server gives to nobody else, for a while."""

    __slots__ = ("_backend", "_lock", "_shown")

    def __init__(self, backend: Backend, lock: str, shown: str, message: bytes) -> None:
        """lock: its path.  shown: what messages call the topic or queue."""
        super().__init__(message)
        self._backend = backend
        self._lock = lock
        self._shown = shown

    async def done(self) -> None:
        await self._end("DELETE", "removed")

    async def give_back(self) -> None:
        await self._end("PUT", "unlocked")

    async def _end(self, method: str, what: str) -> None:
        try:
            await self._backend.end_lock(method, self._lock, self._shown)
        except CapabilityError as exc:
            log.warning("a message cannot be %s, and may come again: %s", what, exc)


async def _at_once(held: Held) -> bytes:
    await held.done()
    return held.message


def _entity(name: str) -> str:
    """Return the name of a topic or queue as a path. Raises TopicNotFoundError."""
    if len(name) > _MAX_ENTITY or _ENTITY.fullmatch(name) is None:
        raise TopicNotFoundError(f"{name[:80]!r} cannot be the name of a topic or queue")
    return name
