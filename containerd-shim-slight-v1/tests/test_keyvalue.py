"""``keyvalue`` and ``keyvalue.filesystem``, called by guests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from containerd_shim_slight_v1.capabilities import listing
from containerd_shim_slight_v1.capabilities.context import AppContext, BackendContext
from containerd_shim_slight_v1.capabilities.keyvalue import filesystem
from containerd_shim_slight_v1.capabilities.keyvalue.base import (
    InvalidKeyError,
    InvalidValueError,
    KeyNotFoundError,
    StoreIoError,
)
from containerd_shim_slight_v1.capabilities.keyvalue.filesystem import Backend
from containerd_shim_slight_v1.slightfile.reader import parse_slightfile
from containerd_shimkit.testing.http import fetch

Image = Any  # of conftest.py


async def put(port: int, key: str, value: bytes, store: str = "store") -> int:
    path = f"/kv/{quote(store, safe='')}/{quote(key, safe='')}/"
    return (await fetch(port, path, method="PUT", body=value)).status


async def ask(port: int, method: str, key: str | None, store: str = "store") -> tuple[int, bytes]:
    rest = "" if key is None else f"/{quote(key, safe='')}/"
    answer = await fetch(port, f"/kv/{quote(store, safe='')}{rest}", method=method)
    return answer.status, answer.body


# By a guest


@pytest.mark.parametrize(
    "key", ["key", "a/b", "/", "..", "../../etc/passwd", ".hidden", "%2F", "100%", "größe", "a b"]
)
def test_key_is_set_read_listed_and_removed(image: Image, key: str) -> None:
    async def main(port: int) -> None:
        assert await put(port, key, b"one") == 204
        assert await put(port, key, b"\0\xff" * 50_000) == 204
        assert await ask(port, "GET", key) == (200, b"\0\xff" * 50_000)
        assert await ask(port, "GET", None) == (200, f"{key}\n".encode())
        assert await ask(port, "DELETE", key) == (204, b"")
        assert await ask(port, "GET", None) == (200, b"")

    image.run(main)
    assert {path.name for path in image.temporary.iterdir()} == {"store"}


def test_plain_key_is_a_file_of_its_name(image: Image) -> None:
    async def main(port: int) -> None:
        assert await put(port, "key", b"") == 204
        assert await ask(port, "GET", "key") == (200, b"")

    image.run(main)
    assert (image.temporary / "store" / "key").read_bytes() == b""


def test_missing_key(image: Image) -> None:
    async def main(port: int) -> None:
        for method in ("GET", "DELETE"):
            assert await ask(port, method, "nothing") == (418, b"0 there is no key 'nothing'")

    image.run(main)


@pytest.mark.parametrize("key", ["", "x" * 256, "ü" * 128])
def test_key_that_cannot_be(image: Image, key: str) -> None:
    async def main(port: int) -> None:
        path = f"/kv/store/{quote(key)}/"
        for method in ("GET", "PUT", "DELETE"):
            answer = await fetch(port, path, method=method, body=b"")
            assert (answer.status, answer.body[:2]) == (418, b"1 ")

    image.run(main)


def test_stores_are_apart(image: Image) -> None:
    async def main(port: int) -> None:
        assert await put(port, "key", b"1", "one") == 204
        assert (await ask(port, "GET", "key", "two"))[0] == 418

    image.run(main)


def test_store_that_the_slightfile_does_not_name(
    image: Image, caplog: pytest.LogCaptureFixture
) -> None:
    image.slightfile(
        'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "a"\n'
        '[[capability]]\nresource = "keyvalue.filesystem"\nname = "mine"\n'
    )

    async def main(port: int) -> None:
        message = "slightfile.toml has no keyvalue capability named 'store'"
        assert await ask(port, "GET", "key") == (418, f"7 {message}".encode())
        assert await ask(port, "GET", None, "mine") == (200, b"")

    image.run(main)
    assert "keyvalue.keyvalue::open: slightfile.toml has no keyvalue capability" in caplog.text


@pytest.mark.parametrize("store", ["..", ".", "a/../..", "/etc"])
def test_store_that_is_no_directory_of_its_own(image: Image, store: str) -> None:
    with pytest.raises(Exception, match="cannot be the name of a directory"):
        asyncio.run(backend(image.temporary).open(store))


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ("clone", (200, "ok")),
        ("many", (418, "7 more than 1024 handles at once")),
        ("dropped", (500, "Internal Server Error")),
        ("twice", (500, "Internal Server Error")),
        ("router", (500, "Internal Server Error")),
    ],
)
def test_handles(image: Image, what: str, answer: tuple[int, str]) -> None:
    async def main(port: int) -> None:
        response = await fetch(port, f"/handles/{what}")
        assert (response.status, response.text) == answer

    image.run(main)


# What an image may have there


def backend(directory: Path) -> Backend:
    file = parse_slightfile(
        'specversion = "0.2"\n[[capability]]\nresource = "keyvalue.filesystem"\nname = "*"\n'
    )
    app = AppContext(file, {"TMPDIR": str(directory)}, None)
    return Backend(BackendContext(app, file.capabilities[0], {}))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The directory of the store named ``store``."""
    directory = tmp_path / "tmp" / "store"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def files(store: Path) -> Backend:
    return backend(store.parent)


