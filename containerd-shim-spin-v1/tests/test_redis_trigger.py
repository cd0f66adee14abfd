"""The Redis trigger, against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

import pytest
import uvloop

from containerd_shim_spin_v1.triggers import redis as trigger_module
from containerd_shim_spin_v1.triggers.redis import Handler, RedisTrigger
from containerd_shimkit.redis_client.address import AddressError, RedisAddress
from containerd_shimkit.redis_client.connection import (
    CannotConnectError,
    RedisConnection,
    connect,
)
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.redis import running_redis


def no_tls() -> ssl.SSLContext:
    raise AssertionError("no TLS here")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_redis() as found:
        yield found


@pytest.fixture
def url(server: Server) -> str:
    return f"redis://{server.address}"


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60):
            await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())


class Running:
    """A trigger that runs."""

    def __init__(
        self, subscriptions: Mapping[str, Sequence[tuple[str, Handler]]], options: Mapping[str, Any]
    ) -> None:
        defaults: dict[str, Any] = {"places": asyncio.Semaphore(10), "drain_seconds": 30.0}
        self.trigger = RedisTrigger(subscriptions, no_tls, **(defaults | dict(options)))
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self.trigger.run(self._stop))

    async def stop(self) -> None:
        self._stop.set()
        await self._task


@contextlib.asynccontextmanager
async def running(
    subscriptions: Mapping[str, Sequence[tuple[str, Handler]]], **options: Any
) -> AsyncIterator[Running]:
    """A trigger that has subscribed."""
    found = Running(subscriptions, options)
    try:
        await found.trigger.connected.wait()
        yield found
    finally:
        await found.stop()


async def command(url: str, *words: bytes) -> Any:
    """Run a command on a connection of its own."""
    connection = await connect(RedisAddress.parse(url), no_tls)
    try:
        return await connection.call(*words)
    finally:
        connection.abort()


async def publish(url: str, *messages: tuple[str, bytes]) -> list[int]:
    """Send messages; return how many heard each."""
    connection = await connect(RedisAddress.parse(url), no_tls)
    try:
        connection.send(*((b"PUBLISH", name.encode(), payload) for name, payload in messages))
        return [await connection.read() for _ in messages]  # type: ignore[misc]
    finally:
        connection.abort()


async def until(look: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Return when ``look`` does so with True: for what nobody announces."""
    while not await look():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


