"""Draw a terminal as an SVG: commands, and what they printed.

What it draws is text in the form of the documents' ``console`` blocks: a line that begins with
``$`` or ``#`` and a space is a command, every other line is what the one above it printed. It is
read from a file, or from standard input::

    (echo "$ kubectl get pods"; kubectl get pods) \
      | .venv/bin/python shared/tools/picture.py --title "A Wasm pod" docs/pod.svg

and from Python ``draw(text, title)`` returns the SVG. It has no script, no font and no picture of
others; its text can be selected, and its colours follow the reader's light or dark setting.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

MOST_COLUMNS, MOST_LINES = 140, 60
# Pixels. Monospace fonts are 0.6 of their size wide; `textLength` makes it so in any of them.
_FONT, _COLUMN, _LINE, _MARGIN, _BAR = 14, 8.4, 20, 16, 36
_STYLE = """\
.ground { fill: #f6f8fa; stroke: #d0d7de }
.dot { fill: #d0d7de }
text { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 14px; fill: #1f2328; white-space: pre }
.title { fill: #656d76 }
.prompt { fill: #1a7f37; font-weight: bold }
.command { font-weight: bold }
@media (prefers-color-scheme: dark) {
  .ground { fill: #161b22; stroke: #30363d }
  .dot { fill: #30363d }
  text { fill: #e6edf3 }
  .title { fill: #8d96a0 }
  .prompt { fill: #3fb950 }
}"""


def draw(text: str, title: str) -> str:
    """Return the SVG of a terminal. Raises ValueError for text that would not be readable in it."""
    lines = text.rstrip("\n").expandtabs(8).split("\n")
    if len(lines) > MOST_LINES:
        raise ValueError(f"{len(lines)} lines are more than {MOST_LINES}")
    for number, line in enumerate(lines, 1):
        if len(line) > MOST_COLUMNS:
            raise ValueError(f"line {number} is longer than {MOST_COLUMNS} characters: {line}")
        if not line.isprintable():
            raise ValueError(f"line {number} has characters that cannot be printed: {line!r}")
    columns = max(map(len, [*lines, title]))
    width = round(columns * _COLUMN) + 2 * _MARGIN
    height = _BAR + len(lines) * _LINE + _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="ground" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}"'
            ' rx="8"/>',
            *(f'<circle class="dot" cx="{_MARGIN + 5 + 18 * n}" cy="18" r="5"/>' for n in range(3)),
            f'<text class="title" x="{width / 2:g}" y="23" text-anchor="middle">'
            f"{escape(title)}</text>",
            *_texts(lines),
            "</svg>\n",
        ]
    )


def _texts(lines: Sequence[str]) -> Iterator[str]:
    """Yield an element for each line that has anything in it."""
    for number, line in enumerate(lines):
        top = _BAR + number * _LINE + _FONT
        if line.startswith(("$ ", "# ")):
            yield _text("prompt", line[0], _MARGIN, top)
            yield _text("command", line[2:], _MARGIN + 2 * _COLUMN, top)
        elif line:
            yield _text("", line, _MARGIN, top)


def _text(kind: str, text: str, left: float, top: int) -> str:
    length = len(text) * _COLUMN
    return (
        f'<text{f" class={kind!r}" if kind else ""} x="{left:g}" y="{top}"'
        f' textLength="{length:g}" xml:space="preserve">{escape(text)}</text>'
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw a terminal as an SVG.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--title", required=True, help="what stands above it")
    parser.add_argument("--text", type=Path, help="the commands and what they printed; else stdin")
    options = parser.parse_args(arguments)
    try:
        text = options.text.read_text() if options.text else sys.stdin.read()
        options.output.write_text(draw(text, options.title))
    except (OSError, ValueError) as exc:
        print(f"picture: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
