"""``messaging`` with MQTT and NATS servers, called by guests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from containerd_shim_slight_v1.capabilities.messaging import nats, subscriptions
from containerd_shimkit.mqtt import connection
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.servers.mosquitto import running_mosquitto
from containerd_shimkit.testing.servers.nats import running_nats
from containerd_shimkit.testing.servers.process import Server
from messaging_guest import Guest
from nats_keys import USER, Operator, Signer

Image = Any  # of conftest.py
HTTP = 'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "api"\n'


@dataclass(frozen=True)
class Kind:
    """A backend and its server."""

    name: str
    run: Callable[..., AbstractContextManager[Server]]
    configs: str

    def slightfile(self, address: tuple[str, int]) -> str:
        configs = self.configs.format(*address)
        return (
            f'{HTTP}[[capability]]\nresource = "messaging.{self.name}"\nname = "box"\n'
            f"[capability.configs]\n{configs}\n"
        )


MQTT = Kind("mosquitto", running_mosquitto, 'MOSQUITTO_HOST = "{0}"\nMOSQUITTO_PORT = "{1}"')
NATS = Kind("nats", running_nats, 'NATS_URL = "nats://{0}:{1}"')


@pytest.fixture(scope="module", params=[MQTT, NATS], ids=lambda kind: kind.name)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Kind, Server]]:
    with request.param.run() as server:
        yield request.param, server


@pytest.fixture
def app(image: Image, served: tuple[Kind, Server]) -> Image:
    """An app whose capability ``box`` is at the server."""
    kind, server = served
    image.slightfile(kind.slightfile((server.host, server.port)))
    image.guest("messaging")
    return image


def test_each_subscription_gets_every_message_in_order(app: Image) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        tokens = [await guest.subscribe("topic") for _ in range(2)]
        assert tokens[0] != tokens[1]
        other = await guest.subscribe("other")
        for message in (b"\0one\xff", b"two\n", bytes(300_000)):
            await guest.publish("topic", message)
        await guest.publish("other", b"of the other")
        for token in tokens:
            for message in (b"\0one\xff", b"two\n", bytes(300_000)):
                assert await guest.receive_one(token) == message
        assert await guest.receive_one(other) == b"of the other"

    app.run(main)


def test_many_wait_at_once(app: Image) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        async with asyncio.timeout(60):
            tokens = await asyncio.gather(*(guest.subscribe("topic") for _ in range(200)))
            waiting = [asyncio.create_task(guest.receive_one(token)) for token in tokens]
            await guest.publish("topic", b"message")
            assert await asyncio.gather(*waiting) == [b"message"] * 200

    app.run(main, SLIGHT_MAX_INSTANCE_COUNT="250")


def test_guests_of_the_older_generation(app: Image) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        assert await guest.ask("PUT", "old", "box", "topic", body=b"one") == (200, b"one")
        status, text = await guest.ask("GET", "queue", "box")
        assert status == 418
        assert text.startswith(b"0 ")
        assert text.endswith(b" has topics, and no queues")

    app.run(main)


def test_unknown_subscription(app: Image) -> None:
    async def main(port: int) -> None:
        answer = await Guest(port).ask("GET", "subscription", "box", "0" * 32)
        assert answer == (418, b"1 there is no such subscription")

    app.run(main)


def test_topic_that_cannot_be(app: Image) -> None:
    async def main(port: int) -> None:
        status, text = await Guest(port).ask("PUT", "topic", "box", "a /#")
        assert (status, text[:2]) == (418, b"1 "), text

    app.run(main)


def test_too_large_a_message(app: Image) -> None:
    async def main(port: int) -> None:
        status, text = await Guest(port).ask("PUT", "topic", "box", "t", body=bytes(17 << 20))
        assert (status, text[:2]) == (418, b"0 "), text

    app.run(main)


def test_too_many_subscriptions(app: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "MAX_SUBSCRIPTIONS", 2)

    async def main(port: int) -> None:
        guest = Guest(port)
        one, two = [await guest.subscribe("topic") for _ in range(2)]
        await guest.publish("topic", b"1")
        assert await guest.receive_one(one) == b"1"
        three = await guest.subscribe("topic")
        assert (await guest.ask("GET", "subscription", "box", two))[0] == 418
        await guest.publish("topic", b"2")
        for token in (one, three):
            assert await guest.receive_one(token) == b"2"

    app.run(main)


@pytest.mark.parametrize("kind", [MQTT, NATS], ids=lambda kind: kind.name)
def test_server_that_is_down(image: Image, kind: Kind) -> None:
    host, port = free_address()
    image.slightfile(kind.slightfile((host, port)))
    image.guest("messaging")

    async def main(own: int) -> None:
        for method in ("PUT", "POST"):
            status, text = await Guest(own).ask(method, "topic", "box", "topic", body=b"x")
            assert status == 418
            assert text.startswith(f"3 {host}:{port}: ".encode()), text

    image.run(main)


@pytest.mark.parametrize("kind", [MQTT, NATS], ids=lambda kind: kind.name)
def test_server_that_starts_again(image: Image, kind: Kind) -> None:
    image.guest("messaging")
    with kind.run() as server:
        image.slightfile(kind.slightfile((server.host, server.port)))

        async def main(port: int) -> None:
            guest = Guest(port)
            token = await guest.subscribe("topic")
            await guest.publish("topic", b"before")
            assert await guest.receive_one(token) == b"before"
            await asyncio.to_thread(server.stop)
            status, text = await guest.ask("PUT", "topic", "box", "topic", body=b"x")
            assert (status, text[:1] in (b"3", b"5")) == (418, True), text
            status, text = await guest.ask("GET", "subscription", "box", token)
            assert (status, text[:1] in (b"3", b"5")) == (418, True), text
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(30):
                while (await guest.ask("PUT", "topic", "box", "topic", body=b"x"))[0] != 204:
                    pass
                waiting = asyncio.create_task(guest.receive_one(token))
                # Nobody knows when it is subscribed again.
                while not waiting.done():
                    await guest.publish("topic", b"after")
                    await asyncio.wait((waiting,), timeout=0.05)
                assert await waiting in (b"after", b"x")

        image.run(main)


def test_messages_of_nats_that_nobody_takes(
    image: Image, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of both subscriptions together no more wait than there is room for."""
    monkeypatch.setattr(nats, "_MAX_ALL_WAITING_BYTES", 10 * (1024 + 3000))
    image.guest("messaging")
    with running_nats() as server:
        image.slightfile(NATS.slightfile((server.host, server.port)))

        async def main(port: int) -> None:
            guest = Guest(port)
            tokens = [await guest.subscribe("topic") for _ in range(2)]
            for _ in range(2):
                for number in range(20):
                    await guest.publish("topic", b"%3000d" % number)
                for token in tokens:
                    for number in range(5):
                        assert int(await guest.receive_one(token)) == number
                    assert await guest.receive(token) == b""

        image.run(main)
    assert caplog.text.count("messages of NATS are lost") == 1


