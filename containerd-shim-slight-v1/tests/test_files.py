"""What a guest sees of files: the image's and the volumes', to be read."""

from __future__ import annotations

from typing import Any

import pytest

from containerd_shimkit.testing.http import fetch

HTTP = 'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "api"\n'


@pytest.fixture
def files(image: Any) -> Any:
    image.slightfile(HTTP)
    image.guest("files")
    (image.root / "text").mkdir()
    (image.root / "text" / "hello.txt").write_text("hello")
    (image.root / "text" / "link").symlink_to("hello.txt")
    (image.root / "text" / "out").symlink_to("/etc/hostname")
    (image.root / "text" / "up").symlink_to("../../../../etc/hostname")
    return image


@pytest.mark.parametrize("path", ["text/hello.txt", "./text/hello.txt", "/text/link"])
def test_files_of_the_image_are_read(files: Any, path: str) -> None:
    async def main(port: int) -> None:
        answer = await fetch(port, f"/{path}")
        assert (answer.status, answer.text) == (200, "hello")

    files.run(main)


@pytest.mark.parametrize(
    "path", ["text/none", "text/out", "text/up", "../../etc/hostname", "text/../../stdout"]
)
def test_nothing_else_is(files: Any, path: str) -> None:
    async def main(port: int) -> None:
        assert (await fetch(port, f"/{path}")).status in (403, 404)

    files.run(main)


@pytest.mark.parametrize("path", ["new", "text/hello.txt"])
def test_nothing_is_written(files: Any, path: str) -> None:
    async def main(port: int) -> None:
        assert (await fetch(port, f"/{path}", method="PUT")).status == 403

    files.run(main)
    assert not (files.root / "new").exists()
    assert (files.root / "text" / "hello.txt").read_text() == "hello"
