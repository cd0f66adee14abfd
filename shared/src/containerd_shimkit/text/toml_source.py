"""TOML text together with where each of its keys stands, so that an error can point at it.

``tomllib`` reads the values and says nothing of their places. ``scan_positions`` goes over the same
text and notes the place of each table header, key and array element. What it says of text that
``tomllib`` does not accept means nothing: it leaves out every check but that of depth.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, TypeAlias

from containerd_shimkit.errors import ManifestError

MANIFEST_MAX_CHARS = 1 << 20  # a manifest is written by hand; 1 Mi characters is far beyond one

MAX_DEPTH = 64  # keys and indexes in one another; each is kept with all that are around it

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys, and indexes for arrays of either kind: ``("component", 0, "trigger", "route")``."""


class TooDeepError(Exception):
    """Arrays or tables are nested more deeply than is read."""

    def __init__(self) -> None:
        super().__init__("arrays or tables are nested too deeply")


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a text; both count from 1, columns in characters."""

    line: int
    column: int


@dataclass(frozen=True)
class ParsedFile:
    """A parsed file that remembers its text."""

    file: str
    """The name used in messages; nothing is opened."""
    data: dict[str, Any]
    positions: dict[KeyPath, Position]

    def where(self, path: KeyPath) -> str:
        """Return ``file:line:column`` of ``path``, or of the innermost table around it."""
        while path and path not in self.positions:
            path = path[:-1]
        at = self.positions.get(path, Position(1, 1))
        return f"{self.file}:{at.line}:{at.column}"


def load_toml(text: str, file: str) -> ParsedFile:
    """Parse ``text``; raises ManifestError with file, line and column if it is no TOML."""
    if len(text) > MANIFEST_MAX_CHARS:
        raise ManifestError(
            f"{file}: {len(text)} characters exceed the limit of {MANIFEST_MAX_CHARS}"
        )
    try:
        positions = _scan_first(text)
        data = tomllib.loads(text)
        return ParsedFile(file, data, scan_positions(text) if positions is None else positions)
    except TooDeepError as exc:
        raise ManifestError(f"{file}: {exc}") from None
    except tomllib.TOMLDecodeError as exc:
        raise ManifestError(_syntax_message(str(exc), text, file)) from None
    except ValueError as exc:  # an integer of more digits than Python converts
        raise ManifestError(f"{file}: {exc}") from None
    except RecursionError:
        raise ManifestError(f"{file}: arrays or tables are nested too deeply") from None


def _scan_first(text: str) -> dict[KeyPath, Position] | None:
    """Return what ``scan_positions`` does, None if the text is no TOML. Raises TooDeepError.

    What ``tomllib`` takes for a key of many parts grows with their square.
    """
    try:
        return scan_positions(text)
    except TooDeepError:
        raise
    except Exception:
        return None  # tomllib says what is wrong, if anything is


def _syntax_message(message: str, text: str, file: str) -> str:
    """Turn tomllib's ``reason (at line L, column C)`` into ``file:L:C: reason``."""
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.S)
    if found is None:
        return f"{file}: invalid TOML: {message}"
    reason, line, column = found.groups()
    if line is None:
        lines = text.split("\n")
        line, column = len(lines), len(lines[-1]) + 1
    return f"{file}:{line}:{column}: invalid TOML: {reason[:1].lower()}{reason[1:]}"


def scan_positions(text: str) -> dict[KeyPath, Position]:
    """Return where each key, table and array element of ``text`` begins.

    text: valid TOML.  A table that has a header is at its ``[``; one that exists only by a dotted
    key or by a header below it is at its first mention; an array element is at its value.
    Raises TooDeepError.
    """
    text = text.replace("\r\n", "\n")  # as tomllib does, so that its columns and ours agree
    starts = [0, *(found.end() for found in re.finditer("\n", text))]

    def position(offset: int) -> Position:
        line = bisect_right(starts, offset)
        return Position(line, offset - starts[line - 1] + 1)

    return {path: position(offset) for path, offset in _Scanner(text).scan().items()}


