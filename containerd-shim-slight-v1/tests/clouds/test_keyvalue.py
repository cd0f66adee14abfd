"""``keyvalue.azblob`` and ``keyvalue.awsdynamodb``: Azurite and moto check signatures."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import pytest

from containerd_shim_slight_v1.capabilities import listing, rest
from containerd_shim_slight_v1.capabilities.aws import AwsService
from containerd_shim_slight_v1.capabilities.errors import CapabilityError
from containerd_shim_slight_v1.capabilities.keyvalue import azblob
from containerd_shim_slight_v1.capabilities.keyvalue.base import KeyValueBackend
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import fetch
from ended import use_without_imports

Image = Any  # of conftest.py
Cloud = Any


def fails(cloud: Cloud, case: str, message: str, store: str = "store") -> None:
    """Check how every function fails."""

    async def main(backend: KeyValueBackend) -> None:
        for make in (
            lambda: backend.get(store, "k"),
            lambda: backend.set(store, "k", b"secret"),
            lambda: backend.keys(store),
            lambda: backend.delete(store, "k"),
        ):
            with pytest.raises(CapabilityError, match=message) as caught:
                await make()
            assert caught.value.case == case
            assert "secret" not in str(caught.value)

    cloud.call(main)


@pytest.fixture(params=["azure", "dynamodb"])
def cloud(request: pytest.FixtureRequest) -> Cloud:
    found: Cloud = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize(
    "key", ["key", "a/b", "größe", "a b", "100%", "?a=b&c#d", "+", "a//b", "~*'()", "<&>"]
)
def test_guest_sets_reads_lists_and_removes(image: Image, cloud: Cloud, key: str) -> None:
    image.slightfile(cloud.slightfile)

    async def main(port: int) -> None:
        path = f"/kv/store/{quote(key, safe='')}/"
        for value in (b"one", b"", b"\0\xff" * 50_000):
            answer = await fetch(port, path, method="PUT", body=value)
            assert (answer.status, answer.text) == (204, "")
            assert (await fetch(port, path)).body == value
        assert (await fetch(port, "/kv/store")).body == f"{key}\n".encode()
        assert (await fetch(port, path, method="DELETE")).status == 204
        assert (await fetch(port, "/kv/store")).body == b""
        answer = await fetch(port, path)
        assert (answer.status, answer.text) == (418, f"0 there is no key {key!r}")

    image.run(main)


def test_missing_key_is_removed(azure: Cloud, dynamodb: Cloud) -> None:
    async def main(backend: KeyValueBackend) -> None:
        with pytest.raises(CapabilityError, match="there is no key 'k'") as caught:
            await backend.delete("store", "k")
        assert caught.value.case == "key-not-found"

    azure.call(main)

    async def no_error(backend: KeyValueBackend) -> None:
        await backend.delete("store", "k")

    dynamodb.call(no_error)


@pytest.mark.parametrize("key", ["", "x" * 3000])
def test_key_that_cannot_be(cloud: Cloud, key: str) -> None:
    async def main(backend: KeyValueBackend) -> None:
        for make in (
            lambda: backend.get("store", key),
            lambda: backend.set("store", key, b""),
            lambda: backend.delete("store", key),
        ):
            with pytest.raises(CapabilityError) as caught:
                await make()
            assert caught.value.case == "invalid-key"

    cloud.call(main)


@pytest.mark.parametrize("store", ["", "..", "a", "a/b", "Größe", "a" * 64, "a?b=c"])
def test_store_that_no_container_can_be(azure: Cloud, store: str) -> None:
    async def main(backend: KeyValueBackend) -> None:
        with pytest.raises(CapabilityError, match="cannot be the name of") as caught:
            await backend.open(store)
        assert caught.value.case == "unexpected-error"

    azure.call(main)


@pytest.mark.parametrize("key", ["..", "a/../b", "."])
def test_step_of_dots_is_nobody_elses_blob(azure: Cloud, key: str) -> None:
    async def main(backend: KeyValueBackend) -> None:
        with pytest.raises(CapabilityError, match="a step of dots"):
            await backend.get("store", key)

    azure.call(main)


def test_store_that_is_not_there(azure: Cloud, dynamodb: Cloud) -> None:
    fails(azure, "unexpected-error", "the account has no container 'other'", "other")
    fails(dynamodb, "unexpected-error", "there is no table 'other'", "other")


def test_key_of_the_account_that_is_wrong(azure: Cloud, dynamodb: Cloud) -> None:
    fails(azure.but(AZURE_STORAGE_KEY="c2VjcmV0"), "authentication-error", "answers 403")
    fails(dynamodb.but(AWS_SECRET_ACCESS_KEY="secret"), "authentication-error", "answers 4")


def test_server_that_is_away(azure: Cloud, dynamodb: Cloud) -> None:
    host, port = free_address()
    url = f"http://{host}:{port}"
    message = f"{url} cannot be asked: "
    fails(azure.but(AZURE_STORAGE_ENDPOINT=url), "connection-error", message)
    fails(dynamodb.but(AWS_ENDPOINT_URL=url), "connection-error", message)


@pytest.mark.parametrize(
    "configs",
    [
        {"AZURE_STORAGE_KEY": "secret!"},
        {"AZURE_STORAGE_ACCOUNT": "secret/../x"},
        {"AZURE_STORAGE_ENDPOINT": "ftp://secret"},
    ],
)
def test_config_that_is_wrong(azure: Cloud, configs: dict[str, str]) -> None:
    (name,) = configs
    fails(azure.but(**configs), "unexpected-error", f"config '{name}' is no")


def test_keys_of_too_many_bytes(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_NAMES_BYTES", 1000)

    async def main(backend: KeyValueBackend) -> None:
        for name in ("a", "b"):
            await backend.set("store", name * 501, b"x")
        with pytest.raises(CapabilityError, match="or 1000 bytes of them") as caught:
            await backend.keys("store")
        assert caught.value.case == "io-error"
        await backend.delete("store", "b" * 501)
        assert await backend.keys("store") == ["a" * 501]
        await backend.delete("store", "a" * 501)

    cloud.call(main)


def test_stored_value_that_is_too_large(
    azure: Cloud, dynamodb: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else stored it."""

    async def main(backend: KeyValueBackend) -> None:
        await backend.set("store", "large", bytes(100_000))
        with monkeypatch.context() as patched:
            patched.setattr(azblob, "MAX_VALUE_BYTES", 50_000)
            patched.setattr(rest.RestClient.ask, "__defaults__", (b"", 50_000))
            patched.setattr(AwsService.ask, "__defaults__", (None, None, b"", 50_000))
            with pytest.raises(CapabilityError, match="answers more than 50000 bytes") as caught:
                await backend.get("store", "large")
            assert caught.value.case == "io-error"
        await backend.delete("store", "large")

    azure.call(main)
    dynamodb.call(main)


