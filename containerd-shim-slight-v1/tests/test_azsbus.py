"""``messaging.azsbus`` with a server that follows Service Bus's REST protocol."""

from __future__ import annotations

import asyncio
import base64
import hmac
import time
from typing import Any
from urllib.parse import parse_qs, quote_plus, urlsplit

import pytest

from containerd_shim_slight_v1.capabilities.messaging import azsbus
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import connected, head
from containerd_shimkit.testing.servers.http import Received, answering, http_server, response
from ended import use_without_imports
from messaging_guest import Guest

Image = Any  # of conftest.py

POLICY, KEY = "policy", "the policy's k+y"


def slightfile(endpoint: str, key: str = KEY, name: str = "box") -> str:
    return (
        'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "api"\n'
        f'[[capability]]\nresource = "messaging.azsbus"\nname = "{name}"\n'
        '[capability.configs]\nAZURE_SERVICE_BUS_NAMESPACE = "space"\n'
        f'AZURE_POLICY_NAME = "{POLICY}"\nAZURE_POLICY_KEY = "{key}"\n'
        f'AZURE_SERVICE_BUS_ENDPOINT = "{endpoint}"\n'
    )


class Bus:
    """Topics with a subscription of the same name, and queues; checks signatures."""

    def __init__(self) -> None:
        self.url = ""
        self.messages: dict[str, list[bytes]] = {"topic": [], "box": []}
        self.locked: dict[str, tuple[str, bytes]] = {}
        self.number = 0
        """Of the last message that was read."""
        self.lose_lock = False
        """The next message that is read cannot be removed."""
        self.status = 0
        """What is answered in place of anything else."""

    def answer(self, request: Received) -> bytes:
        path = urlsplit(request.target).path
        if self.status:
            return response(self.status)
        if not self.is_signed(request, path):
            return response(401)
        _, entity, *rest = path.split("/")
        if entity not in self.messages or (rest[0] == "subscriptions" and rest[1] != entity):
            return response(404)
        if rest[-1] == "messages":
            self.messages[entity].append(request.body)
            return response(201)
        if request.method in ("DELETE", "PUT"):
            locked = self.locked.pop(path, None)
            if locked is not None and request.method == "PUT":
                self.messages[locked[0]].insert(0, locked[1])
            return response(200 if locked else 404)
        assert parse_qs(urlsplit(request.target).query) == {"timeout": ["5"]}
        if not self.messages[entity]:
            return response(204)
        message = self.messages[entity].pop(0)
        self.number += 1
        lock = f"{self.number}/6e2b64c3-92b1-4d9c-9de3-d4b4a6c4c0ff"
        place = path.removesuffix("head") + lock
        self.locked[place] = entity, message
        if self.lose_lock:
            self.lose_lock = False
            self.messages[entity].insert(0, self.locked.pop(place)[1])
        return response(201, message, f"location: https://elsewhere{place}")

    def is_signed(self, request: Received, path: str) -> bool:
        kind, _, fields = request.all("authorization")[0].partition(" ")
        given = dict(field.split("=", 1) for field in fields.split("&"))
        text = f"{quote_plus(self.url + path)}\n{given['se']}".encode()
        digest = base64.b64encode(hmac.digest(KEY.encode(), text, "sha256"))
        assert (kind, given["skn"]) == ("SharedAccessSignature", POLICY)
        assert 0 < int(given["se"]) - time.time() <= 600
        return given["sr"] == quote_plus(self.url + path) and given["sig"] == quote_plus(digest)


@pytest.fixture
def address() -> tuple[str, int]:
    return free_address()


@pytest.fixture
def app(image: Image, address: tuple[str, int]) -> Image:
    image.guest("messaging")
    image.slightfile(slightfile("http://{}:{}".format(*address)))
    return image


def run(app: Image, address: tuple[str, int], main: Any) -> None:
    """Call ``main`` with the app's port and the bus."""

    async def serve(port: int) -> None:
        bus = Bus()
        async with http_server(answering(bus.answer), address=address) as server:
            bus.url = server.url
            await main(port, bus)

    app.run(serve)


def test_messages(app: Image, address: tuple[str, int]) -> None:
    async def main(port: int, bus: Bus) -> None:
        status, token = await Guest(port).ask("POST", "topic", "box", "topic")
        assert status == 200
        for message in (b"\0one\xff", b"two"):
            assert (await Guest(port).ask("PUT", "topic", "box", "topic", body=message))[0] == 204
        for message in (b"\0one\xff", b"two", b""):
            answer = await Guest(port).ask("GET", "subscription", "box", token.decode())
            assert answer == (200, message)
        assert bus.locked == {}

    run(app, address, main)


def test_queue(app: Image, address: tuple[str, int]) -> None:
    async def main(port: int, _: Bus) -> None:
        for message in (b"one", b"two"):
            assert (await Guest(port).ask("PUT", "queue", "box", body=message))[0] == 204
        for message in (b"one", b"two", b""):
            assert await Guest(port).ask("GET", "queue", "box") == (200, message)

    run(app, address, main)


def test_who_publishes_does_not_wait_behind_who_receives(
    app: Image, address: tuple[str, int]
) -> None:
    """200 guests receive, as long as there is nothing."""

    async def serve(port: int) -> None:
        bus, receiving, published = Bus(), asyncio.Semaphore(0), asyncio.Event()

        async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
            if "/messages/head" in request.target:
                receiving.release()
                await published.wait()
            writer.write(bus.answer(request))

        async with http_server(answer, address=address) as server, asyncio.timeout(60):
            bus.url = server.url
            waiting = [
                asyncio.create_task(Guest(port).ask("GET", "queue", "box")) for _ in range(200)
            ]
            for _ in waiting:
                await receiving.acquire()
            for _ in range(20):
                assert (await Guest(port).ask("PUT", "queue", "box", body=b"x"))[0] == 204
            published.set()
            answers = await asyncio.gather(*waiting)
            assert sorted(answers) == [(200, b"")] * 180 + [(200, b"x")] * 20

    app.run(serve, SLIGHT_MAX_INSTANCE_COUNT="250")


