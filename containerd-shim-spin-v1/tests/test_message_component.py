"""A real guest that takes messages, called by the trigger of a served app, from a real Redis."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.errors import ManifestError, ModuleError
from containerd_shimkit.testing.apps import eventually
from containerd_shimkit.testing.http import fetch
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.redis import running_redis

GUESTS = Path(__file__).parent / "guests"

MANIFEST = """
spin_manifest_version = 2
[application]
name = "test"
[application.trigger.redis]
address = "redis://{{{{ server }}}}"
[variables]
server = {{ required = true }}
[[trigger.http]]
route = "/..."
component = "probe"
[[trigger.redis]]
channel = "first"
component = "messages"
[[trigger.redis]]
channel = "second"
component = "{component}"
[component.probe]
source = "probe.wasm"
[component.messages]
source = "messages.wasm"
"""


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    with running_redis() as server:
        yield server


def with_triggers(image: Any, component: str = "messages") -> Any:
    for guest in ("probe", "messages"):
        shutil.copyfile(GUESTS / f"{guest}.wasm", image.root / f"{guest}.wasm")
    image.manifest(MANIFEST.format(component=component))
    return image


async def publish(redis: Server, channel: str, text: str) -> int:
    command = ("redis-cli", "-h", redis.host, "-p", str(redis.port), "publish", channel, text)
    return int(await asyncio.to_thread(redis.run, *command))


async def published(redis: Server, channel: str, text: str) -> None:
    """Publish, once the app has subscribed."""
    for _ in range(1000):
        if await publish(redis, channel, text):
            return
    raise AssertionError("the app does not subscribe")


def test_messages_of_all_channels_beside_requests(
    image: Any, redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    app = with_triggers(image)

    async def main(port: int) -> None:
        await published(redis, "first", "one")
        await publish(redis, "second", "two")
        await publish(redis, "first", "fail")
        await publish(redis, "first", "trap")
        await publish(redis, "first", "loop")
        await publish(redis, "first", "three")
        await asyncio.to_thread(eventually, lambda: "message three" in app.stdout)
        assert (await fetch(port, "/echo")).status == 200

    app.run(main, SPIN_VARIABLE_SERVER=redis.address, SPIN_HTTP_REQUEST_TIMEOUT_SECONDS="0.5")
    lines = [line.removeprefix("message ") for line in app.stdout.splitlines()]
    assert [line for line in lines if line != "two"] == ["one", "fail", "trap", "loop", "three"]
    assert lines.count("two") == 1
    assert "a message of channel 'first' failed: the component returned an error" in caplog.text
    assert "a message of channel 'first' took more than 0.5 s" in caplog.text


def test_component_that_takes_no_messages(image: Any) -> None:
    with pytest.raises(ModuleError, match="exports no function 'handle-redis-message': it is no "):
        with_triggers(image, "probe").prepare(SPIN_VARIABLE_SERVER="r")


def test_address_that_is_none(image: Any) -> None:
    async def main(_port: int) -> None:
        raise AssertionError("it serves")

    with pytest.raises(ManifestError, match="a Redis trigger cannot listen: the Redis address"):
        with_triggers(image).run(main, SPIN_VARIABLE_SERVER="a b")
