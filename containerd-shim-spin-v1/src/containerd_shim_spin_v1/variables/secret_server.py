"""What variables providers that ask a server have in common: one small HTTP client."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import yarl

from containerd_shim_spin_v1.variables.values import ProviderError
from containerd_shimkit.http_client.reasons import reason_of
from containerd_shimkit.tls import TlsConfigError

MAX_ANSWER_BYTES: Final = 2 << 20  # Vault takes entries of 1 MiB, and answers with JSON of them
SECONDS: Final = 10.0
"""For an answer, the connection included."""

_CONNECTIONS: Final = 8


class SecretServer:
    """Asks one server. Its session is made at the first question: that needs the event loop."""

    def __init__(
        self, kind: str, tls: Callable[[], ssl.SSLContext], seconds: float = SECONDS
    ) -> None:
        """kind: what messages call the server."""
        self._kind = kind
        self._tls = tls
        self._timeout = aiohttp.ClientTimeout(total=seconds)
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Return status and JSON of the answer; None for a body that is no JSON.

        url: encoded already.  Raises ProviderError, in whose message is no more of the URL than
        its host: the rest may hold secrets, as may the answer.
        """
        target = yarl.URL(url, encoded=True)
        try:
            async with self._open_session().request(
                *(method, target),
                headers=headers,
                data=form,
                ssl=self._tls() if target.scheme == "https" else True,
                allow_redirects=False,  # they would carry the token elsewhere
            ) as answer:
                body = await answer.content.read(MAX_ANSWER_BYTES + 1)
                while len(body) <= MAX_ANSWER_BYTES and not answer.content.at_eof():
                    body += await answer.content.read(MAX_ANSWER_BYTES + 1 - len(body))
                status = answer.status
        except TlsConfigError as exc:
            raise ProviderError(f"{self.where(url)}: {exc}") from None
        except TimeoutError:
            seconds = self._timeout.total
            raise ProviderError(f"{self.where(url)} did not answer within {seconds:g} s") from None
        except aiohttp.ClientSSLError as exc:
            raise ProviderError(f"{self.where(url)}: no TLS connection: {reason_of(exc)}") from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise ProviderError(f"{self.where(url)} cannot be asked: {reason_of(exc)}") from None
        if len(body) > MAX_ANSWER_BYTES:
            raise ProviderError(f"{self.where(url)} answered more than {MAX_ANSWER_BYTES} bytes")
        return status, _json(body)

    def where(self, url: str) -> str:
        """Return what messages call the server: ``vault at https://host:8200``."""
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        host = parts.hostname or ""
        return f"{self._kind} at {parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"

    async def close(self) -> None:
        """End every connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"accept-encoding": "identity"},
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
