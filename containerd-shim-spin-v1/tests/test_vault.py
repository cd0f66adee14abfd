"""Variables in Vault, against a server that answers as Vault's documentation says."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from aiohttp import web

from containerd_shim_spin_v1.runtime_config.model import VaultConfig
from containerd_shim_spin_v1.variables.secret_server import MAX_ANSWER_BYTES
from containerd_shim_spin_v1.variables.values import ProviderError
from containerd_shim_spin_v1.variables.vault import VaultProvider
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.servers.tls import Authority, Certificate, certificate_authority

TOKEN = "hvs.s3cret"


class FakeVault:
    """KV version 2 at the mounts ``secret`` and ``team/kv``."""

    def __init__(self) -> None:
        self.secrets: dict[str, Any] = {}
        self.asked: list[str] = []
        self.hang = asyncio.Event()
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.raw_path)
        if request.headers.get("x-vault-token") != TOKEN:
            return web.json_response({"errors": ["permission denied"]}, status=403)
        assert request.headers["x-vault-request"] == "true"
        name = request.path.removeprefix("/v1/")
        match self.secrets.get(name):
            case None:
                return web.json_response({"errors": []}, status=404)
            case int(status):
                return web.json_response({"errors": ["x"]}, status=status)
            case "hang":
                await self.hang.wait()
            case "redirect":
                raise web.HTTPTemporaryRedirect("http://127.0.0.1:1/elsewhere")
            case "cut":
                assert request.transport is not None
                request.transport.abort()
            case bytes(body):
                return web.Response(body=body)
            case dict(fields):
                metadata = {"created_time": "2018-03-22T02:24:06.945319214Z", "version": 2}
                return web.json_response({"data": {"data": fields, "metadata": metadata}})
        return web.Response(status=500)


@asynccontextmanager
async def running_vault(
    address: tuple[str, int] | None = None, certificate: Certificate | None = None
) -> AsyncIterator[FakeVault]:
    vault = FakeVault()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", vault.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    host, port = address or free_address()
    context = certificate.server_context() if certificate else None
    await web.TCPSite(runner, host, port, ssl_context=context).start()
    vault.url = f"{'https' if certificate else 'http'}://{host}:{port}"
    try:
        yield vault
    finally:
        vault.hang.set()
        await runner.cleanup()


def run(main: Callable[[FakeVault], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with running_vault() as vault:
            await main(vault)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())


async def get(vault: FakeVault, name: str, **changes: Any) -> str | None:
    """Ask once. changes: of the configuration."""
    seconds = changes.pop("seconds", 30.0)
    given = {"url": vault.url, "token": TOKEN, "mount": "secret", "prefix": None} | changes
    provider = VaultProvider(VaultConfig(**given), ssl.create_default_context, seconds)
    assert TOKEN not in repr(provider)
    try:
        return await provider.get(name)
    finally:
        await provider.close()


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({}, "/v1/secret/data/token"),
        ({"mount": "/team/kv/"}, "/v1/team/kv/data/token"),
        ({"prefix": "my app/prod"}, "/v1/secret/data/my%20app/prod/token"),
        ({"prefix": "/"}, "/v1/secret/data/token"),
        ({"prefix": "../../sys?x#y"}, "/v1/secret/data/../../sys%3Fx%23y/token"),
    ],
)
def test_where_a_variable_is(changes: dict[str, str], path: str) -> None:
    async def main(vault: FakeVault) -> None:
        assert await get(vault, "token", **changes) is None
        assert vault.asked == [path]

    run(main)


def test_value() -> None:
    async def main(vault: FakeVault) -> None:
        vault.secrets["secret/data/app/token"] = {"value": "hé", "other": 1}
        assert await get(vault, "token", prefix="app") == "hé"
        assert await get(vault, "token", prefix="app", url=f"{vault.url}/") == "hé"
        assert await get(vault, "other", prefix="app") is None

    run(main)


LARGE = json.dumps({"data": {"data": {"value": "x" * MAX_ANSWER_BYTES}}}).encode()
FAILURES = [
    pytest.param(403, "answered 403: the token is not valid there or may not read it", id="403"),
    pytest.param(503, "answered 503: it is sealed", id="sealed"),
    pytest.param(500, "answered 500", id="500"),
    pytest.param("redirect", "answered 307", id="redirect"),
    pytest.param("cut", "cannot be asked: the server closed the connection", id="cut"),
    pytest.param({"other": "x"}, "the secret has no field `value` that is a string", id="field"),
    pytest.param({"value": 1}, "the secret has no field `value` that is a string", id="number"),
    pytest.param(b"<html>", "has no field `value`", id="no json"),
    pytest.param(b"[" * 100_000, "has no field `value`", id="deep json"),
    pytest.param(gzip.compress(b"{}"), "has no field `value`", id="compressed"),
    pytest.param(LARGE, f"answered more than {MAX_ANSWER_BYTES} bytes", id="large"),
]


@pytest.mark.parametrize(("secret", "message"), FAILURES)
def test_failure(secret: Any, message: str) -> None:
    async def main(vault: FakeVault) -> None:
        vault.secrets["secret/data/token"] = secret
        with pytest.raises(ProviderError) as caught:
            await get(vault, "token")
        assert message in str(caught.value)
        assert str(caught.value).startswith(f"vault at {vault.url}")

    run(main)


def test_large_value() -> None:
    async def main(vault: FakeVault) -> None:
        vault.secrets["secret/data/token"] = {"value": "x" * (1 << 20)}
        assert await get(vault, "token") == "x" * (1 << 20)

    run(main)


def test_wrong_token_is_not_shown() -> None:
    async def main(vault: FakeVault) -> None:
        with pytest.raises(ProviderError, match="answered 403") as caught:
            await get(vault, "token", token="hvs.wrong")
        assert "hvs." not in str(caught.value)

    run(main)


def test_password_of_the_address_is_not_shown() -> None:
    async def main(vault: FakeVault) -> None:
        vault.secrets["secret/data/token"] = 500
        url = vault.url.replace("http://", "http://user:s3cret@")
        with pytest.raises(ProviderError, match="answered 500") as caught:
            await get(vault, "token", url=url)
        assert "s3cret" not in str(caught.value)

    run(main)


def test_server_that_hangs() -> None:
    async def main(vault: FakeVault) -> None:
        vault.secrets["secret/data/token"] = "hang"
        with pytest.raises(ProviderError, match=r"did not answer within 0\.3 s"):
            await get(vault, "token", seconds=0.3)

    run(main)


def test_server_that_is_not_there() -> None:
    async def main(vault: FakeVault) -> None:
        host, port = free_address()
        with pytest.raises(ProviderError, match=f"vault at http://{host}:{port} cannot be asked: "):
            await get(vault, "token", url=f"http://{host}:{port}")

    run(main)


def test_host_that_is_not_known() -> None:
    async def main(vault: FakeVault) -> None:
        with pytest.raises(ProviderError, match=r"vault at http://nobody\.invalid cannot be asked"):
            await get(vault, "token", url="http://nobody.invalid")

    run(main)


def test_connection_closed_while_idle_does_no_harm() -> None:
    async def main(vault: FakeVault) -> None:
        vault.secrets["secret/data/token"] = {"value": "x"}
        config = VaultConfig(url=vault.url, token=TOKEN, mount="secret", prefix=None)
        provider = VaultProvider(config, ssl.create_default_context)
        assert await provider.get("token") == "x"
        vault.secrets["secret/data/cut"] = "cut"
        with pytest.raises(ProviderError):
            await provider.get("cut")
        assert await provider.get("token") == "x"
        await provider.close()
        await provider.close()

    run(main)


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with certificate_authority() as made:
        yield made


def trusting(authority: Authority) -> Callable[[], ssl.SSLContext]:
    return lambda: ssl.create_default_context(cafile=authority.cert)


def test_tls(authority: Authority) -> None:
    async def main() -> None:
        address = free_address()
        async with running_vault(address, authority.issue("vault", f"IP:{address[0]}")) as vault:
            vault.secrets["secret/data/token"] = {"value": "x"}
            config = VaultConfig(url=vault.url, token=TOKEN, mount="secret", prefix=None)
            provider = VaultProvider(config, trusting(authority))
            assert await provider.get("token") == "x"
            await provider.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("trusted", [False, True])
def test_certificate_of_nobody_we_trust_or_of_another_host(
    authority: Authority, trusted: bool
) -> None:
    async def main() -> None:
        certificate = authority.issue("other", "DNS:other.example")
        async with running_vault(certificate=certificate) as vault:
            config = VaultConfig(url=vault.url, token=TOKEN, mount="secret", prefix=None)
            provider = VaultProvider(
                config, trusting(authority) if trusted else ssl.create_default_context
            )
            with pytest.raises(ProviderError, match=r"no TLS connection: .*certificate"):
                await provider.get("token")
            assert vault.asked == []
            await provider.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