def test_link_is_not_followed(files: Backend, store: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (store / "key").symlink_to(secret)
    with pytest.raises(StoreIoError, match="a symbolic link is on the way"):
        asyncio.run(files.get("store", "key"))
    asyncio.run(files.set("store", "key", b"mine"))  # in the link's place
    assert secret.read_text() == "secret"
    assert asyncio.run(files.get("store", "key")) == b"mine"


@pytest.mark.parametrize("above", [False, True])
def test_store_that_is_a_link(files: Backend, store: Path, above: bool) -> None:
    link = store.parent if above else store
    link.rename(link.with_name("elsewhere"))
    link.symlink_to(link.with_name("elsewhere"))
    for call in (files.get("store", "k"), files.set("store", "k", b""), files.keys("store")):
        with pytest.raises(StoreIoError, match="store 'store': "):
            asyncio.run(call)


def test_what_is_no_regular_file_is_no_value(files: Backend, store: Path) -> None:
    os.mkfifo(store / "fifo")
    (store / "directory").mkdir()
    assert asyncio.run(files.keys("store")) == []
    for key in ("fifo", "directory"):
        with pytest.raises(StoreIoError):
            asyncio.run(files.get("store", key))
    with pytest.raises(StoreIoError, match="Is a directory"):
        asyncio.run(files.set("store", "directory", b""))
    assert sorted(path.name for path in store.iterdir()) == ["directory", "fifo"]


def test_too_large_a_value(files: Backend, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (store / "key").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StoreIoError, match="1099511627776 bytes, more than"):
        asyncio.run(files.get("store", "key"))
    monkeypatch.setattr(filesystem, "MAX_VALUE_BYTES", 10)
    with pytest.raises(InvalidValueError, match="11 bytes, more than 10"):
        asyncio.run(files.set("store", "key", b"x" * 11))


def test_too_many_keys(files: Backend, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_NAMES", 2)
    for name in ("a", "b"):
        (store / name).touch()
    assert sorted(asyncio.run(files.keys("store"))) == ["a", "b"]
    (store / "c").touch()
    with pytest.raises(StoreIoError, match="store 'store' has more than 2 names"):
        asyncio.run(files.keys("store"))


def test_others_are_served_while_files_are_read(files: Backend, store: Path) -> None:
    """A value or a list is many turns of the loop; who is cut off leaves nothing."""
    for number in range(5000):
        (store / f"{number}").touch()

    async def turns_of(work: Coroutine[Any, Any, Any]) -> int:
        turns, task = 0, asyncio.create_task(work)
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        task.result()
        return turns

    async def main() -> None:
        value = bytes(range(256)) * (1 << 15)
        assert await turns_of(files.keys("store")) > 4
        assert await turns_of(files.set("store", "large", value)) > 6
        assert await turns_of(files.get("store", "large")) > 6
        assert await files.get("store", "large") == value
        setting = asyncio.create_task(files.set("store", "large", bytes(8 << 20)))
        for _ in range(3):
            await asyncio.sleep(0)
        setting.cancel()
        await asyncio.wait((setting,))
        assert setting.cancelled()
        assert await files.get("store", "large") == value

    asyncio.run(main())
    assert len(list(store.iterdir())) == 5001


def test_errors_have_the_cases_of_the_interface() -> None:
    assert (KeyNotFoundError("k").case, InvalidKeyError("").case) == (
        "key-not-found",
        "invalid-key",
    )
