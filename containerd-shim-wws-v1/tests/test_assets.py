"""Static files: which one answers, before or after workers, and how."""

from __future__ import annotations

import os
from typing import Any

import pytest

from containerd_shimkit.testing.http import fetch

Image = Any  # of conftest.py


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/", 200, "index"),
        ("/index.html", 200, "index"),
        ("/a.txt", 200, "a"),
        ("/a.txt/", 200, "a"),
        ("/%61.txt", 200, "a"),
        ("/about", 200, "about"),
        ("/about/", 200, "about"),
        ("/.well-known/x", 200, "known"),
        ("/inside.txt", 200, "a"),
        ("/about.html", 404, ""),
        ("/A.txt", 404, ""),
        ("/empty", 404, ""),
        ("/.hidden", 404, ""),
        ("/outside.txt", 404, ""),
        ("/absolute.txt", 404, ""),
        ("/../secret.txt", 404, ""),
        ("/about/../../secret.txt", 404, ""),
        ("/%2e%2e/secret.txt", 404, ""),
        ("/..%2fsecret.txt", 404, ""),
        ("/a.txt%00", 404, ""),
        ("/about%2findex.html", 404, ""),
        ("/%ff", 404, ""),
        ("/fifo", 404, ""),
        ("/public/a.txt", 404, ""),
        ("/probe", 200, None),
        ("/" + "x" * 5000, 404, ""),
    ],
)
def test_file(image: Image, path: str, status: int, body: str | None) -> None:
    image.worker()
    image.file("secret.txt", "secret")
    for name, content in {
        "index.html": "index",
        "a.txt": "a",
        "about/index.html": "about",
        ".hidden": "hidden",
        ".well-known/x": "known",
        "probe/index.html": "not reached",
    }.items():
        image.file(f"public/{name}", content)
    public = image.root / "public"
    (public / "empty").mkdir()
    (public / "inside.txt").symlink_to("about/../a.txt")
    (public / "outside.txt").symlink_to("../secret.txt")
    (public / "absolute.txt").symlink_to("/etc/passwd")
    os.mkfifo(public / "fifo")

    async def main(port: int) -> None:
        response = await fetch(port, path)
        assert response.status == status
        if body is not None:
            assert response.text == body

    image.run(main)


def test_page_for_what_is_not_there(image: Image) -> None:
    image.file("public/404.html", "<h1>nothing here</h1>")

    async def main(port: int) -> None:
        response = await fetch(port, "/missing")
        assert (response.status, response.text) == (404, "<h1>nothing here</h1>")
        assert response["content-type"] == "text/html; charset=utf-8"

    image.run(main)


def test_file_comes_before_a_variable_route(image: Image) -> None:
    image.worker("[...all].wasm")
    image.file("public/page.txt", "page")

    async def main(port: int) -> None:
        assert (await fetch(port, "/page.txt")).text == "page"
        assert (await fetch(port, "/page.txt", method="POST", body=b"")).text != "page"
        assert (await fetch(port, "/other")).status == 200

    image.run(main)


def test_prefix(image: Image) -> None:
    image.worker("index.wasm")
    image.file("public/page.txt", "page")

    async def main(port: int) -> None:
        assert (await fetch(port, "/app/page.txt")).text == "page"
        assert (await fetch(port, "/app/")).status == 200
        assert (await fetch(port, "/app")).status == 200
        assert (await fetch(port, "/")).status == 404
        assert (await fetch(port, "/page.txt")).status == 404
        assert (await fetch(port, "/apple/page.txt")).status == 404

    image.run(main, WWS_PREFIX="app/")


@pytest.mark.parametrize(
    ("headers", "status", "body", "content_range"),
    [
        ([], 200, b"0123456789", None),
        ([("range", "bytes=2-4")], 206, b"234", "bytes 2-4/10"),
        ([("range", "bytes=7-")], 206, b"789", "bytes 7-9/10"),
        ([("range", "bytes=-3")], 206, b"789", "bytes 7-9/10"),
        ([("range", "bytes=5-99")], 206, b"56789", "bytes 5-9/10"),
        ([("range", "bytes=10-")], 416, b"", "bytes */10"),
        ([("range", "bytes=4-2")], 200, b"0123456789", None),
        ([("range", "bytes=0-1,3-4")], 200, b"0123456789", None),
        ([("range", "lines=1-2")], 200, b"0123456789", None),
        ([("if-none-match", "*")], 304, b"", None),
        ([("if-none-match", '"other"')], 200, b"0123456789", None),
    ],
)
def test_parts_and_conditions(
    image: Image,
    headers: list[tuple[str, str]],
    status: int,
    body: bytes,
    content_range: str | None,
) -> None:
    image.file("public/digits", "0123456789")

    async def main(port: int) -> None:
        response = await fetch(port, "/digits", headers=headers)
        assert (response.status, response.body) == (status, body)
        assert dict(response.headers).get("content-range") == content_range

    image.run(main)


def test_file_is_not_sent_twice(image: Image) -> None:
    image.file("public/a.css", "a {}")

    async def main(port: int) -> None:
        first = await fetch(port, "/a.css")
        assert first["content-type"] == "text/css; charset=utf-8"
        for name, value in (
            ("if-none-match", f'"x", {first["etag"]}'),
            ("if-none-match", f"W/{first['etag']}"),
            ("if-modified-since", first["last-modified"]),
        ):
            assert (await fetch(port, "/a.css", headers=[(name, value)])).status == 304
        response = await fetch(port, "/a.css", method="HEAD")
        assert (response.status, response["content-length"], response.body) == (200, "4", b"")

    image.run(main)


@pytest.mark.parametrize("size", [0, 1, 262_144, 262_145, 3_000_000])
def test_sizes(image: Image, size: int) -> None:
    image.file("public/data", bytes(size))

    async def main(port: int) -> None:
        response = await fetch(port, "/data")
        assert response.body == bytes(size)
        assert response["content-type"] == "application/octet-stream"

    image.run(main)
