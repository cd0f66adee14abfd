"""JSON text together with where its members stand; the counterpart of ``toml_source``."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from json.decoder import py_scanstring as scanstring  # type: ignore[attr-defined]
from typing import NoReturn

from containerd_shimkit.errors import ManifestError
from containerd_shimkit.text.toml_source import (
    MANIFEST_MAX_CHARS,
    KeyPath,
    ParsedFile,
    Position,
)

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r"[^,\]}\s]*")


def load_json(text: str, file: str) -> ParsedFile:
    """Parse ``text``, an object; raises ManifestError with file, line and column otherwise."""
    if len(text) > MANIFEST_MAX_CHARS:
        raise ManifestError(
            f"{file}: {len(text)} characters exceed the limit of {MANIFEST_MAX_CHARS}"
        )
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
        if not isinstance(data, dict):
            raise ManifestError(f"{file}:1:1: must be an object")
        return ParsedFile(file, data, _Scanner(text).scan())
    except json.JSONDecodeError as exc:
        reason = exc.msg[:1].lower() + exc.msg[1:]
        raise ManifestError(f"{file}:{exc.lineno}:{exc.colno}: invalid JSON: {reason}") from None
    except ValueError as exc:  # NaN, or an integer of more digits than Python converts
        raise ManifestError(f"{file}: invalid JSON: {exc}") from None
    except RecursionError:
        raise ManifestError(f"{file}: arrays or objects are nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


class _Scanner:
    """Goes over text that ``json`` has accepted; members are at their name, elements at theirs."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._starts = [0, *(found.end() for found in re.finditer("\n", text))]
        self._positions: dict[KeyPath, Position] = {}

    def scan(self) -> dict[KeyPath, Position]:
        self._space()
        self._value(())
        return self._positions

    def _space(self) -> None:
        self._at = _end(_SPACE, self._text, self._at)

    def _note(self, path: KeyPath) -> None:
        line = bisect_right(self._starts, self._at)
        self._positions[path] = Position(line, self._at - self._starts[line - 1] + 1)

    def _value(self, path: KeyPath) -> None:
        match self._text[self._at]:
            case "{":
                while self._another("}"):
                    start = self._at
                    name, end = scanstring(self._text, start + 1)
                    self._note((*path, name))
                    self._at = self._text.index(":", end) + 1
                    self._space()
                    self._value((*path, name))
            case "[":
                index = 0
                while self._another("]"):
                    self._note((*path, index))
                    self._value((*path, index))
                    index += 1
            case '"':
                _, self._at = scanstring(self._text, self._at + 1)
            case _:
                self._at = _end(_PLAIN, self._text, self._at)

    def _another(self, close: str) -> bool:
        """Go from ``[``, ``{`` or the end of a value to the next one, or past ``close``."""
        self._space()
        if self._text[self._at] in ",[{":
            self._at += 1
            self._space()
        if self._text[self._at] != close:
            return True
        self._at += 1
        return False


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None, "it matches nothing, too"
    return found.end()
