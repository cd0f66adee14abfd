"""The README's first screen says what this is, shows it, and leads to every page."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from doc_player.document import documents, links

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
PICTURE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<target>[^)\s]+)\)")
LINES = 30
"""Of a screen, at the usual size of text."""


def test_first_screen_has_the_two_commands_and_a_picture() -> None:
    screen = "\n".join(README.splitlines()[:LINES])
    assert "# make run_spin" in screen
    assert "# make test" in screen
    assert "containerd-shim-wws-v1" in screen
    (picture,) = PICTURE.finditer(screen)
    assert "Hello world from Spin!" in picture["alt"], "for who cannot see it"
    svg = (ROOT / picture["target"]).read_bytes()
    assert len(svg) < 20_000
    assert "Hello world from Spin!" in "".join(ElementTree.fromstring(svg).itertext())


def test_every_page_is_linked() -> None:
    linked = {target.partition("#")[0] for target in links(README)}
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages - linked == set()


@pytest.mark.parametrize(
    "document", documents(ROOT), ids=[str(path.relative_to(ROOT)) for path in documents(ROOT)]
)
def test_pictures_are_there_and_described(document: Path) -> None:
    for picture in PICTURE.finditer(document.read_text()):
        assert (document.parent / picture["target"]).is_file(), picture["target"]
        assert picture["alt"], f"{picture['target']} has no description"
