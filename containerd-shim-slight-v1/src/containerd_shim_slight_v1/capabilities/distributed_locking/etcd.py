"""``distributed_locking.etcd``: etcd's own locks, by the JSON gateway of its API.

``ETCD_ENDPOINT`` is ``http://host:2379``, with ``https`` for TLS; without a scheme it is http.

A lock belongs to a lease, which is kept alive while it is waited for. From when it is given it
lasts as long as the guest says, or a minute, which is what etcd does where nobody says. Its key is
``NAME/LEASE``. Whoever is cut off while waiting gives the lease back.

Where many wait, etcd 3.4 now and then misses that the lock before has ended, and does not answer
whose turn it is. So who waits looks for it as well: the lock is that of the oldest key. The request
goes on until the lock has ended, since etcd takes a lock back when its asker leaves.

Source: etcd 3.4 api/v3/v3lock, Documentation/dev-guide/api_grpc_gateway.md; SpiderLightning 0.5
crates/distributed-locking/src/providers/etcd.rs.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from base64 import b64decode, b64encode
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.distributed_locking.base import (
    InvalidLockError,
    LockAcquireError,
    LockConnectionError,
    LockingBackend,
    LockingError,
    LockProtocolError,
    LockReleaseError,
)
from containerd_shimkit.tasks import take_exception
from containerd_shimkit.tls import TlsConfigError

_DEFAULT_SECONDS: Final = 60
_MAX_SECONDS: Final = 9_000_000_000  # etcd's
_MAX_NAME_BYTES: Final = 64 << 10
_MAX_ANSWER_BYTES: Final = 1 << 20
_CALL_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 2.0
_UNAVAILABLE: Final = 14  # of gRPC: it is about to end
# Another key of the server's is not a lock, and nothing that a guest may remove.
_KEY: Final = re.compile(rb".*/[0-9a-f]{1,16}", re.DOTALL)


class Backend(LockingBackend):
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._session: aiohttp.ClientSession | None = None
        self._revoking: set[asyncio.Task[None]] = set()
        self._unanswered: dict[bytes, asyncio.Task[dict[str, Any]]] = {}
        """Requests for the locks with these keys, which are given."""

    async def lock(self, name: bytes, seconds: int | None = None) -> bytes:
        seconds = _DEFAULT_SECONDS if seconds is None else seconds
        if not 1 <= seconds <= _MAX_SECONDS:
            raise LockAcquireError(f"a lock lasts 1 to {_MAX_SECONDS} seconds, not {seconds}")
        if not 1 <= len(name) <= _MAX_NAME_BYTES:
            raise LockAcquireError(f"a lock's name has 1 to {_MAX_NAME_BYTES} bytes")
        # Not cut off in the middle: then nobody would know the lease.
        granting = asyncio.ensure_future(self._grant(seconds))
        try:
            lease = await asyncio.shield(granting)
        except asyncio.CancelledError:
            granting.add_done_callback(self._revoke_granted)
            raise
        keeping = asyncio.create_task(self._keep_alive(lease, seconds))
        call = self._call("lock/lock", {"name": _encoded(name), "lease": lease}, None)
        asking = asyncio.create_task(call)
        asking.add_done_callback(take_exception)
        try:
            key = await self._given(asking, name, lease)
            await self._call("lease/keepalive", {"ID": lease})  # its time begins now
        except BaseException:
            asking.cancel()
            self._revoke(lease)
            raise
        finally:
            keeping.cancel()
        if not asking.done():
            self._keep_asking(asking, key, seconds)
        return key

    async def _given(self, asking: asyncio.Task[dict[str, Any]], name: bytes, lease: str) -> bytes:
        """Return the lock's key when it is given, whether the server says so or not."""
        key = name + b"/%x" % int(lease)
        while not (await asyncio.wait((asking,), timeout=_LOOK_SECONDS))[0]:
            with suppress(LockingError):  # the request fails as well
                if await self._is_first(key, name):
                    return key
        return _decoded(asking.result().get("key"))

    async def _is_first(self, key: bytes, name: bytes) -> bool:
        """Whether nobody has to go before the one with this key."""
        oldest = {"sort_target": "CREATE", "sort_order": "ASCEND", "limit": "1", "keys_only": True}
        keys = {"key": _encoded(name + b"/"), "range_end": _encoded(name + b"0")}  # "/" is before
        found = (await self._call("kv/range", keys | oldest)).get("kvs")
        first = found[0] if isinstance(found, list) and found else None
        return isinstance(first, dict) and first.get("key") == _encoded(key)

    def _keep_asking(self, asking: asyncio.Task[dict[str, Any]], key: bytes, seconds: int) -> None:
        """Let a request go on until its lock ends, by ``unlock`` or after its time."""
        timer = asyncio.get_running_loop().call_later(seconds, asking.cancel)

        def end(_: asyncio.Task[dict[str, Any]]) -> None:
            timer.cancel()
            del self._unanswered[key]

        self._unanswered[key] = asking
        asking.add_done_callback(end)

    async def unlock(self, key: bytes) -> None:
        if len(key) > 2 * _MAX_NAME_BYTES or _KEY.fullmatch(key) is None:
            raise InvalidLockError("the key is not one of a lock")
        encoded = _encoded(key)
        answer = await self._call(
            "kv/txn",
            {
                "compare": [
                    {
                        "key": encoded,
                        "target": "CREATE",
                        "result": "GREATER",
                        "create_revision": "0",
                    }
                ],
                "success": [{"request_delete_range": {"key": encoded}}],
            },
            failure=LockReleaseError,
        )
        if (asking := self._unanswered.get(key)) is not None:
            asking.cancel()
        if not answer.get("succeeded"):
            raise InvalidLockError("there is no such lock, or not any more")

    async def close(self) -> None:
        if self._revoking:
            await asyncio.wait(self._revoking, timeout=_CALL_SECONDS)
        unanswered = list(self._unanswered.values())
        for asking in unanswered:
            asking.cancel()
        await asyncio.gather(*unanswered, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _grant(self, seconds: int) -> str:
        answer = await self._call("lease/grant", {"TTL": str(seconds)})
        lease = answer.get("ID")
        if not isinstance(lease, str) or not lease.isdecimal() or len(lease) > 20:
            raise LockProtocolError("the server grants no lease")
        return lease

    async def _keep_alive(self, lease: str, seconds: int) -> None:
        while True:
            await asyncio.sleep(seconds / 3)
            with suppress(LockingError):
                await self._call("lease/keepalive", {"ID": lease})

    def _revoke_granted(self, granting: asyncio.Future[str]) -> None:
        if not granting.cancelled() and granting.exception() is None:
            self._revoke(granting.result())

    def _revoke(self, lease: str) -> None:
        async def revoke() -> None:
            with suppress(LockingError):  # else it ends by itself
                await self._call("lease/revoke", {"ID": lease})

        task = asyncio.create_task(revoke())
        self._revoking.add(task)
        task.add_done_callback(self._revoking.discard)

    async def _call(
        self,
        method: str,
        body: dict[str, Any],
        seconds: float | None = _CALL_SECONDS,
        failure: type[LockingError] = LockAcquireError,
    ) -> dict[str, Any]:
        """Return the answer. seconds: how long it may take. failure: what the server refuses is."""
        url, context = await self._endpoint()
        server = urlsplit(url).netloc
        if self._session is None:
            self._session = _new_session()
        try:
            async with self._session.post(
                f"{url}/v3/{method}",
                json=body,
                ssl=context or True,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=_CALL_SECONDS),
            ) as response:
                data = await _read(response)
                status = response.status
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError):
            raise LockConnectionError(
                f"{server}: its certificate or its TLS is not accepted"
            ) from None
        except (aiohttp.ClientError, OSError, TimeoutError):
            raise LockConnectionError(f"{server}: the server does not answer") from None
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            raise LockProtocolError(f"{server}: its answer is not etcd's") from None
        if not isinstance(answer, dict):
            raise LockProtocolError(f"{server}: its answer is not etcd's")
        if answer.get("code") == _UNAVAILABLE:
            raise LockConnectionError(f"{server}: the server does not answer")
        if status != 200:
            raise failure(f"{server}: {str(answer.get('error', f'status {status}'))[:1000]}")
        result = answer.get("result", answer)  # of what the API has as a stream
        return result if isinstance(result, dict) else {}

    async def _endpoint(self) -> tuple[str, ssl.SSLContext | None]:
        text = await self.context.value("ETCD_ENDPOINT")
        url = text if "://" in text else f"http://{text}"
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good or parts.path not in ("", "/") or parts.query or parts.username is not None:
            raise LockingError("ETCD_ENDPOINT is not like http://host:2379")
        if parts.scheme == "http":
            return url.removesuffix("/"), None
        try:
            return url.removesuffix("/"), self.context.app.certificates.context()
        except TlsConfigError as exc:
            raise LockingError(str(exc)) from None


def _new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        # Whoever waits for a lock holds one; nobody who gives one back may wait behind them.
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _read(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > _MAX_ANSWER_BYTES:
            raise LockProtocolError(f"the server's answer exceeds {_MAX_ANSWER_BYTES} bytes")
    return bytes(data)


def _encoded(data: bytes) -> str:
    return b64encode(data).decode()


def _decoded(text: Any) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise LockProtocolError("the server's answer has no key") from None
