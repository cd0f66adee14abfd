"""``keyvalue.redis`` with a real server, called by guests and alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import uvloop

from containerd_shim_slight_v1.capabilities import listing
from containerd_shim_slight_v1.capabilities.context import AppContext, BackendContext
from containerd_shim_slight_v1.capabilities.errors import CapabilityError
from containerd_shim_slight_v1.capabilities.keyvalue import redis as redis_module
from containerd_shim_slight_v1.capabilities.keyvalue.redis import Backend
from containerd_shim_slight_v1.slightfile.reader import parse_slightfile
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import fetch
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.proxy import holding_proxy
from containerd_shimkit.testing.servers.redis import running_redis

Image = Any  # of conftest.py

KEYVALUE = (
    'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "a"\n'
    '[[capability]]\nresource = "keyvalue.redis"\nname = "*"\n'
    '[capability.configs]\nREDIS_ADDRESS = "${envvars.ADDRESS_OF_REDIS}"\n'
)


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    with running_redis() as server:
        yield server


def call(address: str, main: Callable[[Backend], Awaitable[None]]) -> None:
    """Run ``main`` with a backend of its own."""
    file = parse_slightfile(KEYVALUE.replace("${envvars.ADDRESS_OF_REDIS}", address))

    async def run() -> None:
        context = BackendContext(AppContext(file, {}, None), file.capabilities[1], {})
        backend = Backend(context)
        try:
            async with asyncio.timeout(30):
                await main(backend)
        finally:
            await backend.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def fails(address: str, case: str, message: str) -> None:
    """Check how every function fails."""

    async def main(backend: Backend) -> None:
        for make in (
            lambda: backend.get("s", "k"),
            lambda: backend.set("s", "k", b""),
            lambda: backend.keys("s"),
            lambda: backend.delete("s", "k"),
        ):
            with pytest.raises(CapabilityError, match=message) as caught:
                await make()
            assert caught.value.case == case
            assert "secret" not in str(caught.value)

    call(address, main)


@pytest.mark.parametrize("key", ["key", "a/b", "", "größe", "a:b", "*", "with space"])
def test_guest_sets_reads_lists_and_removes(image: Image, redis: Server, key: str) -> None:
    image.slightfile(KEYVALUE)

    async def main(port: int) -> None:
        name = quote(key, safe="")
        store = "/kv/[s*]"
        path = f"{store}/{name}/"
        for value in (b"one", b"", b"\0\xff" * 50_000):
            assert (await fetch(port, path, method="PUT", body=value)).status == 204
            assert (await fetch(port, path)).body == value
        assert (await fetch(port, store)).body == f"{key}\n".encode()
        for _ in range(2):  # no error, as in Redis
            assert (await fetch(port, path, method="DELETE")).status == 204
        assert (await fetch(port, store)).body == b""
        answer = await fetch(port, path)
        assert (answer.status, answer.text) == (418, f"0 there is no key {key!r}")

    image.run(main, ADDRESS_OF_REDIS=f"redis://{redis.address}")


def test_key_is_found_under_the_name_upstream_uses(redis: Server) -> None:
    async def main(backend: Backend) -> None:
        await backend.open("upstream")
        await backend.set("upstream", "k", b"v")

    call(f"redis://{redis.address}", main)
    cli = redis_cli(redis)
    assert redis.run(*cli, "GET", "upstream:k") == "v\n"
    assert redis.run(*cli, "SET", "upstream:other", "x") == "OK\n"

    async def again(backend: Backend) -> None:
        assert await backend.get("upstream", "other") == b"x"
        assert sorted(await backend.keys("upstream")) == ["k", "other"]

    call(f"redis://{redis.address}", again)


def redis_cli(server: Server) -> tuple[str, ...]:
    return ("redis-cli", "-h", server.host, "-p", str(server.port))


def test_server_that_is_away() -> None:
    host, port = free_address()
    fails(f"redis://:secret@{host}:{port}", "connection-error", "cannot connect")


def test_password_that_is_wrong() -> None:
    with running_redis("--requirepass", "right") as server:
        fails(f"redis://:secret@{server.address}", "authentication-error", "WRONGPASS")
        fails(f"redis://{server.address}", "authentication-error", "NOAUTH")


def test_address_that_is_none(image: Image) -> None:
    image.slightfile(KEYVALUE)

    async def main(port: int) -> None:
        answer = await fetch(port, "/kv/store/key/")
        assert answer.status == 418
        assert answer.text.startswith("7 config 'REDIS_ADDRESS': the Redis address is not of")

    image.run(main, ADDRESS_OF_REDIS="secret")


def test_config_that_has_no_value(image: Image) -> None:
    image.slightfile(KEYVALUE)

    async def main(port: int) -> None:
        message = "7 keyvalue.redis: config 'REDIS_ADDRESS' from configs.envvars: there is no"
        assert (await fetch(port, "/kv/store/key/")).text.startswith(message)

    image.run(main)


def test_server_that_restarts_between_two_calls() -> None:
    with running_redis() as server:

        async def main(backend: Backend) -> None:
            await backend.set("s", "k", b"1")
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            await backend.set("s", "k", b"2")
            assert await backend.get("s", "k") == b"2"

        call(f"redis://{server.address}", main)


def test_too_much(redis: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_module, "MAX_VALUE_BYTES", 10)
    monkeypatch.setattr(listing, "MAX_NAMES", 2)

    async def main(backend: Backend) -> None:
        with pytest.raises(CapabilityError, match="11 bytes, more than 10") as caught:
            await backend.set("much", "k", b"x" * 11)
        assert caught.value.case == "invalid-value"
        for key in "abc":
            await backend.set("much", key, b"")
        with pytest.raises(CapabilityError, match="store 'much' has more than 2 names"):
            await backend.keys("much")

    call(f"redis://{redis.address}", main)


def test_keys_of_too_many_bytes(redis: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_NAMES_BYTES", 10_000)

    async def main(backend: Backend) -> None:
        for key in "ab":
            await backend.set("large", key * 6000, b"")
        message = "'large' has more than 100000 names, or 10000 bytes of them"
        with pytest.raises(CapabilityError, match=message) as caught:
            await backend.keys("large")
        assert caught.value.case == "io-error"
        await backend.delete("large", "a" * 6000)
        assert await backend.keys("large") == ["b" * 6000]

    call(f"redis://{redis.address}", main)


def test_value_that_is_too_large(redis: Server) -> None:
    """Somebody else stored it: the server says its length first."""
    assert redis.run(*redis_cli(redis), "SETRANGE", "s:big", str(200 << 20), "x")

    async def main(backend: Backend) -> None:
        with pytest.raises(CapabilityError, match="exceeds 134217728 bytes"):
            await backend.get("s", "big")
        await backend.delete("s", "big")
        with pytest.raises(CapabilityError, match="no key"):
            await backend.get("s", "big")

    call(f"redis://{redis.address}", main)


def test_request_that_is_cut_off_leaves_its_answer_to_nobody(image: Image, redis: Server) -> None:
    image.slightfile(KEYVALUE)
    for key in ("one", "two"):
        assert redis.run(*redis_cli(redis), "SET", f"cut:{key}", key) == "OK\n"
    address = free_address()

    async def main(port: int) -> None:
        async with holding_proxy((redis.host, redis.port), address) as proxy:
            answers = await asyncio.gather(*(fetch(port, "/kv/cut/one/") for _ in range(10)))
            assert {answer.status for answer in answers} == {504}
            proxy.open()
            async with asyncio.timeout(60):
                for _ in range(20):
                    while (found := await fetch(port, "/kv/cut/two/")).status == 504:
                        pass  # a busy machine may take longer
                    assert found.text == "two"

    env = {"ADDRESS_OF_REDIS": "redis://{}:{}".format(*address)}
    image.run(main, SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS="1", **env)


def test_many_wait_at_once(image: Image, redis: Server) -> None:
    """200 guests, each with a command that the server holds back."""
    image.slightfile(KEYVALUE)
    cli = redis_cli(redis)

    async def waiting() -> int:
        clients = await asyncio.to_thread(redis.run, *cli, "CLIENT", "LIST", "TYPE", "NORMAL")
        return clients.count("cmd=set")

    async def main(port: int) -> None:
        assert redis.run(*cli, "CLIENT", "PAUSE", "60000", "WRITE") == "OK\n"
        asked = [
            asyncio.create_task(fetch(port, f"/kv/many/{n}/", method="PUT", body=b"x"))
            for n in range(200)
        ]
        async with asyncio.timeout(60):
            while await waiting() < 200:
                pass
            assert not any(task.done() for task in asked)
            assert await asyncio.to_thread(redis.run, *cli, "CLIENT", "UNPAUSE") == "OK\n"
            assert {answer.status for answer in await asyncio.gather(*asked)} == {204}

    env = {"ADDRESS_OF_REDIS": f"redis://{redis.address}", "SLIGHT_MAX_INSTANCE_COUNT": "200"}
    image.run(main, **env)


def test_slightfile_without_an_address(image: Image) -> None:
    image.slightfile(KEYVALUE.partition("[capability.configs]")[0])
    with pytest.raises(Exception, match=r"keyvalue\.redis needs the config REDIS_ADDRESS"):
        image.prepare()
