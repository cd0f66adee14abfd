"""Real guests use key-value stores, by the interface of each generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from containerd_shimkit.testing.http import fetch
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.redis import running_redis

VERSIONS = ["v1", "v1.5", "v2"]
MANIFEST = """
spin_manifest_version = 2
[application]
name = "test"
[[trigger.http]]
route = "/..."
component = "key-value"
[component.key-value]
source = "key_value.wasm"
key_value_stores = ["default", "memory", "redis", "away"]
"""
CONFIG = """
state_dir = "/state"
[key_value_store.memory]
type = "spin"
[key_value_store.other]
type = "spin"
[key_value_store.redis]
type = "redis"
url = "redis://{address}"
[key_value_store.away]
type = "redis"
url = "redis://:s3cret@127.0.0.1:1"
"""
TEN_MEGABYTES = 10 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_redis() as running:
        yield running


@pytest.fixture
def app(image: Any, server: Server) -> Any:
    image.component("key_value", "/...")
    image.manifest(MANIFEST)
    (image.root / "runtime-config.toml").write_text(CONFIG.format(address=server.address))
    return image


async def ask(port: int, version: str, *lines: str) -> list[str]:
    """Have one guest make calls; return what it says of each."""
    body = "\n".join(lines).encode()
    response = await fetch(port, f"/{version}", method="POST", body=body)
    assert response.status == 200, response
    return response.text.splitlines()


@pytest.mark.parametrize("label", ["default", "memory", "redis"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_function(app: Any, server: Server, version: str, label: str) -> None:
    server.run("redis-cli", "-h", server.host, "-p", str(server.port), "FLUSHALL")
    nothing = "none" if version == "v2" else "error 4"
    calls = [
        (f"open {label}", "0"),
        ("get k", nothing),
        ("exists k", "no"),
        ("delete k", "ok"),
        ("set k schön", "ok"),
        ("get k", "'schön'"),
        ("exists k", "yes"),
        (f"open {label}", "1"),
        ("get k", "'schön'"),
        ("set k ", "ok"),
        ("get k", "''"),
        ("get-keys", "'k'"),
        ("close", "ok"),
        ("use 0", "ok"),
        (f"set big @{TEN_MEGABYTES}", "ok"),
        ("get big", told(TEN_MEGABYTES)),
        ("delete big", "ok"),
        ("delete k", "ok"),
        ("get-keys", ""),
    ]

    async def main(port: int) -> None:
        answers = await ask(port, version, *(line for line, _ in calls))
        assert list(zip((line for line, _ in calls), answers, strict=True)) == calls

    app.run(main)


def told(size: int) -> str:
    """Return what the guest says of its own value of ``size`` bytes."""
    value = (b"abcdefghijklmnopqrstuvwxyz" * (size // 26 + 1))[:size]
    return f"{size} bytes, sum {sum(byte * place for place, byte in enumerate(value, 1))}"


@pytest.mark.parametrize("version", VERSIONS)
def test_values_are_there_for_the_next_guest(app: Any, version: str) -> None:
    async def write(port: int) -> None:
        for label in ("default", "memory"):
            assert await ask(port, version, f"open {label}", "set k v") == ["0", "ok"]
            assert await ask(port, version, f"open {label}", "get k") == ["0", "'v'"]

    async def read(port: int) -> None:
        assert await ask(port, version, "open default", "get k") == ["0", "'v'"]

    app.run(write)
    app.run(read)
    assert (app.root / "state" / "sqlite_key_value.db").is_file()


@pytest.mark.parametrize("version", VERSIONS)
def test_errors(app: Any, version: str, caplog: pytest.LogCaptureFixture) -> None:
    io = f"error {3 if version == 'v2' else 5}"

    async def main(port: int) -> None:
        assert await ask(port, version, "open other", "open nowhere") == ["error 2", "error 2"]
        assert await ask(port, version, "fill memory") == ["error 0 after 256"]
        [_, answer] = await ask(port, version, "open away", "get k")
        assert answer == (
            f"{io} key-value store 'away': redis://127.0.0.1:1: cannot connect: Connection refused"
        )
        (app.root / "state").write_text("no directory")
        [_, answer] = await ask(port, version, "open default", "get k")
        assert answer.startswith(f"{io} key-value store 'default' in ")
        assert "mount a volume at " in answer
        if version != "v2":
            lines = ("open memory", "close", "get k", "set k v", "delete k", "exists k", "get-keys")
            assert (await ask(port, version, *lines))[2:] == ["error 3"] * 5

    app.run(main)
    assert (
        "component 'key-value': key-value.open: the component may not open key-value store "
        "'other': it needs key_value_stores = [\"other\"] in the manifest"
    ) in caplog.text
    assert "s3cret" not in caplog.text


def test_dropped_store_ends_the_guest(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A resource's handle is checked by the guest's own code: who passes another is broken."""

    async def main(port: int) -> None:
        response = await fetch(port, "/v2", method="POST", body=b"open memory\nclose\nget k")
        assert response.status == 500
        assert await ask(port, "v2", "open memory", "get k") == ["0", "none"]

    app.run(main)
    assert "0 is the handle of no open key-value store" in caplog.text


def test_bad_address_fails_the_start(app: Any) -> None:
    (app.root / "runtime-config.toml").write_text(
        '[key_value_store.redis]\ntype = "redis"\nurl = "redis://u:s3cret@h/name"\n'
        '[key_value_store.memory]\ntype = "spin"\n[key_value_store.away]\ntype = "spin"\n'
    )
    with pytest.raises(Exception, match=r"\[key_value_store\.redis\]") as caught:
        app.prepare()
    assert "s3cret" not in str(caught.value)
