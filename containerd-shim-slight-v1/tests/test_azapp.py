"""``configs.azapp`` with a server that follows App Configuration's REST protocol."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from containerd_shim_slight_v1.capabilities.configs import azapp
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import fetch
from containerd_shimkit.testing.servers.http import Received, answering, http_server, response
from ended import use_without_imports

Image = Any  # of conftest.py

KEY_ID = "id:of-a+key"
SECRET = b"the store's secret"
SLIGHTFILE = (
    'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "a"\n'
    '[[capability]]\nresource = "configs.azapp"\nname = "env"\n'
)


class Store:
    """Checks who asks as the documentation of HMAC authentication says.

    A key may have a value for each label; a question that names none, or an empty one, is about the
    value without a label.
    """

    def __init__(self) -> None:
        self.values: dict[str, str | None] = {}
        """Those without a label."""
        self.labelled: dict[tuple[str, str], str] = {}
        self.locked: set[str] = set()
        self.busy = 0
        """How many requests are refused first."""
        self.asked = 0

    def answer(self, request: Received) -> bytes:
        self.asked += 1
        if not self.is_signed(request):
            return response(401, b"", 'www-authenticate: HMAC-SHA256 error="invalid_token"')
        if self.busy:
            self.busy -= 1
            return response(429, b"", "retry-after-ms: 10")
        url = urlsplit(request.target)
        query = parse_qs(url.query)
        assert query.pop("api-version") == ["1.0"]
        label = query.pop("label", ["\0"])[0]
        assert not query
        key = unquote(url.path.removeprefix("/kv/"))
        if label != "\0":
            value = self.labelled.get((key, label))
            return (
                response(404)
                if value is None
                else response(200, f'{{"value": "{value}"}}'.encode())
            )
        if request.method == "PUT":
            if key in self.locked:
                return response(409)
            assert request.all("content-type") == ["application/vnd.microsoft.appconfig.kv+json"]
            self.values[key] = json.loads(request.body)["value"]
        if key not in self.values:
            return response(404)
        body = json.dumps({"key": key, "label": None, "value": self.values[key]}).encode()
        return response(200, body, "content-type: application/vnd.microsoft.appconfig.kv+json")

    def is_signed(self, request: Received) -> bool:
        (digest,), (date,) = request.all("x-ms-content-sha256"), request.all("x-ms-date")
        (host,), (given,) = request.all("host"), request.all("authorization")
        text = f"{request.method}\n{request.target}\n{date};{host};{digest}".encode()
        signature = base64.b64encode(hmac.digest(SECRET, text, "sha256")).decode()
        wanted = (
            f"HMAC-SHA256 Credential={KEY_ID}&SignedHeaders=x-ms-date;host;x-ms-content-sha256"
            f"&Signature={signature}"
        )
        of_body = base64.b64encode(hashlib.sha256(request.body).digest()).decode()
        return given == wanted and digest == of_body


def environment(host: str, port: int, secret: bytes = SECRET) -> dict[str, str]:
    return {
        "AZAPPCONFIG_ENDPOINT": f"http://{host}:{port}",
        "AZAPPCONFIG_KEYID": KEY_ID,
        "AZAPPCONFIG_KEYSECRET": base64.b64encode(secret).decode(),
    }


def run(image: Image, store: Store, main: Any, secret: bytes = SECRET) -> None:
    """Serve the app and its store on one loop."""
    address = free_address()
    image.slightfile(SLIGHTFILE)

    async def both(port: int) -> None:
        async with http_server(answering(store.answer), address=address):
            await main(port)

    image.run(both, **environment(*address, secret))


async def ask(port: int, key: str, value: bytes | None = None) -> tuple[int, str]:
    method = "GET" if value is None else "PUT"
    answer = await fetch(port, f"/config/{key}", method=method, body=value or b"")
    return answer.status, answer.text


@pytest.mark.parametrize("key", ["key", "App:Name", "gr%C3%B6%C3%9Fe", "a%20b", "%26%3F"])
def test_config_is_set_and_read(image: Image, key: str) -> None:
    store = Store()

    async def main(port: int) -> None:
        assert await ask(port, key) == (418, f"0 there is no config {unquote(key)!r}")
        for value in ("one", "größe", ""):
            assert await ask(port, key, value.encode()) == (204, "")
            assert store.values == {unquote(key): value}
            assert await ask(port, key) == (200, value)

    run(image, store, main)


def test_values_with_a_label_are_others(image: Image) -> None:
    """Upstream asks for an empty label, which is none."""
    store = Store()
    store.labelled["key", "production"] = "labelled"

    async def main(port: int) -> None:
        assert await ask(port, "key") == (418, "0 there is no config 'key'")
        assert await ask(port, "key", b"plain") == (204, "")
        assert await ask(port, "key") == (200, "plain")
        assert store.labelled == {("key", "production"): "labelled"}

    run(image, store, main)


def test_config_without_a_value(image: Image) -> None:
    store = Store()
    store.values["key"] = None

    async def main(port: int) -> None:
        assert await ask(port, "key") == (200, "")

    run(image, store, main)


@pytest.mark.parametrize("size", [100_000, 9 << 20])
def test_config_that_is_too_large(image: Image, size: int) -> None:
    """The service has none of more than 10 kB; who answers may be somebody else."""
    store = Store()
    store.values["key"] = "x" * size

    async def main(port: int) -> None:
        status, text = await ask(port, "key")
        assert status == 418
        assert text.endswith(" answers more than 65536 bytes"), text

    run(image, store, main)


def test_locked_config(image: Image) -> None:
    store = Store()
    store.locked.add("key")

    async def main(port: int) -> None:
        status, text = await ask(port, "key", b"value")
        assert (status, text.partition("http://")[0]) == (418, "2 ")
        assert text.endswith(": config 'key': answers 409")

    run(image, store, main)


def test_secret_that_is_wrong(image: Image) -> None:
    async def main(port: int) -> None:
        status, text = await ask(port, "key")
        assert (status, text[:2], text[-11:]) == (418, "2 ", "answers 401")

    run(image, Store(), main, b"wrong")


def test_store_that_is_busy(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azapp, "_PAUSES", (0.0, 0.0))
    store = Store()
    store.values["key"] = "value"

    async def main(port: int) -> None:
        store.busy = 2
        assert await ask(port, "key") == (200, "value")
        store.busy, store.asked = 3, 0
        status, text = await ask(port, "key")
        assert (status, text[:2], text[-11:], store.asked) == (418, "3 ", "answers 429", 3)

    run(image, store, main)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("a%25b", b"x", "1 'a%b' cannot be the name of a config"),
        ("a", b"\xff", "1 the value is not UTF-8"),
        ("a", b"x" * 10_000, "1 key and value have more than 10000 bytes"),
    ],
)
def test_config_that_cannot_be(image: Image, key: str, value: bytes, reason: str) -> None:
    store = Store()

    async def main(port: int) -> None:
        assert await ask(port, key, value) == (418, reason)
        assert store.asked == 0

    run(image, store, main)


def test_store_that_is_away(image: Image) -> None:
    image.slightfile(SLIGHTFILE)
    host, port_ = free_address()

    async def main(port: int) -> None:
        status, text = await ask(port, "key")
        assert (status, text.partition(" cannot be asked: ")[0]) == (
            418,
            f"3 http://{host}:{port_}",
        )

    image.run(main, **environment(host, port_))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AZAPPCONFIG_ENDPOINT", "", "4 the variable AZAPPCONFIG_ENDPOINT is not set"),
        ("AZAPPCONFIG_ENDPOINT", "x", "4 AZAPPCONFIG_ENDPOINT is not of the form https://host"),
        ("AZAPPCONFIG_KEYID", "", "4 the variable AZAPPCONFIG_KEYID is not set"),
        ("AZAPPCONFIG_KEYID", "a\r\nb", "4 AZAPPCONFIG_KEYID is no name of a key"),
        ("AZAPPCONFIG_KEYSECRET", "", "4 the variable AZAPPCONFIG_KEYSECRET is not set"),
        ("AZAPPCONFIG_KEYSECRET", "no!", "4 AZAPPCONFIG_KEYSECRET is not base64"),
    ],
)
def test_variable_that_is_wrong(image: Image, name: str, value: str, reason: str) -> None:
    image.slightfile(SLIGHTFILE)

    async def main(port: int) -> None:
        assert await ask(port, "key") == (418, reason)

    image.run(main, **{**environment("127.0.0.1", 1), name: value})


def test_where_nothing_can_be_imported() -> None:
    body = """\
await services.backend("configs", "env").set("key", b"value")
return (await services.backend("configs", "env").get("key")).decode()
"""

    async def main() -> None:
        address, store = free_address(), Store()
        async with http_server(answering(store.answer), address=address):
            found = await use_without_imports(SLIGHTFILE, body, **environment(*address))
        assert found == "value"

    asyncio.run(main())
