"""Real guests call Redis, by the interface of each generation, against a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import fetch
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.redis import running_redis

VERSIONS = ["v1", "v1.5", "v2"]
PASSWORD = "s3cret"
MANIFEST = """
spin_manifest_version = 2
[application]
name = "test"
[[trigger.http]]
route = "/..."
component = "redis"
[component.redis]
source = "redis.wasm"
allowed_outbound_hosts = ["redis://127.0.0.0/8:*"]
"""
TEN_MEGABYTES = 10 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_redis() as running:
        yield running


@pytest.fixture
def app(image: Any) -> Any:
    image.component("redis", "/...")
    image.manifest(MANIFEST)
    return image


async def ask(port: int, version: str, address: str, *lines: str) -> list[str]:
    """Have one guest make calls; return what it says of each."""
    response = await fetch(
        port,
        f"/{version}",
        method="POST",
        headers=[("address", address.encode())],
        body="\n".join(lines).encode(),
    )
    assert response.status == 200, response
    return response.text.splitlines()


def told(size: int) -> str:
    """Return what the guest says of its own value of ``size`` bytes."""
    value = (b"abcdefghijklmnopqrstuvwxyz" * (size // 26 + 1))[:size]
    return f"{size} bytes, sum {sum(byte * place for place, byte in enumerate(value, 1))}"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_function(app: Any, server: Server, version: str) -> None:
    server.run("redis-cli", "-h", server.host, "-p", str(server.port), "FLUSHALL")
    calls = [
        ("get k", "none" if version == "v2" else "''"),
        ("set k schön", "ok"),
        ("get k", "'schön'"),
        ("incr n", "1"),
        ("execute INCRBY n #-9223372036854775808", "-9223372036854775807"),
        ("sadd s a b a", "2"),
        ("sadd s b c", "1"),
        ("srem s a b x", "2"),
        ("smembers s", "'c'"),
        ("publish c hello", "ok"),
        ("execute SET k x EX #100", "+'OK'"),
        ("execute MGET k no-such-key n", "'x' nil '-9223372036854775807'"),
        ("execute LRANGE no-such-list #0 #-1", ""),
        ("del k n no-such-key", "2"),
    ]

    async def main(port: int) -> None:
        answers = await ask(port, version, f"redis://{server.address}", *(c for c, _ in calls))
        assert list(zip((line for line, _ in calls), answers, strict=True)) == calls

    app.run(main)


@pytest.mark.parametrize("version", VERSIONS)
def test_large_values(app: Any, server: Server, version: str) -> None:
    async def main(port: int) -> None:
        lines = (
            f"set big @{TEN_MEGABYTES}",
            "get big",
            "execute GET big",
            f"publish c @{TEN_MEGABYTES}",
        )
        answers = await ask(port, version, f"redis://{server.address}", *lines, "del big")
        assert answers == ["ok", told(TEN_MEGABYTES), told(TEN_MEGABYTES), "ok", "1"]

    app.run(main)


@pytest.mark.parametrize("version", VERSIONS)
def test_wrong_types(app: Any, server: Server, version: str) -> None:
    other = f"error 3 redis://{server.address}: ERR "

    async def main(port: int) -> None:
        answers = await ask(
            *(port, version, f"redis://{server.address}"),
            *("set w word", "incr w", "sadd w x", "srem w x", "smembers w", "execute LPUSH w x"),
            *("del l", "execute LPUSH l #1", "get l", "execute NOSUCH"),
            *("execute SADD set", "publish c", "del l"),
        )
        if version != "v2":
            assert answers == [
                *("ok", *["error 1"] * 5),
                *(answers[6], "1", *["error 1"] * 3),
                *(answers[11], "1"),
            ]
        else:
            assert answers[1] == f"{other}value is not an integer or out of range"
            assert answers[2:6] == ["error 2"] * 4
            assert answers[8] == "error 2"
            assert answers[9].startswith(f"{other}unknown command 'NOSUCH'")
            assert answers[10] == f"{other}wrong number of arguments for 'sadd' command"

    app.run(main)


@pytest.mark.parametrize("version", VERSIONS)
def test_servers_that_do_not_let_in(
    app: Any, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    dead = "{}:{}".format(*free_address())
    found: dict[str, str] = {}

    async def main(port: int) -> None:
        for name, address in cases.items():
            [found[name]] = await ask(port, version, address, "get x")

    with running_redis("--requirepass", PASSWORD) as server:
        cases = {
            "right": f"redis://:{PASSWORD}@{server.address}",
            "wrong": f"redis://:wr0ng@{server.address}",
            "none": f"redis://{server.address}",
            "down": f"redis://u:{PASSWORD}@{dead}",
            "denied": f"redis://u:{PASSWORD}@cache.example:6380",
            "bad": f"mysql://u:{PASSWORD}@{dead}",
        }
        app.run(main)
    entry = 'allowed_outbound_hosts = ["redis://cache.example:6380"]'
    if version == "v2":
        assert found == {
            "right": "none",
            "wrong": f"error 3 redis://{server.address}: WRONGPASS invalid username-password pair"
            " or user is disabled.",
            "none": f"error 3 redis://{server.address}: NOAUTH Authentication required.",
            "down": f"error 3 redis://{dead}: cannot connect: Connection refused",
            "denied": "error 0",
            "bad": "error 0",
        }
    else:
        assert found == {name: "''" if name == "right" else "error 1" for name in cases}
        assert f"redis://{dead}: cannot connect: Connection refused" in caplog.text
    assert entry in caplog.text
    assert PASSWORD not in caplog.text
    assert "wr0ng" not in caplog.text


def test_connections_of_one_guest(app: Any, server: Server) -> None:
    """What is done to one is not seen by another, and a handle that is dropped is none."""
    address = f"redis://{server.address}"

    async def main(port: int) -> None:
        answers = await ask(
            *(port, "v2", address),
            *("set c 0", f"open {address}", "execute SELECT #7", "set c 7", "get c"),
            *(
                "use 0",
                "get c",
                "use 1",
                "execute DEL c",
                "drop",
                "get c",
                "use 0",
                "get c",
                "del c",
            ),
        )
        assert answers == [
            *("ok", "1", "+'OK'", "ok", "'7'"),
            *("ok", "'0'", "ok", "1", "ok", "error 3 there is no connection 1", "ok", "'0'", "1"),
        ]

    app.run(main)


def test_handles_are_bounded(app: Any, server: Server) -> None:
    address = f"redis://{server.address}"

    async def main(port: int) -> None:
        answers = await ask(port, "v2", address, *[f"open {address}"] * 256)
        assert answers[-2:] == ["255", "error 1"]

    app.run(main)


@pytest.mark.parametrize("version", VERSIONS)
def test_transaction_of_a_guest_ends_with_it(app: Any, server: Server, version: str) -> None:
    address = f"redis://{server.address}"

    async def main(port: int) -> None:
        begun = await ask(port, version, address, "execute MULTI", "set t 1", "incr t")
        assert begun[:2] == ["+'OK'", "ok"]
        lines = ("execute MULTI", "set t 5", "execute INCR t", "execute EXEC")
        answers = await ask(port, version, address, *lines)
        assert answers[2:] == ["+'QUEUED'", "+'OK' 6"]

    app.run(main)


def test_many_guests_wait_at_once(app: Any, server: Server) -> None:
    """Each waits 200 ms; the time beyond that is what they cost."""

    async def main(port: int) -> None:
        address = f"redis://{server.address}"

        async def wait() -> None:
            assert await ask(port, "v1", address, "execute BLPOP no-such-list 0.2") == ["nil"]

        await wait()
        start = time.monotonic()
        await asyncio.gather(*(wait() for _ in range(500)))
        # The clients are in the same process; a busy machine takes longer.
        assert time.monotonic() - start < 10

    app.run(main, SPIN_MAX_INSTANCE_COUNT="500")


def test_request_that_takes_too_long(app: Any, server: Server) -> None:
    """The connection that it waits on is gone with it: what comes is not given to it."""

    async def main(port: int) -> None:
        address = f"redis://{server.address}"
        headers = [("address", address.encode())]
        for body in (b"execute BLPOP k 0", b"execute SELECT #0\nexecute BLPOP k 0"):
            response = await fetch(port, "/v1", method="POST", headers=headers, body=body)
            assert response.status == 504
            # The server may hear of the end a moment later, and take one value for the dead.
            async with asyncio.timeout(10):
                while await ask(port, "v1", address, "execute RPUSH k v", "execute LPOP k") != [
                    *("1", "'v'")
                ]:
                    pass

    app.run(main, SPIN_HTTP_REQUEST_TIMEOUT_SECONDS="0.2")
