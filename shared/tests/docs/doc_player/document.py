"""Documents as a reader follows them: files to write, commands to run, and what these print.

- A paragraph that begins with a path in backticks says which file the block behind it is.
- In a ``console`` block a line that begins with ``#`` or ``$`` and a space is a command, of root's
  or of anybody; it goes on behind a backslash at the end of a line. What follows it, up to the next
  command, is what it prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)
_COMMENT = re.compile(r"\s{2,}# .*$")
_PATH = re.compile(r"`(?P<path>[\w./\[\]-]+(?:\.\w+|/Dockerfile))`")
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(?P<text>.+)$", re.M)


@dataclass(frozen=True)
class Block:
    """A block of code."""

    kind: str
    """What is behind the fence; empty if nothing is."""
    text: str
    line: int
    path: str
    """The file that it is; empty if it is none."""


@dataclass(frozen=True)
class Command:
    """A command of a ``console`` block."""

    text: str
    printed: tuple[str, ...]
    """Lines that it prints; none if the document shows none."""
    line: int


def blocks(document: str) -> Iterator[Block]:
    """Yield the blocks of a document, in order."""
    for found in _FENCE.finditer(document):
        indent = len(found["indent"])
        text = "".join(line[indent:] for line in found["text"].splitlines(keepends=True))
        before = document[: found.start()].rstrip().rpartition("\n\n")[2].strip()
        path = _PATH.match(before)
        line = document.count("\n", 0, found.start()) + 1
        yield Block(found["kind"], text, line, path["path"] if path else "")


def commands(block: Block) -> Iterator[Command]:
    """Yield the commands of a ``console`` block. Raises ValueError for lines before the first."""
    current: list[str] = []
    printed: list[str] = []
    start = 0
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if current and current[-1].endswith("\\"):
            current.append(line)
        elif line.startswith(("# ", "$ ")):
            if current:
                yield Command("\n".join(current), tuple(printed), start)
            current, printed, start = [_COMMENT.sub("", line[2:])], [], number
        elif not current:
            raise ValueError(f"line {number} is neither a command nor printed by one: {line}")
        else:
            printed.append(line)
    if current:
        yield Command("\n".join(current), tuple(printed), start)


def links(document: str) -> set[str]:
    """Return what a document links to, without what is in blocks."""
    return {found["target"] for found in _LINK.finditer(_FENCE.sub("", document))}


def anchors(document: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = (found["text"] for found in _HEADING.finditer(_FENCE.sub("", document)))
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).lower()).replace(
            " ", "-"
        )
        for text in headings
    }


def documents(root: Path) -> list[Path]:
    """Return all documents of a working copy."""
    found = root.rglob("*.md")
    hidden = {".venv", ".cache", ".git", "dist", "build", "node_modules", ".run", ".pytest_cache"}
    return sorted(path for path in found if not hidden & set(path.relative_to(root).parts))
