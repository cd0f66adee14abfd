"""Variables in Azure Key Vault, against servers that answer as Azure's documentation says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web

from containerd_shim_spin_v1.runtime_config.model import AzureKeyVaultConfig
from containerd_shim_spin_v1.variables.azure_key_vault import (
    AzureKeyVaultProvider,
    Client,
    find_client,
)
from containerd_shim_spin_v1.variables.values import ProviderError
from containerd_shimkit.errors import ManifestError
from containerd_shimkit.testing.apps import free_address

SECRET = "s3cret"


class FakeAzure:
    """A vault, and who gives tokens for it."""

    def __init__(self) -> None:
        self.url = ""
        self.secrets: dict[str, Any] = {}
        self.logins: list[dict[str, str]] = []
        self.valid: set[str] = set()
        self.expires_in: Any = 3599
        self.revoked = False

    async def give_token(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.logins.append(form | {"tenant": request.match_info["tenant"]})
        if SECRET not in (form.get("client_secret"), form.get("client_assertion")):
            text = f"AADSTS7000215: Invalid client secret {form}"
            return web.json_response(
                {"error": "invalid_client", "error_description": text}, status=401
            )
        token = f"token-{len(self.logins)}"
        self.valid.add(token)
        answer = {"token_type": "Bearer", "expires_in": self.expires_in, "access_token": token}
        return web.json_response(answer)

    async def give_secret(self, request: web.Request) -> web.Response:
        assert request.query == {"api-version": "7.4"}
        kind, _, token = request.headers["authorization"].partition(" ")
        if kind != "Bearer" or token not in self.valid or self.revoked:
            return web.json_response({"error": {"code": "Unauthorized"}}, status=401)
        match self.secrets.get(request.match_info["name"]):
            case None:
                return web.json_response({"error": {"code": "SecretNotFound"}}, status=404)
            case int(status):
                return web.json_response({"error": {"code": "x"}}, status=status)
            case dict(answer):
                return web.json_response(answer)
            case value:
                return web.json_response({"value": value, "id": request.path, "attributes": {}})


@asynccontextmanager
async def running_azure() -> AsyncIterator[FakeAzure]:
    azure = FakeAzure()
    app = web.Application()
    app.router.add_post("/{tenant}/oauth2/v2.0/token", azure.give_token)
    app.router.add_get("/secrets/{name}", azure.give_secret)
    runner = web.AppRunner(app)
    await runner.setup()
    host, port = free_address()
    await web.TCPSite(runner, host, port).start()
    azure.url = f"http://{host}:{port}"
    try:
        yield azure
    finally:
        await runner.cleanup()


@asynccontextmanager
async def provider_of(azure: FakeAzure, **changes: Any) -> AsyncIterator[AzureKeyVaultProvider]:
    given = {"secret": SECRET, "token_file": None} | changes
    client = Client(azure.url, "tenant", "client", **given)
    assert SECRET not in repr(client)
    provider = AzureKeyVaultProvider(f"{azure.url}/", client, ssl.create_default_context)
    try:
        yield provider
    finally:
        await provider.close()


def run(main: Callable[[FakeAzure], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with running_azure() as azure:
            await main(azure)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())


def test_value() -> None:
    async def main(azure: FakeAzure) -> None:
        azure.secrets["api-key"] = "hé"
        async with provider_of(azure) as provider:
            assert await provider.get("api_key") == "hé"
            assert await provider.get("other") is None
        host = azure.url.split("//")[1].split(":")[0]
        assert azure.logins == [
            {
                "tenant": "tenant",
                "grant_type": "client_credentials",
                "client_id": "client",
                "client_secret": SECRET,
                "scope": f"https://{host.partition('.')[2]}/.default",
            }
        ]

    run(main)


def test_workload_identity(tmp_path: Path) -> None:
    async def main(azure: FakeAzure) -> None:
        azure.secrets["a"] = "x"
        file = tmp_path / "token"
        async with provider_of(azure, secret=None, token_file=file) as provider:
            with pytest.raises(ProviderError, match="AZURE_FEDERATED_TOKEN_FILE: no such file"):
                await provider.get("a")
            file.write_text(f"{SECRET}\n")
            assert await provider.get("a") == "x"
        (login,) = azure.logins
        assert login["client_assertion"] == SECRET
        assert login["client_assertion_type"].endswith(":jwt-bearer")

    run(main)


def test_token_is_replaced_before_it_ends_and_when_it_is_revoked() -> None:
    async def main(azure: FakeAzure) -> None:
        azure.secrets["a"] = "x"
        azure.expires_in = 30
        async with provider_of(azure) as provider:
            assert [await provider.get("a"), await provider.get("a")] == ["x", "x"]
            assert len(azure.logins) == 2
            azure.expires_in = 3599
            assert [await provider.get("a"), await provider.get("a")] == ["x", "x"]
            assert len(azure.logins) == 3
            azure.valid.clear()
            assert await provider.get("a") == "x"
            assert len(azure.logins) == 4

    run(main)


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        (403, "variable 'a': answered 403: the client may not read it"),
        (500, "variable 'a': answered 500"),
        ({"other": 1}, "variable 'a': the answer holds no value"),
    ],
)
def test_failure(secret: Any, message: str) -> None:
    async def main(azure: FakeAzure) -> None:
        azure.secrets["a"] = secret
        async with provider_of(azure) as provider:
            with pytest.raises(ProviderError) as caught:
                await provider.get("a")
            assert str(caught.value) == f"azure key vault at {azure.url}: {message}"

    run(main)


def test_token_that_is_never_taken() -> None:
    async def main(azure: FakeAzure) -> None:
        azure.revoked = True
        async with provider_of(azure) as provider:
            with pytest.raises(ProviderError, match="answered 401: it does not take the token"):
                await provider.get("a")
        assert len(azure.logins) == 2

    run(main)


def test_wrong_secret_is_not_shown() -> None:
    async def main(azure: FakeAzure) -> None:
        async with provider_of(azure, secret="wr0ng") as provider:
            with pytest.raises(ProviderError) as caught:
                await provider.get("a")
        where = f"azure's token service at {azure.url}"
        assert str(caught.value) == f"{where}: answered 401: invalid_client"

    run(main)


def test_answer_without_a_token() -> None:
    async def main(azure: FakeAzure) -> None:
        azure.expires_in = "soon"
        async with provider_of(azure) as provider:
            with pytest.raises(ProviderError, match=r"azure's token service at .*: answered 200$"):
                await provider.get("a")

    run(main)


# Who asks

ENV = {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c"}


def config(**changes: Any) -> AzureKeyVaultConfig:
    given = {"client_id": None, "tenant_id": None, "client_secret": None} | changes
    given.setdefault("authority_host", "AzurePublicCloud")
    return AzureKeyVaultConfig("https://x.vault.azure.net", **given)


def test_client_of_the_configuration() -> None:
    given = {"client_id": "c", "tenant_id": "t", "client_secret": SECRET}
    client = find_client(config(**given, authority_host="AzureChina"), Path("/"), ENV)
    assert client == Client("https://login.chinacloudapi.cn", "t", "c", SECRET, None)


@pytest.mark.parametrize(
    ("env", "client"),
    [
        (
            {"AZURE_CLIENT_SECRET": SECRET, "AZURE_FEDERATED_TOKEN_FILE": "/token"},
            Client("https://login.microsoftonline.com", "t", "c", SECRET, None),
        ),
        (
            {"AZURE_FEDERATED_TOKEN_FILE": "/token", "AZURE_AUTHORITY_HOST": "https://h/"},
            Client("https://h", "t", "c", None, Path("/root/token")),
        ),
    ],
)
def test_client_of_the_environment(env: dict[str, str], client: Client) -> None:
    assert find_client(config(), Path("/root"), ENV | env) == client


@pytest.mark.parametrize("env", [{}, ENV, {"AZURE_CLIENT_SECRET": SECRET}])
def test_no_client(env: dict[str, str]) -> None:
    with pytest.raises(ManifestError, match="needs `client_id`, `tenant_id` and") as caught:
        find_client(config(), Path("/"), env)
    assert SECRET not in str(caught.value)