def test_nats_server_that_refuses(image: Image) -> None:
    image.guest("messaging")
    with running_nats('authorization { user: ann, password: "right" }') as server:
        text = NATS.slightfile((server.host, server.port))
        image.slightfile(text.replace("nats://", "nats://ann:wrong@"))

        async def refused(port: int) -> None:
            status, text = await Guest(port).ask("POST", "topic", "box", "topic")
            reason = f"2 {server.address}: the server refuses the credentials"
            assert (status, text) == (418, reason.encode())

        image.run(refused)


def test_nats_subject_that_is_refused(image: Image) -> None:
    image.guest("messaging")
    allowed = "{ publish: open, subscribe: open }"
    line = f"authorization {{ users: [{{ user: ann, password: right, permissions: {allowed} }}] }}"
    with running_nats(line) as server:
        text = NATS.slightfile((server.host, server.port))
        image.slightfile(text.replace("nats://", "nats://ann:right@"))

        async def main(port: int) -> None:
            guest = Guest(port)
            for _ in range(5):
                for method in ("PUT", "POST"):
                    answer = await guest.ask(method, "topic", "box", "Closed", body=b"x")
                    assert answer == (418, b"2 the server refuses subject 'Closed'")
            token = await guest.subscribe("open")
            await guest.publish("open", b"message")
            assert await guest.receive_one(token) == b"message"

        image.run(main)


