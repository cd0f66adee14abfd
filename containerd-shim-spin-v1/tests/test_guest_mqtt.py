"""A real guest publishes messages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import aiomqtt
import pytest

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import fetch
from containerd_shimkit.testing.servers.mosquitto import running_mosquitto
from containerd_shimkit.testing.servers.process import Server

PASSWORD = "s3cret"
MANIFEST = """
spin_manifest_version = 2
[application]
name = "test"
[[trigger.http]]
route = "/..."
component = "mqtt"
[component.mqtt]
source = "mqtt.wasm"
allowed_outbound_hosts = ["mqtt://*:*"]
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_mosquitto(users={"ann": PASSWORD}) as running:
        yield running


@pytest.fixture
def app(image: Any) -> Any:
    image.component("mqtt", "/...")
    image.manifest(MANIFEST)
    return image


async def ask(
    port: int, path: str, address: str, changes: Mapping[str, str], body: bytes = b""
) -> str:
    fields = {"username": "ann", "password": PASSWORD, "keep-alive": "5", "topic": "t", "qos": "1"}
    given = {"address": address} | fields | dict(changes)
    headers = [(name, value.encode()) for name, value in given.items()]
    response = await fetch(port, path, method="POST", headers=headers, body=body)
    assert response.status == 200, response
    return response.text


@pytest.mark.parametrize("size", [0, 10_000_000], ids=["empty", "10 MB"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_publish(app: Any, server: Server, qos: int, size: int) -> None:
    payload = bytes(range(250)) * (size // 250)

    async def main(port: int) -> None:
        client = aiomqtt.Client(server.host, server.port, username="ann", password=PASSWORD)
        async with client, asyncio.timeout(30):
            topic = f"é/{qos}/{size}"
            await client.subscribe(topic, qos=2)
            address = f"mqtt://{server.address}"
            fields = {"topic": topic, "qos": str(qos)}
            assert await ask(port, "/publish", address, fields, payload) == "ok"
            message = await anext(client.messages)
            assert (str(message.topic), message.qos) == (topic, qos)
            assert message.payload == payload

    app.run(main)


def test_errors(app: Any, server: Server) -> None:
    dead = "{}:{}".format(*free_address())
    good = f"mqtt://{server.address}"
    cases: list[tuple[str, str, dict[str, str], str]] = [
        ("/publish", "mqtt://", {}, "open: error 0"),
        ("/open", good, {}, "open: error 1 after 256"),
        (
            *("/publish", f"mqtt://{dead}", {}),
            f"publish: error 2 mqtt://{dead}: Connection refused",
        ),
        (
            *("/publish", good, {"password": "wr0ng"}),
            f"publish: error 2 {good}: refused: not authorized",
        ),
        (
            *("/publish", "tcp://127.0.0.1:1883", {}),
            "open: error 2 component 'mqtt' may not connect to tcp://127.0.0.1:1883: it needs "
            'allowed_outbound_hosts = ["tcp://127.0.0.1:1883"] in the manifest',
        ),
        (
            *("/publish", good, {"topic": "a/#"}),
            "publish: error 3 a topic to publish to holds no +, # or NUL",
        ),
        ("/dropped", good, {}, "publish: error 3 there is no connection 1"),
    ]
    answers: list[str] = []

    async def main(port: int) -> None:
        for path, address, changes, _ in cases:
            answers.append(await ask(port, path, address, changes))

    app.run(main)
    assert answers == [expected for *_, expected in cases]
    assert PASSWORD not in app.stderr


def test_quality_that_is_none_ends_the_guest(
    app: Any, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(port: int) -> None:
        headers = [("address", f"mqtt://{server.address}"), ("qos", "3")]
        response = await fetch(port, "/publish", method="POST", headers=headers, body=b"")
        assert response.status == 500

    app.run(main)
    assert "the guest passes case 3 of 3" in caplog.text


def test_many_guests_share_a_connection(app: Any, server: Server) -> None:
    async def main(port: int) -> None:
        address = f"mqtt://{server.address}?client_id=shared"
        fields = {"qos": "2", "x-times": "5"}
        requests = [ask(port, "/publish", address, fields) for _ in range(40)]
        assert await asyncio.gather(*requests) == ["ok"] * 40

    app.run(main)
    assert server.log.read_text().count(" as shared (") == 1
