"""``configs``, called by guests, and the configs of other capabilities."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from containerd_shim_slight_v1.capabilities.configs import envvars
from containerd_shim_slight_v1.capabilities.context import (
    AppContext,
    BackendContext,
    ConfigValueError,
)
from containerd_shim_slight_v1.slightfile.reader import parse_slightfile
from containerd_shimkit.testing.http import fetch

Image = Any  # of conftest.py


def test_variable_is_read(image: Image) -> None:
    async def main(port: int) -> None:
        assert (await fetch(port, "/config/GREETING")).text == "hi"
        assert (await fetch(port, "/config/NOTHING")).text == "0 there is no config 'NOTHING'"

    image.run(main, GREETING="hi")


def test_variable_is_set_for_all_guests(image: Image) -> None:
    async def main(port: int) -> None:
        answer = await fetch(port, "/config/NEW", method="PUT", body="größe".encode())
        assert answer.status == 204
        assert (await fetch(port, "/config/NEW")).text == "größe"

    image.run(main)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("a%3Db", b"", "1 'a=b' cannot be the name of a variable"),
        ("A", b"\xff", "1 the value is not UTF-8"),
        ("A", b"a\0b", "1 the value has a NUL character"),
        ("A", b"x" * (1 << 20), "1 more than 1048576 bytes of variables are set"),
    ],
)
def test_variable_that_cannot_be_set(image: Image, key: str, value: bytes, reason: str) -> None:
    async def main(port: int) -> None:
        answer = await fetch(port, f"/config/{key}", method="PUT", body=value)
        assert (answer.status, answer.text) == (418, reason)

    image.run(main)


def test_setting_a_variable_again_takes_no_more_room() -> None:
    app = AppContext(parse_slightfile('specversion = "0.2"'), {}, None)
    store = envvars.Backend(app)

    async def main() -> None:
        for _ in range(10):
            await store.set("A", b"x" * 900_000)

    asyncio.run(main())
    assert len(app.environment["A"]) == 900_000


# Configs of capabilities


def context(text: str, **env: str) -> BackendContext:
    file = parse_slightfile(text)
    app = AppContext(file, env, None)
    return BackendContext(app, file.capabilities[0], {"envvars": envvars.Backend(app)})


V2 = """\
specversion = "0.2"
[[capability]]
resource = "keyvalue.redis"
name = "a"
[capability.configs]
REDIS_ADDRESS = "redis://h"
PASSWORD = "${envvars.SECRET}"
"""
V1 = 'specversion = "0.1"\nsecret_store = "STORE"\n[[capability]]\nname = "kv.redis"\n'


def test_values() -> None:
    found = context(V2, SECRET="hunter2")
    assert asyncio.run(found.value("REDIS_ADDRESS")) == "redis://h"
    assert asyncio.run(found.value("PASSWORD")) == "hunter2"
    assert asyncio.run(found.optional_value("OTHER")) is None


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("OTHER", "keyvalue.redis: no config named 'OTHER'"),
        (
            "PASSWORD",
            "keyvalue.redis: config 'PASSWORD' from configs.envvars: there is no config 'SECRET'",
        ),
    ],
)
def test_value_that_is_not_there(key: str, reason: str) -> None:
    with pytest.raises(ConfigValueError, match=reason):
        asyncio.run(context(V2).value(key))


def test_values_of_version_1() -> None:
    found = context(V1.replace("STORE", "configs.envvars"), REDIS_ADDRESS="redis://h")
    assert asyncio.run(found.value("REDIS_ADDRESS")) == "redis://h"
    assert asyncio.run(context(V1.replace("STORE", "configs.local")).value("X")) == "X"