class Inbox:
    """A handler that keeps messages, and can be held."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.at_once = 0
        self.most_at_once = 0
        self.go = asyncio.Event()
        self.go.set()
        self._changed = asyncio.Condition()

    async def __call__(self, payload: bytes) -> None:
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        async with self._changed:
            self._changed.notify_all()
        try:
            await self.go.wait()
        finally:
            self.at_once -= 1
        self.got.append(payload)
        async with self._changed:
            self._changed.notify_all()

    async def until(self, what: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(what)

    async def until_got(self, count: int) -> None:
        await self.until(lambda: len(self.got) >= count)


def test_messages_of_a_channel_are_in_order(url: str) -> None:
    async def main() -> None:
        inbox = Inbox()
        async with running({url: [("c", inbox)]}):
            messages = [b"%d\0\xff" % number for number in range(2000)]
            assert await publish(url, *(("c", message) for message in messages)) == [1] * 2000
            await inbox.until_got(2000)
            assert inbox.got == messages
            assert inbox.most_at_once == 1

    run(main)


def test_large_message(url: str) -> None:
    async def main() -> None:
        inbox = Inbox()
        async with running({url: [("c", inbox)]}):
            message = bytes(range(256)) * (10 << 12)
            await publish(url, ("c", message), ("c", b""))
            await inbox.until_got(2)
            assert inbox.got == [message, b""]

    run(main)


def test_channels_do_not_wait_for_each_other(url: str) -> None:
    async def main() -> None:
        slow, quick = Inbox(), Inbox()
        slow.go.clear()
        async with running({url: [("slow", slow), ("ключ", quick)]}):
            await publish(url, ("slow", b"1"), ("ключ", b"2"), ("slow", b"3"), ("ключ", b"4"))
            await quick.until_got(2)
            assert slow.got == []
            slow.go.set()
            await slow.until_got(2)

    run(main)


def test_components_of_one_channel(url: str) -> None:
    """Each gets every message, at once with the others."""

    async def main() -> None:
        first, second = Inbox(), Inbox()
        first.go.clear()
        async with running({url: [("c", first), ("c", second)]}):
            await publish(url, ("c", b"1"), ("c", b"2"))
            await second.until_got(1)
            assert second.got == [b"1"]
            first.go.set()
            await second.until_got(2)
            await first.until_got(2)

    run(main)


def test_several_servers(url: str) -> None:
    async def main() -> None:
        inbox = Inbox()
        with running_redis() as other:
            other_url = f"redis://{other.address}"
            async with running({url: [("c", inbox)], other_url: [("c", inbox), ("d", inbox)]}):
                await publish(url, ("c", b"1"))
                await inbox.until_got(1)
                await publish(other_url, ("d", b"2"), ("x", b"4"), ("c", b"3"))
                await inbox.until_got(3)
                assert sorted(inbox.got) == [b"1", b"2", b"3"]

    run(main)


def test_handlers_at_once_are_limited(url: str) -> None:
    async def main() -> None:
        inbox = Inbox()
        inbox.go.clear()
        channels = [(f"c{number}", inbox) for number in range(8)]
        async with running({url: channels}, places=asyncio.Semaphore(3)):
            await publish(url, *((name, b"x") for name, _ in channels))
            await inbox.until(lambda: inbox.at_once == 3)
            inbox.go.set()
            await inbox.until_got(8)
            assert inbox.most_at_once == 3

    run(main)


def test_handler_that_fails(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The next message is handled."""

    async def main() -> None:
        inbox = Inbox()

        async def fail(payload: bytes) -> None:
            await inbox(payload)
            raise ValueError("it is broken")

        async with running({url: [("c", fail)]}):
            await publish(url, ("c", b"1"), ("c", b"2"))
            await inbox.until_got(2)
            assert inbox.got == [b"1", b"2"]

    run(main)
    assert "'c': a message was not handled: it is broken" in caplog.text


