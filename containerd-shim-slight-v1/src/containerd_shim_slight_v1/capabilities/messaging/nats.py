"""``messaging.nats``: a NATS server, by default ``connect.ngs.global`` as upstream.

``NATS_CREDS`` is the content of a ``.creds`` file; ``NATS_URL`` is the address of another server,
which may hold a name and password, or want neither. ``tls://`` asks for TLS, and so may the server.

One connection for the app, which connects again by itself. Whoever receives waits half a second.
Messages come from when a subscription is made; NATS itself keeps none. Those that nobody takes wait
here, and are lost when there are too many.

Source: SpiderLightning 0.5 crates/messaging/src/implementors/natsio.rs.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from base64 import b32decode, b64encode
from collections import Counter
from typing import Any, Final
from urllib.parse import urlsplit

import nats
import nats.errors
from nacl.signing import SigningKey
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.messaging.base import (
    CONNECT_SECONDS,
    SHORT_WAIT_SECONDS,
    ConnectionLostError,
    InsufficientPermissionsError,
    MessagingBackend,
    MessagingError,
    PayloadTooLargeError,
    ServiceUnavailableError,
    TopicNotFoundError,
    check_size,
)
from containerd_shim_slight_v1.capabilities.messaging.subscriptions import Subscriptions
from containerd_shimkit.tls import TlsConfigError, new_context

_DEFAULT_SERVER: Final = "tls://connect.ngs.global"
_JWT: Final = re.compile(r"-BEGIN NATS USER JWT-+\s+([\w.=-]+)", re.ASCII)
_SEED: Final = re.compile(r"-BEGIN USER NKEY SEED-+\s+(SU[A-Z2-7]+)")
_MAX_WAITING: Final = 1000
_MAX_WAITING_BYTES: Final = 16 << 20
_MAX_ALL_WAITING_BYTES: Final = 64 << 20  # of all subscriptions
_MESSAGE_BYTES: Final = 1 << 10  # what one takes beside its content
_MAX_REFUSED: Final = 1000
_FLUSH_SECONDS: Final = 10
_CLOSE_SECONDS: Final = 2.0
_CANCEL_SECONDS: Final = 0.5

log = logging.getLogger(__name__)


class Backend(MessagingBackend):
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._client: Client | None = None
        self._errors = _Errors()
        self._connecting = asyncio.Lock()
        self._subscriptions: Subscriptions[_Subscription] = Subscriptions()

    async def publish(self, name: str, topic: str, message: bytes) -> None:
        check_size(message)
        client = await self._connected()
        refused = self._errors.refusals("publish", topic)
        try:
            await client.publish(_subject(topic), message)
            await _flush(client)
        except nats.errors.MaxPayloadError:
            raise PayloadTooLargeError(len(message), client.max_payload) from None
        except (nats.errors.Error, OSError, TimeoutError):
            raise ConnectionLostError("the server is away: the message may be lost") from None
        self._errors.check(refused, "publish", topic)

    async def subscribe(self, name: str, topic: str) -> str:
        client = await self._connected()

        async def make() -> _Subscription:
            refused = self._errors.refusals("subscription", topic)
            made = await client.subscribe(
                _subject(topic),
                pending_msgs_limit=_MAX_WAITING,
                pending_bytes_limit=_MAX_WAITING_BYTES,
            )
            subscription = _Subscription(made)
            try:
                await _flush(client)
                self._errors.check(refused, "subscription", topic)
            except BaseException:
                await subscription.close()
                raise
            return subscription

        try:
            return await self._subscriptions.add(make)
        except (nats.errors.Error, OSError, TimeoutError):
            raise ServiceUnavailableError("the server does not subscribe") from None

    async def receive(self, name: str, token: str) -> bytes:
        with self._subscriptions.used(token) as subscription:
            message = await subscription.receive()
        if not message and (self._client is None or not self._client.is_connected):
            raise ServiceUnavailableError("the server is away")
        return message

    async def unsubscribe(self, name: str, token: str) -> None:
        await self._subscriptions.remove(token)

    async def close(self) -> None:
        await self._subscriptions.close()
        if self._client is not None:
            await _close(self._client)

    async def _connected(self) -> Client:
        async with self._connecting:
            if self._client is not None and not self._client.is_closed:
                if not self._client.is_connected:
                    raise ServiceUnavailableError("the server is away")
                return self._client
            self._client = await self._connect()
            return self._client

    async def _connect(self) -> Client:
        url = await self.context.optional_value("NATS_URL") or _DEFAULT_SERVER
        credentials = await self.context.optional_value("NATS_CREDS")
        try:
            parts = urlsplit(url)
            server = f"{parts.hostname}:{parts.port or 4222}"
        except ValueError:
            raise MessagingError("NATS_URL is no URL") from None
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise MessagingError("NATS_URL is no URL with nats:// or tls://")
        options = {} if not credentials else _credentials(credentials)
        wanted = parts.scheme == "tls"
        client, errors = _Client(wanted), _Errors()
        failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        errors.first = failure
        connecting = asyncio.create_task(
            client.connect(
                url,
                error_cb=errors.take,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                connect_timeout=_FLUSH_SECONDS,
                flush_timeout=_FLUSH_SECONDS,
                tls=self._tls(wanted),
                **options,
            )
        )
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                # The library would try again and again.
                waited = (connecting, failure)
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if not connecting.done():
                    raise failure.result()
                await connecting
        except BaseException as exc:
            await _end(connecting)
            await _close(client)
            if isinstance(exc, asyncio.CancelledError):
                raise
            raise _error(server, exc) from None
        self._errors = errors
        return client

    def _tls(self, wanted: bool) -> ssl.SSLContext:
        """Return what a server is checked with that has TLS, which those of ``nats://`` may."""
        try:
            return self.context.app.certificates.context()
        except TlsConfigError as exc:
            if wanted:
                raise MessagingError(str(exc)) from None
            return new_context()


