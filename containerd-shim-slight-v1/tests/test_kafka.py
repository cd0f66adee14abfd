"""``messaging.confluent_apache_kafka`` with Apache Kafka's broker, called by guests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import aiokafka.codec
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import UnsupportedCodecError

from containerd_shim_slight_v1.capabilities.messaging import (
    confluent_apache_kafka,
    kafka_codecs,
    kafka_consumer,
)
from containerd_shim_slight_v1.capabilities.messaging.kafka_consumer import Deliveries
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import connected, head
from containerd_shimkit.testing.servers.kafka import running_kafka
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.tls import Authority, certificate_authority
from messaging_guest import Guest

Image = Any  # of conftest.py
HTTP = 'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "api"\n'
USERS = {"ann": "correct horse"}

# Fetching, joining and leaving take a second or two; a broker starts in several.
pytestmark = [pytest.mark.xdist_group("kafka"), pytest.mark.timeout(180)]


def slightfile(address: str, **configs: str) -> str:
    values = {"SECURITY_PROTOCOL": "PLAINTEXT", "GROUP_ID": "group", "ENDPOINT": address} | configs
    lines = "".join(f'CAK_{name} = "{value}"\n' for name, value in values.items())
    return (
        f'{HTTP}[[capability]]\nresource = "messaging.confluent_apache_kafka"\nname = "box"\n'
        f"[capability.configs]\n{lines}"
    )


@pytest.fixture(scope="module")
def kafka() -> Iterator[Server]:
    with running_kafka() as server:
        yield server


@pytest.fixture
def app(image: Image, kafka: Server) -> Image:
    """An app whose capability ``box`` is at the broker."""
    image.guest("messaging")
    image.slightfile(slightfile(kafka.address))
    return image


def test_messages_come_once_and_in_order(app: Image) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        token = await guest.subscribe("order")
        sent = [b"\0one\xff", *([bytes(400_000)] * 3), bytes(900_000), b"two\n"]
        for message in sent:
            await guest.publish("order", message)
        await guest.publish("another", b"of another")
        assert [await guest.receive_one(token) for _ in sent] == sent
        assert await guest.receive(token) == b""

    app.run(main)


def test_who_subscribes_again_shares_the_messages(app: Image) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        tokens = {await guest.subscribe("shared") for _ in range(3)}
        assert len(tokens) == 1
        (token,) = tokens
        waiting = [asyncio.create_task(guest.receive_one(token)) for _ in range(20)]
        for number in range(20):
            await guest.publish("shared", str(number).encode())
        assert set(await asyncio.gather(*waiting)) == {str(n).encode() for n in range(20)}

    app.run(main)


def test_next_app_goes_on_where_the_first_one_stopped(app: Image) -> None:
    async def first(port: int) -> None:
        guest = Guest(port)
        token = await guest.subscribe("goes-on")
        for message in (b"1", b"2", b"3"):
            await guest.publish("goes-on", message)
        assert await guest.receive_one(token) == b"1"

    async def second(port: int) -> None:
        guest = Guest(port)
        # Nobody subscribes: whoever knows the topic receives.
        assert [await guest.receive_one("goes-on") for _ in range(2)] == [b"2", b"3"]

    app.run(first)
    app.sockets.clear()
    app.run(second)


def test_two_apps_of_a_group_share_the_messages(app: Image) -> None:
    async def main(port: int) -> None:
        app.sockets.clear()
        async with app.serving() as other:
            guests = [Guest(port), Guest(other)]
            for guest in guests:
                await guest.subscribe("both")
            for number in range(10):
                await guests[number % 2].publish("both", str(number).encode())
            found: set[bytes] = set()
            async with asyncio.timeout(60):
                # One of them may get none: there are fewer partitions.
                while len(found) < 10:
                    found |= {*await asyncio.gather(*(g.receive("both") for g in guests))} - {b""}
            assert found == {str(number).encode() for number in range(10)}

    app.run(main)


def test_guest_that_is_cut_off_leaves_the_app_joining(image: Image) -> None:
    image.guest("messaging")
    with running_kafka(group_initial_rebalance_delay_ms="4000") as server:
        image.slightfile(slightfile(server.address))

        async def main(port: int) -> None:
            guest = Guest(port)
            assert (await guest.ask("POST", "topic", "box", "topic"))[0] == 504
            async with asyncio.timeout(60):
                while (await guest.ask("POST", "topic", "box", "topic"))[0] == 504:
                    pass
            await guest.publish("topic", b"message")
            assert await guest.receive_one("topic") == b"message"
            # The app ends while a guest waits for another group's topic.
            assert (await guest.ask("POST", "topic", "box", "another"))[0] in (200, 504)

        image.run(main, SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS="1")


def test_message_of_an_app_that_dies_comes_again(
    app: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_consumer, "_SESSION_SECONDS", 1.0)

    async def dies(port: int) -> None:
        guest = Guest(port)
        token = await guest.subscribe("dies")
        for message in (b"1", b"2"):
            await guest.publish("dies", message)
        assert await guest.receive_one(token) == b"1"

    with monkeypatch.context() as without:
        # As if it were killed: nothing of it is written, and it leaves no group.
        without.setattr(kafka_consumer.TopicConsumer, "_commit", _do_nothing)
        without.setattr(
            "aiokafka.consumer.group_coordinator.GroupCoordinator._maybe_leave_group", _do_nothing
        )
        app.run(dies)
    app.sockets.clear()

    async def lives(port: int) -> None:
        guest = Guest(port)
        token = await guest.subscribe("dies")
        assert [await guest.receive_one(token) for _ in range(2)] == [b"1", b"2"]

    app.run(lives)


def test_message_of_a_guest_that_fails_comes_again(
    app: Image, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        token = await guest.subscribe("fails")
        for message in (b"1", b"2"):
            await guest.publish("fails", message)
        await fail_with(guest, token, 500)
        assert [await guest.receive_one(token) for _ in range(2)] == [b"1", b"2"]
        # One that makes all fail is not the last one.
        for message in (b"3", b"4"):
            await guest.publish("fails", message)
        for _ in range(kafka_consumer.MAX_DELIVERIES):
            await fail_with(guest, token, 500)
        assert await guest.receive_one(token) == b"4"
        assert await guest.receive(token) == b""

    app.run(main)
    assert app.stdout == "failing with 1\n" + "failing with 3\n" * kafka_consumer.MAX_DELIVERIES
    assert "topic fails, partition 0: message 2 is given up: 5 guests" in caplog.text


async def fail_with(guest: Guest, token: str, status: int) -> None:
    """Have a guest receive a message and fail."""
    async with asyncio.timeout(20):
        while (await guest.ask("GET", "failing", "box", token))[0] != status:
            pass


def test_message_of_a_guest_whose_client_leaves_comes_again(app: Image) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        token = await guest.subscribe("leaves")
        await guest.publish("leaves", b"message")
        async with connected(port) as connection:
            await connection.send(head("GET", f"/held/box/{token}/"))
            async with asyncio.timeout(20):
                while app.stdout != "holding message\n":  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert await guest.receive_one(token) == b"message"

    app.run(main, SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS="600")


def test_message_that_was_given_back_is_the_next_apps(app: Image) -> None:
    async def first(port: int) -> None:
        guest = Guest(port)
        token = await guest.subscribe("given-back")
        for message in (b"1", b"2"):
            await guest.publish("given-back", message)
        await fail_with(guest, token, 500)

    async def second(port: int) -> None:
        assert [await Guest(port).receive_one("given-back") for _ in range(2)] == [b"1", b"2"]

    app.run(first)
    app.sockets.clear()
    app.run(second)


async def _do_nothing(self: object) -> None:
    return


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_messages_of_others(app: Image, kafka: Server, codec: str) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        token = await guest.subscribe(codec)
        producer = AIOKafkaProducer(bootstrap_servers=kafka.address, compression_type=codec)
        await producer.start()
        await producer.send_and_wait(codec, bytes(10_000))
        await producer.stop()
        assert await guest.receive_one(token) == bytes(10_000)

    app.run(main)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_batch_that_becomes_too_large(
    app: Image, kafka: Server, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand bytes may be sixteen million, and whoever publishes says how many."""
    monkeypatch.setattr(kafka_codecs, "MAX_BATCH_BYTES", 1 << 20)
    topic = f"large-{codec}"

    async def main(port: int) -> None:
        guest = Guest(port)
        token = await guest.subscribe(topic)
        producer = AIOKafkaProducer(
            bootstrap_servers=kafka.address,
            compression_type=codec,
            max_request_size=1 << 25,
            max_batch_size=1 << 25,
        )
        await producer.start()
        await producer.send_and_wait(topic, bytes(2 << 20))
        await producer.stop()
        async with asyncio.timeout(60):
            while (answer := await guest.ask("GET", "subscription", "box", token)) == (200, b""):
                pass
        assert answer == (418, b"6 a message is compressed in an unknown way, or becomes too large")

    app.run(main)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_decoders(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_codecs, "MAX_BATCH_BYTES", 1 << 20)
    encode = getattr(aiokafka.codec, f"{codec}_encode")
    decode = getattr(kafka_codecs, f"{codec}_decode")
    for content in (b"", bytes(range(256)) * 300, bytes(1 << 20)):
        data = encode(content)
        assert decode(data) == content
        assert decode(memoryview(data)) == content
        with pytest.raises(UnsupportedCodecError):
            decode(data[: len(data) * 2 // 3])
    for hostile in (encode(bytes((1 << 20) + 1)), b"\xff" * 30, b"\x82SNAPPY\0" + bytes(30)):
        with pytest.raises(UnsupportedCodecError):
            decode(hostile)


def test_guests_of_the_older_generation(app: Image) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        await guest.subscribe("old")  # what it receives by
        assert await guest.ask("PUT", "old", "box", "old", body=b"one") == (200, b"one")
        status, text = await guest.ask("GET", "queue", "box")
        assert (status, text.split(b" ", 2)[2]) == (418, b"has topics, and no queues")

    app.run(main)


@pytest.mark.parametrize("topic", ["a b", "..", "größe", "x" * 250])
def test_topic_that_cannot_be(app: Image, topic: str) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        for method, path in (("PUT", "topic"), ("POST", "topic"), ("GET", "subscription")):
            status, text = await guest.ask(method, path, "box", topic)
            assert (status, text[:2]) == (418, b"1 "), text

    app.run(main)


def test_too_large_a_message(app: Image) -> None:
    async def main(port: int) -> None:
        for size in (2 << 20, 17 << 20):
            status, text = await Guest(port).ask("PUT", "topic", "box", "large", body=bytes(size))
            assert (status, text[:2]) == (418, b"0 "), text

    app.run(main)


def test_topic_that_is_not_there(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confluent_apache_kafka, "_FIND_SECONDS", 2.0)
    image.guest("messaging")
    with running_kafka(auto_create_topics_enable="false") as server:
        image.slightfile(slightfile(server.address))

        async def main(port: int) -> None:
            for method in ("PUT", "POST"):
                answer = await Guest(port).ask(method, "topic", "box", "missing", body=b"x")
                assert answer == (418, b"1 there is no topic 'missing'")

        image.run(main)


def test_server_that_is_down(image: Image) -> None:
    host, port = free_address()
    image.slightfile(slightfile(f"{host}:{port}"))
    image.guest("messaging")

    async def main(own: int) -> None:
        for method in ("PUT", "POST"):
            answer = await Guest(own).ask(method, "topic", "box", "topic", body=b"x")
            assert answer == (418, f"3 {host}:{port}: there is no connection".encode())

    image.run(main)


def test_server_that_starts_again(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confluent_apache_kafka, "_CALL_SECONDS", 3.0)
    monkeypatch.setattr(kafka_consumer, "_AWAY_SECONDS", 1.5)
    image.guest("messaging")
    with running_kafka() as server:
        image.slightfile(slightfile(server.address))

        async def main(port: int) -> None:
            guest = Guest(port)
            token = await guest.subscribe("topic")
            await guest.publish("topic", b"before")
            assert await guest.receive_one(token) == b"before"
            await asyncio.to_thread(server.stop)
            async with asyncio.timeout(60):
                while (await guest.ask("GET", "subscription", "box", token))[0] == 200:
                    pass
                assert await guest.ask("GET", "subscription", "box", token) == (
                    418,
                    b"3 the server is away",
                )
                status, text = await guest.ask("PUT", "topic", "box", "topic", body=b"x")
                assert (status, text[:2]) == (418, b"5 "), text
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(60):
                while (await guest.ask("PUT", "topic", "box", "topic", body=b"after"))[0] != 204:
                    pass
                while (await guest.ask("GET", "subscription", "box", token))[1] != b"after":
                    pass

        image.run(main)


# Logins


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with certificate_authority() as made:
        yield made


def login(mechanism: str, password: str) -> dict[str, str]:
    return {
        "SECURITY_PROTOCOL": "SASL_SSL",
        "SASL_MECHANISMS": mechanism,
        "SASL_USERNAME": "ann",
        "SASL_PASSWORD": password,
    }


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_login(image: Image, authority: Authority, mechanism: str) -> None:
    image.guest("messaging")
    host, port = free_address()
    certificate = authority.issue("kafka", f"IP:{host}")
    with running_kafka(
        users=USERS, mechanism=mechanism, certificate=certificate, address=(host, port)
    ) as server:
        address = f"SASL_SSL://{server.address}"

        async def good(port: int) -> None:
            guest = Guest(port)
            token = await guest.subscribe("topic")
            await guest.publish("topic", b"message")
            assert await guest.receive_one(token) == b"message"

        image.slightfile(slightfile(address, **login(mechanism, "correct horse")))
        image.run(good, SSL_CERT_FILE=str(authority.cert))
        image.sockets.clear()

        async def bad(port: int) -> None:
            for method in ("PUT", "POST"):
                answer = await Guest(port).ask(method, "topic", "box", "topic")
                reason = f"2 {server.address}: the server refuses the credentials"
                assert answer == (418, reason.encode())

        image.slightfile(slightfile(address, **login(mechanism, "s3cret")))
        image.run(bad, SSL_CERT_FILE=str(authority.cert))
        assert "s3cret" not in image.stderr
        image.sockets.clear()

        async def untrusted(port: int) -> None:
            answer = await Guest(port).ask("PUT", "topic", "box", "topic")
            reason = f"3 {server.address}: there is no connection"
            assert answer == (418, reason.encode())

        with certificate_authority() as another:
            image.run(untrusted, SSL_CERT_FILE=str(another.cert))


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ({"ENDPOINT": "http://a/b"}, "7 CAK_ENDPOINT is not like host:9092"),
        ({"ENDPOINT": ""}, "7 CAK_ENDPOINT is not like host:9092"),
        ({"SECURITY_PROTOCOL": "TLS"}, "7 CAK_SECURITY_PROTOCOL is none of PLAINTEXT, SSL,"),
        ({"SECURITY_PROTOCOL": "SASL_PLAINTEXT"}, "7 messaging.confluent_apache_kafka: no config"),
        (
            login("GSSAPI", "x") | {"SECURITY_PROTOCOL": "SASL_PLAINTEXT"},
            "7 CAK_SASL_MECHANISMS is none of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512",
        ),
    ],
)
def test_config_that_cannot_be(image: Image, configs: dict[str, str], message: str) -> None:
    image.guest("messaging")
    image.slightfile(slightfile("127.0.0.1:1", **configs))

    async def main(port: int) -> None:
        for method in ("PUT", "POST"):
            status, text = await Guest(port).ask(method, "topic", "box", "topic")
            assert (status, text[: len(message)]) == (418, message.encode()), text

    image.run(main)


# Positions

ONE, TWO = TopicPartition("topic", 1), TopicPartition("topic", 2)


def test_position_stays_before_what_is_held() -> None:
    deliveries = Deliveries()
    for offset in (5, 6, 7):
        deliveries.take(ONE, offset)
    deliveries.take(TWO, 1)
    assert deliveries.positions() == {ONE: 5, TWO: 1}
    deliveries.let_go(ONE, 6)
    deliveries.let_go(TWO, 1)
    assert deliveries.positions() == {ONE: 5, TWO: 2}
    deliveries.let_go(ONE, 5)
    assert deliveries.positions() == {ONE: 7, TWO: 2}
    assert deliveries.has(ONE, 7)
    assert not deliveries.has(ONE, 5)
    deliveries.written({ONE: 7, TWO: 2})
    assert deliveries.positions() == {}
    deliveries.let_go(ONE, 7)
    assert deliveries.positions() == {ONE: 8}


def test_what_others_have_has_no_position() -> None:
    deliveries = Deliveries()
    deliveries.take(ONE, 5)
    deliveries.forget()
    deliveries.let_go(ONE, 5)
    assert deliveries.positions() == {}