def test_more_keys_than_one_page(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_NAMES", 30)

    async def main(backend: KeyValueBackend) -> None:
        value = b"x" * 90_000  # a page of DynamoDB's has 1 MB
        for n in range(31):
            await backend.set("store", f"k{n}", value)
        with pytest.raises(CapabilityError, match="store 'store' has more than 30 names"):
            await backend.keys("store")
        await backend.delete("store", "k30")
        assert sorted(await backend.keys("store")) == sorted(f"k{n}" for n in range(30))
        for n in range(30):
            await backend.delete("store", f"k{n}")

    cloud.call(main)


def test_value_that_is_too_large(dynamodb: Cloud) -> None:
    async def main(backend: KeyValueBackend) -> None:
        with pytest.raises(CapabilityError, match="more than 409600") as caught:
            await backend.set("store", "k", b"x" * 409_600)
        assert caught.value.case == "invalid-value"

    dynamodb.call(main)


def test_text_is_stored_as_upstream_does(dynamodb: Cloud) -> None:
    async def main(backend: KeyValueBackend) -> None:
        await backend.set("store", "text", "größe".encode())
        service = AwsService(dynamodb.context(), "dynamodb")
        answer = await service.ask(
            "POST",
            "/",
            headers={"x-amz-target": "DynamoDB_20120810.GetItem"},
            body=b'{"TableName": "store", "Key": {"key": {"S": "text"}}}',
        )
        await service.close()
        assert json.loads(answer.body)["Item"]["value"] == {"S": "größe"}
        await backend.delete("store", "text")

    dynamodb.call(main)


def test_where_nothing_can_be_imported(cloud: Cloud) -> None:
    body = """\
store = services.backend("keyvalue", "store")
await store.set("store", "ended", b"value")
keys = await store.keys("store")
try:
    await store.get("store", "missing")
except CapabilityError as exc:
    return [(await store.get("store", "ended")).decode(), "ended" in keys, exc.case]
"""
    found = asyncio.run(use_without_imports(cloud.slightfile, body))
    assert found == ["value", True, "key-not-found"]
