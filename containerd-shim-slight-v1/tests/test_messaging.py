"""``messaging``, called by guests, and what backends have in common."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from containerd_shim_slight_v1.capabilities.context import AppContext, BackendContext
from containerd_shim_slight_v1.capabilities.messaging import base, filesystem
from containerd_shim_slight_v1.capabilities.messaging.base import (
    MessagingError,
    PayloadTooLargeError,
    TopicNotFoundError,
)
from containerd_shim_slight_v1.capabilities.messaging.filesystem import Backend
from containerd_shim_slight_v1.slightfile.reader import parse_slightfile
from messaging_guest import Guest

Image = Any  # of conftest.py
HTTP = 'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "api"\n'
FILES = f'{HTTP}[[capability]]\nresource = "messaging.filesystem"\nname = "box"\n'


@pytest.fixture
def files(image: Image) -> Image:
    """An app with ``messaging.filesystem``."""
    image.slightfile(FILES)
    image.guest("messaging")
    return image


# By a guest


@pytest.mark.parametrize("topic", ["topic", "a/b", "a-b", "..", ".hidden", "100%", "größe", "a+b"])
def test_each_subscription_gets_every_message_in_order(files: Image, topic: str) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        await guest.publish(topic, b"before")
        tokens = [await guest.subscribe(topic) for _ in range(2)]
        assert tokens[0] != tokens[1]
        await guest.publish(topic, b"\0two\nlines\xff")
        await guest.publish("other", b"not this one")
        for token in tokens:
            assert await guest.receive(token) == b"before"
            assert await guest.receive(token) == b"\0two\nlines\xff"

    files.run(main)
    assert {path.name for path in files.temporary.iterdir()} == {"box"}


def test_nothing_there_is_an_empty_message(files: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "SHORT_WAIT_SECONDS", 0.01)

    async def main(port: int) -> None:
        guest = Guest(port)
        assert await guest.receive(await guest.subscribe("topic")) == b""
        assert await guest.ask("GET", "queue", "box") == (200, b"")

    files.run(main)


def test_who_waits_is_woken(files: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "SHORT_WAIT_SECONDS", 20)

    async def main(port: int) -> None:
        guest = Guest(port)
        tokens = [await guest.subscribe("topic") for _ in range(20)]
        waiting = [asyncio.create_task(guest.receive(token)) for token in tokens]
        await guest.publish("topic", b"message")
        async with asyncio.timeout(10):
            assert await asyncio.gather(*waiting) == [b"message"] * 20

    files.run(main)


@pytest.mark.parametrize(
    "token", ["nothing", "..", "topic", "topic+" + "0" * 32, "a/b+" + "0" * 32]
)
def test_unknown_subscription(files: Image, token: str) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        await guest.publish("topic", b"message")
        answer = await guest.ask("GET", "subscription", "box", token)
        assert answer == (418, b"1 there is no such subscription")

    files.run(main)


def test_topic_that_cannot_be(files: Image) -> None:
    async def main(port: int) -> None:
        for method in ("PUT", "POST"):
            status, text = await Guest(port).ask(method, "topic", "box", "x" * 223)
            assert (status, text[:2]) == (418, b"1 ")

    files.run(main)


def test_name_that_the_slightfile_does_not_have(files: Image) -> None:
    async def main(port: int) -> None:
        text = b"slightfile.toml has no messaging capability named 'mine'"
        guest = Guest(port)
        for method in ("PUT", "POST"):
            assert await guest.ask(method, "topic", "mine", "topic") == (418, b"7 " + text)
        assert await guest.ask("PUT", "queue", "mine") == (418, b"0 " + text)
        assert await guest.ask("PUT", "old", "mine", "topic") == (418, b"0 " + text)

    files.run(main)


def test_guests_of_the_older_generation(files: Image) -> None:
    async def main(port: int) -> None:
        guest = Guest(port)
        assert await guest.ask("PUT", "old", "box", "topic", body=b"one") == (200, b"one")
        assert await guest.ask("PUT", "old", "box", "topic") == (
            418,
            b"0 nothing was subscribed to",
        )
        for message in (b"first", b"second"):
            assert await guest.ask("PUT", "queue", "box", body=message) == (204, b"")
        for message in (b"first", b"second"):
            assert await guest.ask("GET", "queue", "box") == (200, message)

    files.run(main)
    names = {path.name for path in (files.temporary / "box").iterdir()}
    assert names == {"topic", ".queue", ".queue+"}  # its subscription ended with the guest


# What an image may have there


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """The directory named ``box``."""
    directory = tmp_path / "tmp" / "box"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def backend(box: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    monkeypatch.setattr(filesystem, "SHORT_WAIT_SECONDS", 0.01)
    file = parse_slightfile(FILES)
    app = AppContext(file, {"TMPDIR": str(box.parent)}, None)
    return Backend(BackendContext(app, file.capabilities[1], {}))


def test_link_is_not_followed(backend: Backend, box: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(struct.pack("<I", 6) + b"secret")
    (box / "topic").symlink_to(secret)
    (box / f"other+{'0' * 32}").symlink_to(secret)
    token = asyncio.run(backend.subscribe("box", "topic"))
    calls = (
        backend.receive("box", token),
        backend.receive("box", f"other+{'0' * 32}"),
        backend.publish("box", "topic", b"x"),
    )
    for call in calls:
        with pytest.raises(MessagingError, match="a symbolic link is on the way"):
            asyncio.run(call)


def test_what_is_no_regular_file_is_no_topic(backend: Backend, box: Path) -> None:
    os.mkfifo(box / "fifo")
    (box / "directory").mkdir()
    for topic in ("fifo", "directory"):
        token = asyncio.run(backend.subscribe("box", topic))
        for call in (backend.publish("box", topic, b""), backend.receive("box", token)):
            with pytest.raises(MessagingError):
                asyncio.run(call)


@pytest.mark.parametrize(
    "content", [b"\xff" * 8, struct.pack("<I", 17 << 20), struct.pack("<Q", 1 << 63)]
)
def test_file_with_something_else(backend: Backend, box: Path, content: bytes) -> None:
    token = asyncio.run(backend.subscribe("box", "topic"))
    for name in ("topic", token):
        (box / name).write_bytes(content)
    try:
        assert asyncio.run(backend.receive("box", token)) == b""
    except MessagingError as exc:
        assert "does not hold" in str(exc)  # noqa: PT017  either is right


def test_message_that_is_not_complete_is_not_there_yet(backend: Backend, box: Path) -> None:
    async def main() -> None:
        token = await backend.subscribe("box", "topic")
        message = struct.pack("<I", 3) + b"abc"
        for size in range(len(message)):
            (box / "topic").write_bytes(message[:size])
            assert await backend.receive("box", token) == b""
        (box / "topic").write_bytes(message)
        assert await backend.receive("box", token) == b"abc"

    asyncio.run(main())


def test_too_large_a_message(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (
        backend.publish("box", "t", bytes(17 << 20)),
        backend.send("box", bytes(17 << 20)),
    ):
        with pytest.raises(PayloadTooLargeError, match="17825792 bytes is larger than 16777216"):
            asyncio.run(call)


@pytest.mark.parametrize("name", ["..", ".", "a/../..", "/etc"])
def test_name_that_is_no_directory_of_its_own(backend: Backend, name: str) -> None:
    with pytest.raises(MessagingError, match="cannot be the name of a directory"):
        asyncio.run(backend.publish(name, "topic", b""))


def test_errors_have_the_cases_of_the_interface() -> None:
    assert base.ConnectionLostError.case == "connection-lost"
    assert TopicNotFoundError.case == "queue-or-topic-not-found"
