"""Asking the servers of clouds: one small HTTP client, whose answers are bounded.

What is sent may be sent twice, if a server closes a connection that was idle: so it has to be
something that does no harm the second time.
"""

from __future__ import annotations

import encodings.idna  # a codec of hosts, found by name, which is too late in a container  # noqa: F401
import io
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import yarl
from multidict import CIMultiDict

from containerd_shimkit.http_client.reasons import reason_of
from containerd_shimkit.tls import TlsConfigError

MAX_SMALL_BYTES: Final = 8 << 20
"""Of what is no value of a guest's: errors, and pages of lists."""
_CONNECT_SECONDS: Final = 10.0
_SILENCE_SECONDS: Final = 60.0
_MOST_AT_ONCE_BYTES: Final = 1 << 20


class RestError(Exception):
    """There is no answer; the message names the server's host and no more of the URL."""


class RestConnectionError(RestError):
    """The server is away."""


class RestTooLargeError(RestError):
    """The answer has more bytes than are taken."""


class RestTimeoutError(RestError):
    """The server takes too long."""


@dataclass(frozen=True, slots=True)
class RestAnswer:
    """An answer of any status."""

    status: int
    headers: Mapping[str, str]
    """Whose names are in any case."""
    body: bytes


class RestClient:
    """Its session is made at the first question: that needs the event loop."""

    def __init__(self, tls: Callable[[], ssl.SSLContext]) -> None:
        """tls: returns the context for https; may raise TlsConfigError."""
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        most_bytes: int = MAX_SMALL_BYTES,
    ) -> RestAnswer:
        """Send a request, wait for all of the answer. Raises RestError.

        url: encoded already.  most_bytes: of the answer's body.
        """
        where = place(url)
        try:
            try:
                return await self._ask(method, url, headers, body, most_bytes)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as exc:
                if isinstance(exc, aiohttp.ClientConnectorError):
                    raise
                return await self._ask(method, url, headers, body, most_bytes)
        except TlsConfigError as exc:
            raise RestConnectionError(f"{where}: {exc}") from None
        except TimeoutError:
            raise RestTimeoutError(f"{where} does not answer") from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise RestConnectionError(f"{where} cannot be asked: {reason_of(exc)}") from None

    async def close(self) -> None:
        """End every connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, most_bytes: int
    ) -> RestAnswer:
        target = yarl.URL(url, encoded=True)
        async with self._open_session().request(
            *(method, target),
            headers=headers,
            data=_sendable(body),
            ssl=self._tls() if target.scheme == "https" else True,
            allow_redirects=False,  # what is signed is for one host
            skip_auto_headers=("content-type", "user-agent", "accept"),
        ) as answer:
            content = bytearray()
            async for part in answer.content.iter_any():
                content += part
                if len(content) > most_bytes:
                    answer.close()
                    raise RestTooLargeError(f"{place(url)} answers more than {most_bytes} bytes")
            return RestAnswer(answer.status, _clean(answer.headers), bytes(content))

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # A guest makes one call at a time: there are no more than requests in flight, and
                # none waits behind those of others that take long.
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"accept-encoding": "identity"},
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


def _clean(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return headers without what is no UTF-8: values are sent back, and guests get them."""
    return CIMultiDict(
        (name, value if value.isascii() else value.encode(errors="replace").decode())
        for name, value in headers.items()
    )


def _sendable(body: bytes) -> bytes | io.BytesIO | None:
    """Return what aiohttp sends in pieces, so that others are served meanwhile, if it is much."""
    return io.BytesIO(body) if len(body) > _MOST_AT_ONCE_BYTES else body or None


def place(url: str) -> str:
    """Return what messages call a server: ``https://host:8200``."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