def test_too_large_a_message(
    app: Image, address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azsbus, "MAX_MESSAGE_BYTES", 1000)

    async def main(port: int, bus: Bus) -> None:
        bus.messages["box"] += [bytes(1001), b"small"]
        text = b"0 a message is larger than 1000 bytes"
        assert await Guest(port).ask("GET", "queue", "box") == (418, text)
        assert await Guest(port).ask("GET", "queue", "box") == (200, b"small")

    run(app, address, main)


def test_queue_that_is_not_there(app: Image, address: tuple[str, int]) -> None:
    app.slightfile(slightfile("http://{}:{}".format(*address), name="nothing"))

    async def main(port: int, bus: Bus) -> None:
        for method in ("PUT", "GET"):
            status, text = await Guest(port).ask(method, "queue", "nothing")
            reason = f"0 {bus.url}: 'nothing': there is no such topic, subscription or queue"
            assert (status, text) == (418, reason.encode())

    run(app, address, main)


def test_guests_of_the_older_generation(app: Image, address: tuple[str, int]) -> None:
    async def main(port: int, bus: Bus) -> None:
        assert await Guest(port).ask("PUT", "old", "box", "topic", body=b"one") == (200, b"one")

    run(app, address, main)


def test_message_whose_lock_was_lost_comes_again(
    app: Image, address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    async def main(port: int, bus: Bus) -> None:
        assert (await Guest(port).ask("PUT", "queue", "box", body=b"message"))[0] == 204
        bus.lose_lock = True
        for _ in range(2):
            assert await Guest(port).ask("GET", "queue", "box") == (200, b"message")
        assert await Guest(port).ask("GET", "queue", "box") == (200, b"")

    run(app, address, main)
    assert caplog.text.count("a message cannot be removed, and may come again: ") == 1


@pytest.mark.parametrize("path", ["failing-queue/box", "failing/box/topic"])
def test_message_of_a_guest_that_fails_comes_again(
    app: Image, address: tuple[str, int], path: str
) -> None:
    async def main(port: int, bus: Bus) -> None:
        entity = "box" if "queue" in path else "topic"
        bus.messages[entity] = [b"1", b"2"]
        for _ in range(3):
            assert (await Guest(port).ask("GET", *path.split("/")))[0] == 500
            assert bus.messages[entity] == [b"1", b"2"]
            assert bus.locked == {}
        ask = ("queue", "box") if entity == "box" else ("subscription", "box", "topic")
        for message in (b"1", b"2"):
            assert await Guest(port).ask("GET", *ask) == (200, message)
        assert bus.locked == {}

    run(app, address, main)


def test_message_is_locked_while_its_guest_runs(app: Image, address: tuple[str, int]) -> None:
    async def main(port: int, bus: Bus) -> None:
        bus.messages["topic"] = [b"message"]
        async with connected(port) as connection:
            await connection.send(head("GET", "/held/box/topic/"))
            async with asyncio.timeout(20):
                while app.stdout != "holding message\n":  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert len(bus.locked) == 1
        async with asyncio.timeout(20):
            while bus.locked:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert bus.messages["topic"] == [b"message"]

    run(app, address, main)


@pytest.mark.parametrize("topic", ["missing", "../x", "a b", "", "a?b", "x" * 261])
def test_topic_that_is_not_there(app: Image, address: tuple[str, int], topic: str) -> None:
    async def main(port: int, _: Bus) -> None:
        for method, path in (("PUT", "topic"), ("GET", "subscription")):
            status, text = await Guest(port).ask(method, path, "box", topic or ".")
            assert (status, text[:2]) == (418, b"1 "), text

    run(app, address, main)


@pytest.mark.parametrize(
    ("status", "code"), [(403, 2), (410, 1), (413, 0), (429, 3), (503, 3), (400, 4)]
)
def test_refusals(app: Image, address: tuple[str, int], status: int, code: int) -> None:
    async def main(port: int, bus: Bus) -> None:
        bus.status = status
        answered, text = await Guest(port).ask("PUT", "topic", "box", "topic")
        assert (answered, text[:2]) == (418, f"{code} ".encode()), text

    run(app, address, main)


def test_wrong_key_is_in_no_message(app: Image, address: tuple[str, int]) -> None:
    app.slightfile(slightfile("http://{}:{}".format(*address), key="s3cret"))

    async def main(port: int, bus: Bus) -> None:
        answer = await Guest(port).ask("PUT", "topic", "box", "topic")
        assert answer == (418, f"2 {bus.url}: 'topic': the server refuses the key".encode())

    run(app, address, main)


def test_server_that_is_down(app: Image) -> None:
    async def main(port: int) -> None:
        for method, path in (("PUT", "topic"), ("GET", "subscription")):
            status, text = await Guest(port).ask(method, path, "box", "topic")
            assert (status, text[:2]) == (418, b"3 "), text

    app.run(main)


def test_where_nothing_can_be_imported() -> None:
    body = """\
box = services.backend("messaging", "box")
await box.publish("box", "topic", b"message")
return (await box.receive("box", await box.subscribe("box", "topic"))).decode()
"""

    async def main() -> None:
        bus = Bus()
        async with http_server(answering(bus.answer)) as server:
            bus.url = server.url
            assert await use_without_imports(slightfile(server.url), body) == "message"

    asyncio.run(main())
