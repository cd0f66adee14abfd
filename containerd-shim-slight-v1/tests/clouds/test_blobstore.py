"""``blob-store`` by guests, with Azure's blobs and S3."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from containerd_shim_slight_v1.capabilities import listing
from containerd_shim_slight_v1.capabilities.blobstore import streams
from containerd_shim_slight_v1.capabilities.blobstore.base import BlobBackend, BlobError, ObjectInfo
from containerd_shim_slight_v1.capabilities.blobstore.streams import (
    OpenContainer,
    ReadStream,
    WriteStream,
)
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import fetch
from ended import use_without_imports

Image = Any  # of conftest.py
Cloud = Any

LARGE = bytes(range(256)) * 40_000  # two parts


@pytest.fixture(params=["azure", "s3"])
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    """With an empty container ``store``."""
    found = request.getfixturevalue(request.param)
    if request.param == "azure":
        found = found.of("blobstore.azblob")
    yield found

    async def clear(backend: BlobBackend) -> None:
        await backend.delete("store", await backend.list_objects("store"))

    found.call(clear)


@pytest.fixture
def app(image: Image, cloud: Cloud) -> Image:
    image.slightfile(cloud.slightfile)
    image.guest("blobs")
    return image


async def do(
    port: int, operation: str, name: str = "name", body: bytes = b"", container: str = "store"
) -> tuple[int, bytes]:
    path = f"/{operation}/{container}/{quote(name, safe='')}/"
    answer = await fetch(port, path, method="PUT" if body else "GET", body=body)
    return answer.status, answer.body


@pytest.mark.parametrize("body", [b"", b"ab", LARGE], ids=["empty", "small", "parts"])
@pytest.mark.parametrize("end", ["put", "drop", "leave"])
def test_object_is_written_and_read(app: Image, end: str, body: bytes) -> None:
    async def main(port: int) -> None:
        answer = await do(port, end, body=body)
        assert answer == (204, b"")
        if not body and end != "put":  # nothing was written
            assert await do(port, "has") == (200, b"0")
            return
        assert await do(port, "get") == (200, body)
        if body is not LARGE:
            assert await do(port, "pieces") == (200, body)
        assert await do(port, "has") == (200, b"1")
        created, size = map(int, (await do(port, "info"))[1].split())
        assert size == len(body)
        assert abs(time.time() - created) < 3600

    app.run(main)


@pytest.mark.parametrize("body", [b"ab", LARGE], ids=["small", "parts"])
@pytest.mark.parametrize(("end", "status"), [("trap", 500), ("forever", 504)])
def test_object_of_a_guest_that_fails_stays_as_it_was(
    app: Image, end: str, status: int, body: bytes
) -> None:
    async def main(port: int) -> None:
        assert await do(port, "put", body=b"whole") == (204, b"")
        assert (await do(port, end, body=body))[0] == status
        assert await do(port, "get") == (200, b"whole")

    app.run(main, SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS="2")


def test_large_object_is_read_in_small_pieces(app: Image) -> None:
    async def main(port: int) -> None:
        body = bytes(range(250)) * 4_000
        assert await do(port, "put", body=body) == (204, b"")
        assert await do(port, "pieces") == (200, body)

    app.run(main)


def test_guest_sees_what_it_has_not_closed(app: Image) -> None:
    async def main(port: int) -> None:
        assert await do(port, "reread", body=b"content") == (200, b"content")
        assert await do(port, "reread", body=b"other") == (200, b"other")

    app.run(main)


@pytest.mark.parametrize(
    "name", ["a/b", "größe", "a b", "100%", "?a=b&c#d", "+", "~*'()", "<&>", "a//b", "a+b c"]
)
def test_name_of_an_object(app: Image, name: str) -> None:
    async def main(port: int) -> None:
        assert await do(port, "put", name, b"content") == (204, b"")
        assert await do(port, "get", name) == (200, b"content")
        assert await do(port, "list") == (200, f"{name}\n".encode())
        for _ in range(2):  # to delete what is not there is no error
            assert await do(port, "delete", name) == (204, b"")
        assert await do(port, "list") == (200, b"")

    app.run(main)


def test_objects_are_deleted_together(app: Image) -> None:
    async def main(port: int) -> None:
        for name in ("a", "b", "c&d", "e"):
            assert (await do(port, "put", name, b"x"))[0] == 204
        assert await do(port, "delete-all", body=b"a\nc&d\nnothing") == (204, b"")
        assert sorted((await do(port, "list"))[1].split()) == [b"b", b"e"]
        assert await do(port, "clear") == (204, b"")
        assert await do(port, "list") == (200, b"")

    app.run(main)


def test_container(app: Image) -> None:
    async def main(port: int) -> None:
        status, created = await do(port, "container")
        assert status == 200
        assert abs(time.time() - int(created)) < 3600
        status, message = await do(port, "container", container="other")
        assert (status, b"there is no bucket" in message or b"no container" in message) == (
            418,
            True,
        )

    app.run(main)


def test_object_that_is_not_there(app: Image) -> None:
    async def main(port: int) -> None:
        for operation in ("get", "info"):
            assert await do(port, operation) == (418, b"there is no object 'name'")
        assert await do(port, "has") == (200, b"0")

    app.run(main)


@pytest.mark.parametrize("name", ["..", "a/../../b", "x" * 1500])
def test_name_that_cannot_be(app: Image, name: str) -> None:
    async def main(port: int) -> None:
        for operation in ("put", "get"):
            assert (await do(port, operation, name, b"x" if operation == "put" else b""))[0] == 418

    app.run(main)


def test_stream_that_is_closed(app: Image) -> None:
    async def main(port: int) -> None:
        message = b"object 'name': its stream is closed"
        assert await do(port, "closed", body=b"body") == (418, message)
        assert await do(port, "get") == (200, b"body")

    app.run(main)


def test_many_streams(app: Image) -> None:
    async def main(port: int) -> None:
        assert await do(port, "many") == (418, b"more than 8 objects are written at once")

    app.run(main)


@pytest.mark.parametrize(("limit", "most"), [("MAX_NAMES", 2), ("MAX_NAMES_BYTES", 5)])
def test_more_objects_than_an_answer_has(
    app: Image, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(listing, limit, most)

    async def main(port: int) -> None:
        for name in ("ab", "cd", "ef"):
            assert (await do(port, "put", name, b"x"))[0] == 204
        status, text = await do(port, "list")
        assert (status, text) == (
            418,
            f"container 'store' has more than {listing.MAX_NAMES} names,"
            f" or {listing.MAX_NAMES_BYTES} bytes of them".encode(),
        )

    app.run(main)
    monkeypatch.undo()


def test_object_that_changes_while_it_is_read(cloud: Cloud) -> None:
    async def main(backend: BlobBackend) -> None:
        await backend.write("store", "name", b"first")
        stream = ReadStream(backend, await backend.object_info("store", "name"))
        await backend.write("store", "name", b"other")
        with pytest.raises(BlobError, match="has changed since it was opened"):
            await stream.read(10)

    cloud.call(main)


def test_upload_that_fails_leaves_nothing(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streams, "MAX_PARTS", 1)

    async def main(backend: BlobBackend) -> None:
        stream = WriteStream(OpenContainer(backend, "store"), "name")
        with pytest.raises(BlobError, match="has more than"):
            await stream.write(bytes(17 << 20))
        with pytest.raises(BlobError, match="its stream is closed"):
            await stream.write(b"more")
        await stream.close()
        assert await backend.list_objects("store") == []

    cloud.call(main)
    assert caplog.text == ""


def test_server_that_is_away(image: Image, cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    host, port = free_address()
    url = f"http://{host}:{port}"
    away = cloud.but(AZURE_STORAGE_ENDPOINT=url, AWS_ENDPOINT_URL=url)

    async def main(backend: BlobBackend) -> None:
        info = ObjectInfo("name", "store", 0, 1, "*")
        for make in (
            lambda: backend.open("store"),
            lambda: backend.container_info("store"),
            lambda: backend.object_info("store", "name"),
            lambda: backend.list_objects("store"),
            lambda: backend.read(info, 0, 1),
            lambda: backend.write("store", "name", b""),
            lambda: backend.delete("store", ["name", "other"]),
        ):
            with pytest.raises(BlobError, match=f"{url} cannot be asked: "):
                await make()
        stream = WriteStream(OpenContainer(backend, "store"), "name")
        await stream.write(b"x")
        await stream.close()

    away.call(main)
    assert f"object 'name' is not stored: {url} cannot be asked: " in caplog.text


def test_credentials_that_are_wrong(cloud: Cloud) -> None:
    wrong = cloud.but(AZURE_STORAGE_KEY="c2VjcmV0", AWS_SECRET_ACCESS_KEY="secret")

    async def main(backend: BlobBackend) -> None:
        with pytest.raises(BlobError, match="answers 403") as caught:
            await backend.list_objects("store")
        assert "secret" not in str(caught.value)

    wrong.call(main)


def test_requests_at_once(app: Image) -> None:
    async def main(port: int) -> None:
        answers = await asyncio.gather(*(do(port, "put", f"n{n}", b"content") for n in range(30)))
        assert set(answers) == {(204, b"")}

    app.run(main)


def test_where_nothing_can_be_imported(cloud: Cloud) -> None:
    body = """\
blobs = services.backend("blobstore", "store")
await blobs.write("store", "ended", b"value")
upload = await blobs.begin("store", "ended2")
await upload.add(bytes(6 << 20))
await upload.finish()
info = await blobs.object_info("store", "ended")
await blobs.container_info("store")
names = set(await blobs.list_objects("store"))
await blobs.delete("store", ["ended2"])
return [(await blobs.read(info, 1, 3)).decode(), {"ended", "ended2"} <= names]
"""
    found = asyncio.run(use_without_imports(cloud.slightfile, body))
    assert found == ["alu", True]
