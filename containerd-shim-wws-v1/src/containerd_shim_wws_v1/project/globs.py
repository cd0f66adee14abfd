"""Globs that say which files are left out, as upstream's ``--ignore`` reads them.

``*`` and ``?`` stand for characters of one name, ``[ab]``, ``[a-z]`` and ``[!a]`` for one of a set,
``{a,b}`` for one of several, ``**`` for any number of whole names, also none: ``**/old/**`` is what
is called ``old``, at any depth, and all below it.

Source: wax 0.5, which wasm-workers-server 1.7 uses.
"""

from __future__ import annotations

import re
from typing import Final

_MAX_CHARACTERS: Final = 1000


class GlobError(ValueError):
    """A pattern that is none; the message is what is wrong."""


class PathGlob:
    """A pattern for paths relative to the project."""

    def __init__(self, pattern: str) -> None:
        """Raises GlobError."""
        if len(pattern) > _MAX_CHARACTERS:
            raise GlobError(f"longer than {_MAX_CHARACTERS} characters")
        self.pattern = pattern
        self._regex = re.compile(_path_regex(pattern), re.DOTALL)

    def matches(self, path: str) -> bool:
        """path: names with ``/`` between, none in front."""
        return self._regex.fullmatch(path) is not None


def _path_regex(pattern: str) -> str:
    parts = [part for part in pattern.split("/") if part]
    regex = ""
    separated = True  # nothing is needed between this part and the one before
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            if last:
                regex += ".*" if separated else "(?:/.*)?"
            elif separated:
                regex += "(?:.*/)?"
            else:
                regex += "/(?:.*/)?"
                separated = True
            continue
        if "**" in part:
            raise GlobError("`**` must be a whole part of the path")
        regex += ("" if separated else "/") + _part_regex(part)
        separated = False
    return regex


def _part_regex(part: str) -> str:
    regex = ""
    depth = 0
    at = 0
    while at < len(part):
        match part[at]:
            case "?":
                regex += "[^/]"
            case "*":
                regex += "[^/]*"
            case "{":
                depth += 1
                regex += "(?:"
            case "}" if depth:
                depth -= 1
                regex += ")"
            case "," if depth:
                regex += "|"
            case "[":
                close = part.find("]", at + 1)
                members = part[at + 1 : close] if close > 0 else ""
                negated = members.startswith("!")
                members = members[1:] if negated else members
                if not members:
                    raise GlobError("`[` has no `]` that ends the set")
                regex += _set_regex(members, negated)
                at = close
            case char:
                regex += re.escape(char)
        at += 1
    if depth:
        raise GlobError("`{` has no `}`")
    return regex


def _set_regex(members: str, negated: bool) -> str:
    ranges = ""
    at = 0
    while at < len(members):
        if members[at + 1 : at + 2] == "-" and at + 2 < len(members):
            low, high = members[at], members[at + 2]
            if low > high:
                raise GlobError(f"`{low}-{high}` is no range")
            ranges += f"{re.escape(low)}-{re.escape(high)}"
            at += 3
        else:
            ranges += re.escape(members[at])
            at += 1
    return f"[{'^/' if negated else ''}{ranges}]"