def test_slow_channel_holds_back_the_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is bounded, and nothing is lost."""
    monkeypatch.setattr(trigger_module, "MAX_WAITING_BYTES", 1 << 20)

    async def main() -> None:
        inbox = Inbox()
        inbox.go.clear()
        async with running({url: [("c", inbox)]}) as found:
            [channel] = found.trigger._servers[0].channels
            messages = [b"%d" % number + bytes(100_000) for number in range(200)]
            await publish(url, *(("c", message) for message in messages))

            async def held_back() -> bool:
                clients = await command(url, b"CLIENT", b"LIST", b"TYPE", b"pubsub")
                return b" omem=0 " not in clients

            await until(held_back)
            assert 0 < channel.unfinished < 20
            inbox.go.set()
            await inbox.until_got(200)
            assert inbox.got == messages
        assert channel._bytes == 0

    run(main)


# At the end


def test_stop_finishes_what_is_in_hand(url: str) -> None:
    async def main() -> None:
        inbox = Inbox()
        inbox.go.clear()
        async with running({url: [("c", inbox)]}) as found:
            await publish(url, ("c", b"1"))
            await inbox.until(lambda: inbox.at_once == 1)
            stopping = asyncio.create_task(found.stop())
            while await publish(url, ("c", b"2")) != [0]:
                pass
            assert not stopping.done()
            inbox.go.set()
            await stopping
        assert inbox.got[0] == b"1"

    run(main)


def test_stop_does_not_wait_for_ever(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        inbox = Inbox()
        inbox.go.clear()
        async with running({url: [("c", inbox)]}, drain_seconds=0.02):
            await publish(url, ("c", b"1"))
            await inbox.until(lambda: inbox.at_once == 1)
        assert inbox.at_once == 0
        assert inbox.got == []

    run(main)
    assert "1 messages are cut off" in caplog.text


def test_cancelled_trigger_leaves_nothing(url: str) -> None:
    async def main() -> None:
        found = Running({url: [("c", Inbox())]}, {})
        await found.trigger.connected.wait()
        found._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await found._task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        while await publish(url, ("c", b"2")) != [0]:
            pass

    run(main)


# Servers that go and come


Attempts = Callable[[int], Coroutine[Any, Any, None]]


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Attempts:
    """Have a server be tried again soon; return what waits until so many more have failed."""
    monkeypatch.setattr(trigger_module, "FIRST_DELAY_SECONDS", 0.001)
    monkeypatch.setattr(trigger_module, "MAX_DELAY_SECONDS", 0.01)
    failed = 0

    async def count(*arguments: Any) -> RedisConnection:
        nonlocal failed
        try:
            return await connect(*arguments)
        except CannotConnectError:
            failed += 1
            raise

    async def wait(more: int) -> None:
        wanted = failed + more

        async def look() -> bool:
            return failed >= wanted

        await until(look)

    monkeypatch.setattr(trigger_module, "connect", count)
    return wait


def test_server_restarts(attempts: Attempts, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        inbox = Inbox()
        with running_redis() as own_server:
            own_url = f"redis://:@{own_server.address}"
            async with running({own_url: [("c", inbox)]}) as found:
                for count, number in enumerate((signal.SIGTERM, signal.SIGKILL), 1):
                    found.trigger._servers[0].subscribed.clear()
                    own_server.stop(number)
                    await attempts(3)
                    own_server.start()
                    await found.trigger._servers[0].subscribed.wait()
                    await publish(own_url, ("c", number.name.encode()))
                    await inbox.until_got(count)
                assert inbox.got == [b"SIGTERM", b"SIGKILL"]

    run(main)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"] * 2
    assert "is tried again" in caplog.records[0].message
    assert "messages of that time are lost" in caplog.records[1].message


def test_server_that_comes_after_the_app(
    attempts: Attempts, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = free_address()

    async def main() -> None:
        found = Running({f"redis://u:s3cret@{host}:{port}": [("c", Inbox())]}, {})
        await attempts(5)
        assert not found.trigger.connected.is_set()
        await found.stop()

    run(main)
    [record] = caplog.records
    assert f"redis://{host}:{port}: cannot connect: " in record.message
    assert "s3cret" not in caplog.text


@pytest.mark.usefixtures("attempts")
def test_connection_that_is_cut(url: str) -> None:
    async def main() -> None:
        inbox = Inbox()
        async with running({url: [("c", inbox)]}) as found:
            found.trigger._servers[0].subscribed.clear()
            await command(url, b"CLIENT", b"KILL", b"TYPE", b"pubsub")
            await found.trigger._servers[0].subscribed.wait()
            await publish(url, ("c", b"1"))
            await inbox.until_got(1)

    run(main)


@pytest.mark.usefixtures("attempts")
def test_server_that_does_not_let_subscribe(caplog: pytest.LogCaptureFixture) -> None:
    """It is tried again, too: whoever runs the server may allow it."""

    async def main() -> None:
        with running_redis() as own_server:
            own_url = f"redis://{own_server.address}"
            rule = (b"ACL", b"SETUSER", b"u", b"on", b">p", b"+@all")
            await command(own_url, *rule, b"resetchannels")
            found = Running({own_url.replace("//", "//u:p@"): [("c", Inbox())]}, {})

            async def told() -> bool:
                return bool(caplog.records)

            await until(told)
            await command(own_url, *rule, b"allchannels")
            await found.trigger.connected.wait()
            await found.stop()

    run(main)
    assert "NOPERM" in caplog.records[0].message


def test_bad_address() -> None:
    async def main() -> None:
        with pytest.raises(AddressError):
            Running({"http://h": []}, {})

    run(main)
