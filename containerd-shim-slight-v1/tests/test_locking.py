"""``distributed-locking`` and etcd, called by guests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import connected, fetch, head
from containerd_shimkit.testing.servers.etcd import running_etcd
from containerd_shimkit.testing.servers.http import Received, answering, http_server, response
from containerd_shimkit.testing.servers.process import Server

Image = Any  # of conftest.py


def slightfile(endpoint: str) -> str:
    return (
        'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "api"\n'
        '[[capability]]\nresource = "distributed_locking.etcd"\nname = "locks"\n'
        f'[capability.configs]\nETCD_ENDPOINT = "{endpoint}"\n'
    )


@pytest.fixture(scope="module")
def etcd() -> Iterator[Server]:
    with running_etcd() as server:
        yield server


@pytest.fixture
def app(image: Image, etcd: Server) -> Image:
    image.guest("locking")
    image.slightfile(slightfile(etcd.address))
    return image


class Guest:
    """What the guest ``locking`` answers."""

    def __init__(self, port: int, generation: str = "current") -> None:
        self._port, self._generation = port, generation

    async def ask(self, call: str, seconds: str, body: bytes) -> tuple[int, bytes]:
        path = f"/{self._generation}/{call}/{seconds}"
        answer = await fetch(self._port, path, method="PUT", body=body)
        return answer.status, answer.body

    async def lock(self, name: bytes, seconds: str = "-") -> bytes:
        status, key = await self.ask("lock", seconds, name)
        assert status == 200, key
        return key

    async def unlock(self, key: bytes) -> None:
        assert await self.ask("unlock", "-", key) == (204, b"")


@pytest.mark.parametrize("generation", ["current", "old"])
@pytest.mark.parametrize("seconds", ["-", "60"])
def test_second_holder_waits_for_the_first(app: Image, generation: str, seconds: str) -> None:
    async def main(port: int) -> None:
        guest = Guest(port, generation)
        name = f"{generation}/{seconds}\0\xff".encode("latin-1")
        key = await guest.lock(name, seconds)
        assert key.startswith(name + b"/")
        other = await guest.lock(b"other", seconds)
        waiting = asyncio.create_task(guest.lock(name, seconds))
        done, _ = await asyncio.wait((waiting,), timeout=0.3)
        assert not done
        await guest.unlock(key)
        async with asyncio.timeout(20):
            second = await waiting
        assert second != key
        for each in (second, other):
            await guest.unlock(each)

    app.run(main)


def test_lock_ends_with_its_time(app: Image) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        key = await guest.lock(b"short", "1")
        async with asyncio.timeout(20):
            # Its own lease is shorter than the time that it waits.
            second = await guest.lock(b"short", "1")
        assert await guest.ask("unlock", "-", key) == (
            418,
            b"5 there is no such lock, or not any more",
        )
        await guest.unlock(second)

    app.run(main)


def test_who_is_cut_off_while_waiting_leaves_no_lock(app: Image) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        key = await guest.lock(b"name")
        assert (await guest.ask("lock", "-", b"name"))[0] == 504
        await guest.unlock(key)
        async with asyncio.timeout(10):
            await guest.unlock(await guest.lock(b"name"))

    app.run(main, SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS="1")


def test_many_wait_at_once(app: Image) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        names = [str(number).encode() for number in range(200)]
        async with asyncio.timeout(100):
            keys = await asyncio.gather(*map(guest.lock, names))
            waiting = [asyncio.create_task(guest.lock(name)) for name in names]
            # Nobody who gives one back waits behind those who wait for one.
            await asyncio.gather(*map(guest.unlock, reversed(keys)))
            await asyncio.gather(*map(guest.unlock, await asyncio.gather(*waiting)))

    app.run(main, SLIGHT_MAX_INSTANCE_COUNT="400")


def test_lock_that_the_server_gives_and_does_not_say_so(image: Image, etcd: Server) -> None:
    """etcd 3.4 does so when many wait: it misses that the lock before has ended."""
    image.guest("locking")
    address = free_address()
    image.slightfile(slightfile("http://{}:{}".format(*address)))
    host, _, etcd_port = etcd.address.rpartition(":")
    ended: asyncio.Queue[None] = asyncio.Queue()  # requests for locks

    async def pass_on(request: Received, writer: asyncio.StreamWriter) -> bool:
        asked = [("content-length", str(len(request.body)))]
        async with connected(int(etcd_port), host) as connection:
            await connection.send(head(request.method, request.target, asked) + request.body)
            if request.target == "/v3/lock/lock":
                await request.gone()
                ended.put_nowait(None)
                return False
            answer = await connection.response()
        writer.write(response(answer.status, answer.body))
        return True

    async def main(port: int) -> None:
        guest = Guest(port)
        async with http_server(pass_on, address=address):
            key = await guest.lock(b"not said", "30")
            waiting = asyncio.create_task(guest.lock(b"not said", "30"))
            done, _ = await asyncio.wait((waiting,), timeout=3)
            assert not done
            assert ended.empty()
            await guest.unlock(key)
            async with asyncio.timeout(20):
                await ended.get()
                await guest.unlock(await waiting)
                await ended.get()

    image.run(main)


@pytest.mark.parametrize("key", [b"", b"nothing", b"/", b"name/xyz", b"x" * 200_000 + b"/1"])
def test_key_of_no_lock(app: Image, key: bytes) -> None:
    async def main(port: int) -> None:
        assert await Guest(port).ask("unlock", "-", key) == (
            418,
            b"5 the key is not one of a lock",
        )

    app.run(main)


@pytest.mark.parametrize("seconds", ["0", "-1", "9000000001", "9223372036854775807"])
def test_time_that_cannot_be(app: Image, seconds: str) -> None:
    async def main(port: int) -> None:
        status, text = await Guest(port).ask("lock", seconds, b"name")
        assert (status, text) == (
            418,
            f"0 a lock lasts 1 to 9000000000 seconds, not {seconds}".encode(),
        )

    app.run(main)


def test_lock_without_a_name(app: Image) -> None:
    async def main(port: int) -> None:
        status, text = await Guest(port).ask("lock", "-", b"")
        assert (status, text) == (418, b"0 a lock's name has 1 to 65536 bytes")

    app.run(main)


def test_server_that_is_down(image: Image) -> None:
    image.guest("locking")
    address = "{}:{}".format(*free_address())
    image.slightfile(slightfile(f"http://{address}"))

    async def main(port: int) -> None:
        for call in ("lock", "unlock"):
            assert await Guest(port).ask(call, "-", b"name/1") == (
                418,
                f"3 {address}: the server does not answer".encode(),
            )

    image.run(main)


def test_server_that_goes_while_somebody_waits(image: Image) -> None:
    image.guest("locking")
    with running_etcd() as server:
        image.slightfile(slightfile(server.address))

        async def main(port: int) -> None:
            guest = Guest(port)
            key = await guest.lock(b"name")
            waiting = asyncio.create_task(guest.ask("lock", "-", b"name"))
            await asyncio.wait((waiting,), timeout=0.3)
            await asyncio.to_thread(server.stop)
            async with asyncio.timeout(30):
                assert await waiting == (
                    418,
                    f"3 {server.address}: the server does not answer".encode(),
                )
            assert (await guest.ask("unlock", "-", key))[1][:2] == b"3 "

        image.run(main)


def test_lock_of_an_app_that_is_gone_ends_with_its_time(app: Image) -> None:
    async def first(port: int) -> None:
        await Guest(port).lock(b"of one that goes", "2")

    async def second(port: int) -> None:
        guest = Guest(port)
        async with asyncio.timeout(30):
            await guest.unlock(await guest.lock(b"of one that goes"))

    app.run(first)
    app.sockets.clear()
    app.run(second)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (response(200, b"nothing"), "its answer is not etcd's"),
        (response(200, b"[" * 100_000), "its answer is not etcd's"),
        (response(200, b"[]"), "its answer is not etcd's"),
        (response(200, b"{}"), "the server grants no lease"),
        (response(200, bytes(2 << 20)), "the server's answer exceeds 1048576 bytes"),
    ],
    ids=["text", "nested", "list", "empty", "large"],
)
def test_server_that_is_another(image: Image, answer: bytes, reason: str) -> None:
    image.guest("locking")

    async def main(port: int) -> None:
        async with http_server(answering(lambda _: answer), address=address):
            status, text = await Guest(port).ask("lock", "-", b"name")
            assert (status, text[:2]) == (418, b"4 ")
            assert reason in text.decode()

    address = free_address()
    image.slightfile(slightfile("http://{}:{}".format(*address)))
    image.run(main)


@pytest.mark.parametrize("endpoint", ["", "ftp://host", "http://", "http://a:b@host", "http://h/p"])
def test_endpoint_that_is_none(image: Image, endpoint: str) -> None:
    image.guest("locking")
    image.slightfile(slightfile(endpoint))

    async def main(port: int) -> None:
        status, text = await Guest(port).ask("lock", "-", b"name")
        assert (status, text) == (418, b"6 ETCD_ENDPOINT is not like http://host:2379")

    image.run(main)
