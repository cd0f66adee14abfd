"""Pictures of terminals: they are XML, hold the text as it is, and refer to nothing elsewhere."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import picture
import pytest

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    """Return the lines of a picture, below its title."""
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")][1:]


def test_text_is_in_it_as_it_is() -> None:
    svg = picture.draw("$ curl 'a?b&c'\n<p>  two  spaces</p>\n\n# ls\n\ta\n", "A <title>")
    assert texts(svg) == ["$", "curl 'a?b&c'", "<p>  two  spaces</p>", "#", "ls", "        a"]


def test_nothing_is_loaded_from_elsewhere() -> None:
    svg = picture.draw("$ ls\n", "t").replace("http://www.w3.org/2000/svg", "")
    assert not any(word in svg for word in ("http", "url(", "@import", "<image", "<script"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("x" * 141, "longer than 140", id="wide"),
        pytest.param("x\n" * 61, "more than 60", id="long"),
        pytest.param("\x1b[31mred", "cannot be printed", id="colours"),
    ],
)
def test_unreadable_text_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        picture.draw(text, "t")


def test_command_writes_what_it_is_given(tmp_path: Path) -> None:
    text, output = tmp_path / "text", tmp_path / "out.svg"
    text.write_text("$ true\n")
    assert picture.main(["--title", "t", "--text", str(text), str(output)]) == 0
    assert texts(output.read_text()) == ["$", "true"]
    text.write_text("\x00")
    assert picture.main(["--title", "t", "--text", str(text), str(output)]) == 1