class _NoTlsError(nats.errors.Error):
    pass


class _TooManyWaitError(nats.errors.Error):
    pass


class _Client(Client):
    """The library's would send its password in clear text to a server that says it has no TLS.

    And it has a limit for each subscription, none for all.
    """

    def __init__(self, wants_tls: bool) -> None:
        super().__init__()
        self._wants_tls = wants_tls
        self._arrived_bytes = 0
        """What waits, and a part of what was taken."""

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # The first comes before anything is sent.
        if self._wants_tls and initial_connection and not info.get("tls_required"):
            raise _NoTlsError
        await super()._process_info(info, initial_connection)

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        size = len(data) + _MESSAGE_BYTES
        if self._arrived_bytes + size > _MAX_ALL_WAITING_BYTES:
            self._arrived_bytes = sum(
                each.pending_bytes + each.pending_msgs * _MESSAGE_BYTES
                for each in self._subs.values()
            )
        if self._arrived_bytes + size > _MAX_ALL_WAITING_BYTES:
            await self._error_cb(_TooManyWaitError())
            return
        self._arrived_bytes += size
        # Guests get no headers, which would be in no limit.
        await super()._process_msg(sid, subject, reply, data, b"")


class _Errors:
    """What the library tells on its way, and nobody else is told."""

    def __init__(self) -> None:
        self.first: asyncio.Future[Exception] | None = None
        """Who waits for the first."""
        self._refused: Counter[str] = Counter()
        self._loses = False

    async def take(self, exc: Exception) -> None:
        if isinstance(exc, nats.errors.SlowConsumerError | _TooManyWaitError):
            if not self._loses:
                log.warning("messages of NATS are lost: too many wait that no guest takes")
            self._loses = True
            return
        if self.first is not None and not self.first.done():
            self.first.set_result(exc)
        text = str(exc).lower()
        if "permissions violation" in text:
            if len(self._refused) >= _MAX_REFUSED:
                self._refused.clear()
            self._refused[text] += 1

    def refusals(self, what: str, subject: str) -> int:
        """Return how often the server has refused this. what: ``publish`` or ``subscription``."""
        return self._refused[_refusal(what, subject)]

    def check(self, before: int, what: str, subject: str) -> None:
        """Raise InsufficientPermissionsError if it has been refused since.

        The server says so before it answers a flush.
        """
        if self.refusals(what, subject) > before:
            raise InsufficientPermissionsError(f"the server refuses subject {subject!r}")


def _refusal(what: str, subject: str) -> str:
    return f'nats: permissions violation for {what} to "{subject}"'.lower()


class _Subscription:
    """See ``Subscription`` of ``subscriptions``."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def receive(self) -> bytes:
        try:
            message = await self._subscription.next_msg(SHORT_WAIT_SECONDS)
        except TimeoutError:
            return b""
        except nats.errors.Error:
            raise TopicNotFoundError("the subscription has ended") from None
        return bytes(message.data)

    async def close(self) -> None:
        try:
            await self._subscription.unsubscribe()
        except (nats.errors.Error, OSError):
            return


async def _flush(client: Client) -> None:
    """Return when the server has what was sent before. Raises what the library does."""
    # flush() alone sends its PING in front of what still waits to be sent. What sends that forgets
    # that it was cancelled, so it is a task of its own.
    await asyncio.shield(asyncio.create_task(client._flush_pending(force_flush=True)))
    await client.flush(_FLUSH_SECONDS)


async def _end(connecting: asyncio.Task[None]) -> None:
    """Cancel it until it ends: it may take a cancellation for that of something of its own."""
    while not connecting.done():
        connecting.cancel()
        await asyncio.wait((connecting,), timeout=_CANCEL_SECONDS)


async def _close(client: Client) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await client.close()
    except (nats.errors.Error, OSError, TimeoutError):
        return


def _credentials(text: str) -> dict[str, Any]:
    """Return the options for the content of a ``.creds`` file. Raises MessagingError.

    The library would import one more to read it, which needs PyNaCl as well.
    """
    token, seed = _JWT.search(text), _SEED.search(text)
    try:
        # Two bytes of what it is, 32 of the seed, two of a checksum.
        data = b32decode(seed[1] + "=" * (-len(seed[1]) % 8)) if seed is not None else b""
        key = SigningKey(data[2:-2])
    except (ValueError, TypeError):
        token = None
    if token is None:
        raise InsufficientPermissionsError("NATS_CREDS is not the content of a .creds file")
    content = token[1].encode()

    def sign(nonce: str) -> bytes:
        return b64encode(key.sign(nonce.encode()).signature)

    return {"user_jwt_cb": lambda: content, "signature_cb": sign}


def _subject(topic: str) -> str:
    if not topic or len(topic) > 1024 or any(c.isspace() or c == "\0" for c in topic):
        raise TopicNotFoundError("a NATS subject is not empty, and holds no blank")
    return topic


def _error(server: str, exc: BaseException) -> MessagingError:
    if isinstance(exc, ssl.SSLError):
        return ServiceUnavailableError(f"{server}: its certificate or its TLS is not accepted")
    if isinstance(exc, _NoTlsError):
        return ServiceUnavailableError(f"{server}: it has no TLS")
    text = str(exc).lower()
    if "authorization" in text or "authentication" in text or isinstance(exc, ValueError):
        return InsufficientPermissionsError(f"{server}: the server refuses the credentials")
    return ServiceUnavailableError(f"{server}: there is no connection")
