"""``configs.usersecrets``: secrets in the slightfile, and ShortCrypt, which hides them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shim_slight_v1.capabilities.configs import usersecrets
from containerd_shim_slight_v1.capabilities.configs.short_crypt import (
    UndecryptableError,
    decrypt,
    encrypt,
)
from containerd_shim_slight_v1.capabilities.context import AppContext
from containerd_shim_slight_v1.slightfile.reader import parse_slightfile
from containerd_shimkit.testing.http import fetch

Image = Any  # of conftest.py

KEY = "Zq3sT8vWx0aBcDeFgHiJkLmNoPqRsT"


def slightfile(secrets: dict[str, str], more: str = "") -> str:
    settings = "".join(
        f'[[secret_settings]]\nname = "{name}"\nvalue = "{encrypt(KEY, value.encode())}"\n'
        for name, value in secrets.items()
    )
    return (
        'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "a"\n'
        '[[capability]]\nresource = "configs.usersecrets"\nname = "env"\n' + more + settings
    )


def put_key(image: Image, text: str = KEY) -> None:
    image.temporary.mkdir(exist_ok=True)
    (image.temporary / ".slightkey").write_text(text)


# ShortCrypt


def test_example_of_the_library() -> None:
    assert encrypt("magickey", b"articles") == "2E87Wx52-Tvo"
    assert decrypt("magickey", "2E87Wx52-Tvo") == b"articles"


@given(st.text(), st.binary())
def test_what_is_encrypted_is_decrypted(key: str, plaintext: bytes) -> None:
    assert decrypt(key, encrypt(key, plaintext)) == plaintext


@pytest.mark.parametrize("text", ["", "a b", "ä", "=", "a" * 5, "!!!!"])
def test_text_that_is_no_secret(text: str) -> None:
    with pytest.raises(UndecryptableError):
        decrypt("magickey", text)


@given(st.text("ABCabc019_-", max_size=100))
def test_any_text_is_decrypted_or_refused(text: str) -> None:
    with contextlib.suppress(UndecryptableError):
        assert isinstance(decrypt("magickey", text), bytes)


def test_most_other_keys_are_found_out() -> None:
    text, found = encrypt(KEY, b"a secret of some length"), 0
    for n in range(100):
        try:
            decrypt(f"another key {n}", text)
        except UndecryptableError:
            found += 1
    assert found > 80


# The store


def test_secret_is_read(image: Image) -> None:
    put_key(image)
    image.slightfile(slightfile({"PASSWORD": "hunter2", "EMPTY": "", "WORD": "größe"}))

    async def main(port: int) -> None:
        for name, value in (("PASSWORD", "hunter2"), ("EMPTY", ""), ("WORD", "größe")):
            answer = await fetch(port, f"/config/{name}")
            assert (answer.status, answer.text) == (200, value)
        assert (await fetch(port, "/config/NOTHING")).text == "0 there is no config 'NOTHING'"

    image.run(main)


def test_newline_after_the_key_is_none_of_it(image: Image) -> None:
    put_key(image, KEY + "\n")
    image.slightfile(slightfile({"PASSWORD": "hunter2"}))

    async def main(port: int) -> None:
        assert (await fetch(port, "/config/PASSWORD")).text == "hunter2"

    image.run(main)


def test_secret_is_set_for_all_guests(image: Image) -> None:
    image.slightfile(slightfile({"PASSWORD": "hunter2"}))

    async def main(port: int) -> None:
        for value in (b"new", b"\0\xff"):
            answer = await fetch(port, "/config/PASSWORD", method="PUT", body=value)
            assert answer.status == 204
            assert (await fetch(port, "/config/PASSWORD")).body == value
        answer = await fetch(port, "/config/PASSWORD", method="PUT", body=b"x" * (1 << 20))
        assert answer.text == "1 more than 1048576 bytes of secrets are set"

    image.run(main)


def test_key_that_is_missing(image: Image) -> None:
    image.slightfile(slightfile({"PASSWORD": "hunter2"}))

    async def main(port: int) -> None:
        text = (await fetch(port, "/config/PASSWORD")).text
        assert text == f"3 {image.temporary}/.slightkey: no such file, which has the key of secrets"

    image.run(main)


def test_key_that_is_another(image: Image) -> None:
    put_key(image, "other")
    image.slightfile(slightfile({"PASSWORD": "hunter2"}))

    async def main(port: int) -> None:
        text = (await fetch(port, "/config/PASSWORD")).text
        assert text.startswith("1 secret 'PASSWORD' cannot be decrypted by ")

    image.run(main)


def test_key_that_is_a_fifo(image: Image) -> None:
    image.temporary.mkdir()
    os.mkfifo(image.temporary / ".slightkey")
    image.slightfile(slightfile({"PASSWORD": "hunter2"}))

    async def main(port: int) -> None:
        answer = await fetch(port, "/config/PASSWORD")
        assert (answer.status, answer.text[:2]) == (418, "1 ")

    image.run(main)


def test_config_of_another_capability_is_a_secret(image: Image) -> None:
    put_key(image)
    image.slightfile(
        slightfile(
            {"REDIS": "no address"},
            '[[capability]]\nresource = "keyvalue.redis"\nname = "*"\n[capability.configs]\n'
            'REDIS_ADDRESS = "${usersecrets.REDIS}"\n',
        )
    )

    async def main(port: int) -> None:
        text = (await fetch(port, "/kv/store")).text
        assert text.startswith("7 config 'REDIS_ADDRESS': the Redis address is not of the form")

    image.run(main)


def test_setting_a_secret_again_takes_no_more_room() -> None:
    backend = usersecrets.Backend(AppContext(parse_slightfile('specversion = "0.2"'), {}, None))

    async def main() -> None:
        for _ in range(10):
            await backend.set("A", b"x" * 900_000)
        assert await backend.get("A") == b"x" * 900_000

    asyncio.run(main())