_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BASIC = re.compile(r'"(?:[^"\\]|\\.)*"')
_LITERAL = re.compile(r"'[^']*'")
# Possessive quantifiers would do less work, but Python 3.11.2 (Debian 12) matches them wrongly.
_MULTI_BASIC = re.compile(r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}', re.S)
_MULTI_LITERAL = re.compile(r"'''(?:[^']|'(?!''))*'{3,5}")
_PLAIN = re.compile(r"[^,\]}#\n]*")  # numbers, booleans, dates: a date may hold a space


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._offsets: dict[KeyPath, int] = {}
        self._lengths: dict[KeyPath, int] = {}  # of the arrays of tables met so far

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)
        return self._offsets

    def _skip(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        assert found is not None, "tomllib accepted this text"
        self._at = found.end()
        return found.group()

    def _header(self) -> KeyPath:
        start = self._at
        brackets = 2 if self._text.startswith("[[", start) else 1
        self._at += brackets
        *outer, (last, _) = self._keys()
        self._at += brackets
        path: KeyPath = ()
        for name, offset in outer:
            path = self._last_element((*path, name))
            self._offsets.setdefault(path, offset)
        path = (*path, last)
        if brackets == 2:
            self._offsets.setdefault(path, start)
            index = self._lengths.get(path, 0)
            self._lengths[path] = index + 1
            path = (*path, index)
        self._offsets[path] = start
        return path

    def _last_element(self, path: KeyPath) -> KeyPath:
        """A header below an array of tables means the array's newest table."""
        return (*path, self._lengths[path] - 1) if path in self._lengths else path

    def _pair(self, table: KeyPath) -> None:
        path = table
        for name, offset in self._keys():
            path = (*path, name)
            self._offsets.setdefault(path, offset)
        self._at += 1  # =
        self._skip(_SPACE)
        self._value(path)

    def _keys(self) -> list[tuple[str, int]]:
        """Read a dotted key and the space around it; each part with its offset."""
        keys = []
        while True:
            self._skip(_SPACE)
            start = self._at
            keys.append((self._key(), start))
            self._skip(_SPACE)
            if self._text[self._at] != ".":
                return keys
            if len(keys) == MAX_DEPTH:
                raise TooDeepError
            self._at += 1

    def _key(self) -> str:
        match self._text[self._at]:
            case '"':
                quoted = self._skip(_BASIC)
                key: str = tomllib.loads(f"key = {quoted}")["key"]
                return key
            case "'":
                return self._skip(_LITERAL)[1:-1]
            case _:
                return self._skip(_BARE_KEY)

    def _value(self, path: KeyPath) -> None:
        if len(path) > MAX_DEPTH:
            raise TooDeepError
        text, at = self._text, self._at
        if text.startswith('"""', at):
            self._skip(_MULTI_BASIC)
        elif text.startswith("'''", at):
            self._skip(_MULTI_LITERAL)
        elif text[at] == '"':
            self._skip(_BASIC)
        elif text[at] == "'":
            self._skip(_LITERAL)
        elif text[at] == "[":
            self._array(path)
        elif text[at] == "{":
            self._inline_table(path)
        else:
            self._skip(_PLAIN)

    def _array(self, path: KeyPath) -> None:
        self._at += 1  # [
        index = 0
        while self._another_item("]"):
            self._offsets[(*path, index)] = self._at
            self._value((*path, index))
            if self._at == self._offsets[(*path, index)]:
                raise ValueError("the text is no TOML")
            index += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1  # {
        while self._another_item("}"):
            self._pair(path)

    def _another_item(self, close: str) -> bool:
        """Go to the next item, or past ``close`` if there is none."""
        self._skip(_BLANK)
        if self._text[self._at] == ",":
            self._at += 1
            self._skip(_BLANK)
        if self._text[self._at] != close:
            return True
        self._at += 1
        return False