def test_nats_credentials(image: Image) -> None:
    image.guest("messaging")
    operator = Operator()
    with running_nats(*operator.lines) as server:
        text = NATS.slightfile((server.host, server.port))

        def written(seed: str) -> str:
            return operator.credentials(seed).replace("\n", "\\n")

        async def good(port: int) -> None:
            guest = Guest(port)
            token = await guest.subscribe("topic")
            await guest.publish("topic", b"message")
            assert await guest.receive_one(token) == b"message"

        image.slightfile(f'{text}NATS_CREDS = "{written(operator.user.seed)}"\n')
        image.run(good)
        image.sockets.clear()

        async def bad(port: int) -> None:
            status, answer = await Guest(port).ask("POST", "topic", "box", "topic")
            reason = f"2 {server.address}: the server refuses the credentials"
            assert (status, answer) == (418, reason.encode())

        image.slightfile(f'{text}NATS_CREDS = "{written(Signer(USER).seed)}"\n')
        image.run(bad)


def test_nats_credentials_that_are_none(image: Image) -> None:
    image.guest("messaging")
    text = NATS.slightfile(("127.0.0.1", 4222))
    image.slightfile(f'{text}NATS_CREDS = "secret"\n')

    async def main(port: int) -> None:
        answer = await Guest(port).ask("POST", "topic", "box", "topic")
        assert answer == (418, b"2 NATS_CREDS is not the content of a .creds file")

    image.run(main)


def test_mqtt_server_that_refuses(image: Image) -> None:
    image.guest("messaging")
    with running_mosquitto(users={"ann": "right"}) as server:
        image.slightfile(MQTT.slightfile((server.host, server.port)))

        async def main(port: int) -> None:
            status, text = await Guest(port).ask("POST", "topic", "box", "topic")
            assert (status, text.split(b": ")[1]) == (418, b"refused"), text

        image.run(main)


def test_messages_that_nobody_takes_wait_at_the_mqtt_server(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_MAX_WAITING", 2)
    image.guest("messaging")
    with running_mosquitto() as server:
        image.slightfile(MQTT.slightfile((server.host, server.port)))

        async def main(port: int) -> None:
            guest = Guest(port)
            token = await guest.subscribe("a/#")
            for number in range(100):
                await guest.publish(f"a/{number}", str(number).encode())
            found = [await guest.receive_one(token) for _ in range(100)]
            assert found == [str(number).encode() for number in range(100)]

        image.run(main)


@pytest.mark.parametrize("host", ["mqtt://user:s3cret@127.0.0.1", "user:s3cret@127.0.0.1", ""])
def test_host_of_mqtt_that_is_none(image: Image, host: str) -> None:
    """It may be a URL with a password, which guests and logs are not told."""
    image.slightfile(MQTT.slightfile((host, 1883)))
    image.guest("messaging")

    async def main(port: int) -> None:
        answer = await Guest(port).ask("PUT", "topic", "box", "topic", body=b"x")
        assert answer == (418, b"7 MOSQUITTO_HOST is no name or address of a host")

    image.run(main)


def test_nats_library_that_connects_on(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for its end holds everybody up who wants to connect."""
    connects = 0

    async def connect(*_: object, **__: object) -> None:
        nonlocal connects
        connects += 1
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    monkeypatch.setattr(nats._Client, "connect", connect)
    image.slightfile(NATS.slightfile(free_address()))
    image.guest("messaging")

    async def main(port: int) -> None:
        async with asyncio.timeout(60):
            for _ in range(2):
                answer = await Guest(port).ask("PUT", "topic", "box", "topic", body=b"x")
                assert answer[0] == 504
        assert connects == 2

    image.run(main, SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS="0.5")
