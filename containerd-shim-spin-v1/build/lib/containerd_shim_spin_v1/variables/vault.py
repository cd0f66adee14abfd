"""Variables kept in HashiCorp Vault, in a secrets engine of type KV version 2.

The variable ``name`` is the field ``value`` of the secret ``<prefix>/name``.

Source: Vault's HTTP API, KV secrets engine version 2, "Read secret version"; Spin 3.6
crates/variables-vault/src/lib.rs.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from containerd_shim_spin_v1.runtime_config.model import VaultConfig
from containerd_shim_spin_v1.variables.secret_server import SECONDS, SecretServer
from containerd_shim_spin_v1.variables.values import ProviderError

FIELD: Final = "value"

_REASONS: Final[Mapping[int, str]] = {
    HTTPStatus.BAD_REQUEST: "it does not understand the request: is `mount` of type KV version 2?",
    HTTPStatus.FORBIDDEN: "the token is not valid there or may not read it",
    HTTPStatus.TOO_MANY_REQUESTS: "too many requests",
    HTTPStatus.SERVICE_UNAVAILABLE: "it is sealed or under maintenance",
}


class VaultProvider:
    """Reads one mount of one Vault."""

    def __init__(
        self, config: VaultConfig, tls: Callable[[], ssl.SSLContext], seconds: float = SECONDS
    ) -> None:
        path = [_quoted(config.mount), "data", _quoted(config.prefix or "")]
        self._url = "/".join([config.url.rstrip("/"), "v1", *filter(None, path)])
        self._headers = {"x-vault-token": config.token, "x-vault-request": "true"}
        self._server = SecretServer("vault", tls, seconds)

    async def get(self, name: str) -> str | None:
        """See ``Provider``."""
        url = f"{self._url}/{quote(name, safe='')}"
        status, answer = await self._server.ask("GET", url, headers=self._headers)
        match status, answer:
            case HTTPStatus.OK, {"data": {"data": {"value": str(value)}}}:
                return value
            case HTTPStatus.OK, _:
                raise self._error(url, name, f"the secret has no field `{FIELD}` that is a string")
            case HTTPStatus.NOT_FOUND, _:
                return None
        reason = f": {_REASONS[status]}" if status in _REASONS else ""
        raise self._error(url, name, f"answered {status}{reason}")

    async def close(self) -> None:
        """See ``Provider``."""
        await self._server.close()

    def _error(self, url: str, name: str, what: str) -> ProviderError:
        return ProviderError(f"{self._server.where(url)}: variable {name!r}: {what}")


def _quoted(path: str) -> str:
    return quote(path.strip("/"), safe="/")
