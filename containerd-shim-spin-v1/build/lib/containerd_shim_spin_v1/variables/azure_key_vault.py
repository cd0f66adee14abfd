"""Variables kept in Azure Key Vault.

The variable ``api_key`` is the secret ``api-key``: names of secrets hold no ``_``.

Who asks is the configuration's client, or the one that the container's environment names as Azure's
own libraries do: ``AZURE_TENANT_ID``, ``AZURE_CLIENT_ID`` and either ``AZURE_CLIENT_SECRET`` or,
with workload identity on Kubernetes, ``AZURE_FEDERATED_TOKEN_FILE``; ``AZURE_AUTHORITY_HOST``.

Source: Azure Key Vault's REST API, "Get Secret"; Microsoft identity platform, "OAuth 2.0 client
credentials flow"; Spin 3.6 crates/variables-azure/src/lib.rs.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from containerd_shim_spin_v1.runtime_config.model import AzureKeyVaultConfig
from containerd_shim_spin_v1.variables.secret_server import SECONDS, SecretServer
from containerd_shim_spin_v1.variables.values import ProviderError
from containerd_shimkit.errors import ManifestError
from containerd_shimkit.text.image_files import read_text

AUTHORITIES: Final = {
    "AzurePublicCloud": "https://login.microsoftonline.com",
    "AzureChina": "https://login.chinacloudapi.cn",
    "AzureGermany": "https://login.microsoftonline.de",
    "AzureGovernment": "https://login.microsoftonline.us",
}

_API_VERSION: Final = "7.4"
_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_EARLY_SECONDS: Final = 60.0  # a token is not used any more so long before its end
_REASONS: Final[Mapping[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "it does not take the token",
    HTTPStatus.FORBIDDEN: "the client may not read it",
    HTTPStatus.TOO_MANY_REQUESTS: "too many requests",
}


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks."""

    authority: str
    """URL of who gives tokens."""
    tenant_id: str
    client_id: str
    secret: str | None = field(repr=False)
    token_file: Path | None
    """Holds a token of the container's own, if there is no secret; it is replaced now and then."""


def find_client(config: AzureKeyVaultConfig, root: Path, env: Mapping[str, str]) -> Client:
    """Return the client of the configuration or of the container's environment.

    root: of the container's files.  Raises ManifestError if there is none.
    """
    authority = AUTHORITIES[config.authority_host]
    if config.client_id and config.tenant_id and config.client_secret:
        return Client(authority, config.tenant_id, config.client_id, config.client_secret, None)
    tenant, client = env.get("AZURE_TENANT_ID"), env.get("AZURE_CLIENT_ID")
    secret, file = env.get("AZURE_CLIENT_SECRET"), env.get("AZURE_FEDERATED_TOKEN_FILE")
    if not tenant or not client or not (secret or file):
        raise ManifestError(
            "variables provider 'azure_key_vault' needs `client_id`, `tenant_id` and "
            "`client_secret`, or AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET or "
            "AZURE_FEDERATED_TOKEN_FILE in the container's environment"
        )
    path = root / file.lstrip("/") if file and not secret else None
    authority = env.get("AZURE_AUTHORITY_HOST") or authority
    return Client(authority.rstrip("/"), tenant, client, secret or None, path)


class AzureKeyVaultProvider:
    """Reads one vault."""

    def __init__(
        self,
        vault_url: str,
        client: Client,
        tls: Callable[[], ssl.SSLContext],
        seconds: float = SECONDS,
    ) -> None:
        self._url = vault_url.rstrip("/")
        self._client = client
        # Each cloud has a domain of its own for its vaults, and it names what tokens are for.
        domain = (urlsplit(vault_url).hostname or "").partition(".")[2]
        self._scope = f"https://{domain}/.default"
        self._vault = SecretServer("azure key vault", tls, seconds)
        self._authority = SecretServer("azure's token service", tls, seconds)
        self._token: tuple[float, str] | None = None
        self._asking = asyncio.Lock()

    async def get(self, name: str) -> str | None:
        """See ``Provider``."""
        secret = quote(name.replace("_", "-"), safe="")
        url = f"{self._url}/secrets/{secret}?api-version={_API_VERSION}"
        status, answer = await self._ask(url)
        if status == HTTPStatus.UNAUTHORIZED:  # a token may be revoked
            self._token = None
            status, answer = await self._ask(url)
        where = self._vault.where(url)
        match status, answer:
            case HTTPStatus.OK, {"value": str(value)}:
                return value
            case HTTPStatus.OK, _:
                raise ProviderError(f"{where}: variable {name!r}: the answer holds no value")
            case HTTPStatus.NOT_FOUND, _:
                return None
        reason = f": {_REASONS[status]}" if status in _REASONS else ""
        raise ProviderError(f"{where}: variable {name!r}: answered {status}{reason}")

    async def close(self) -> None:
        """See ``Provider``."""
        await self._vault.close()
        await self._authority.close()

    async def _ask(self, url: str) -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {await self._get_token()}"}
        return await self._vault.ask("GET", url, headers=headers)

    async def _get_token(self) -> str:
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if self._token is None or self._token[0] < now:
                token, seconds = await self._new_token()
                self._token = (now + seconds - _EARLY_SECONDS, token)
            return self._token[1]

    async def _new_token(self) -> tuple[str, float]:
        """Return a token and for how many seconds it is good."""
        client = self._client
        url = f"{client.authority}/{quote(client.tenant_id, safe='')}/oauth2/v2.0/token"
        form = {
            "grant_type": "client_credentials",
            "client_id": client.client_id,
            "scope": self._scope,
        }
        if client.secret is not None:
            form["client_secret"] = client.secret
        else:
            form |= {
                "client_assertion_type": _ASSERTION_TYPE,
                "client_assertion": self._own_token(),
            }
        status, answer = await self._authority.ask("POST", url, form=form)
        match status, answer:
            case HTTPStatus.OK, {"access_token": str(token), "expires_in": int(seconds)}:
                return token, seconds
        raise ProviderError(f"{self._authority.where(url)}: answered {status}{_error_of(answer)}")

    def _own_token(self) -> str:
        path = self._client.token_file
        text = None
        if path is not None:
            try:
                text = read_text(path, path.name)
            except ManifestError as exc:
                raise ProviderError(f"AZURE_FEDERATED_TOKEN_FILE: {exc}") from None
        if text is None:
            raise ProviderError("AZURE_FEDERATED_TOKEN_FILE: no such file")
        return text.strip()


def _error_of(answer: Any) -> str:
    """Return the code of an error, a word; what else an answer holds is nobody's to see."""
    match answer:
        case {"error": str(code)} if re.fullmatch(r"[a-z_]{1,40}", code):
            return f": {code}"
    return ""
