"""Glob patterns as the Rust crate ``glob`` reads them, which is what Spin uses.

- ``?`` is any character, ``[abc]``, ``[a-z]`` and ``[!a]`` one of a set, ``*`` any run of them.
- ``**`` must be a whole part of the path: any number of directories. At the end of a pattern that
  finds files it finds only directories, so ``a/**`` finds no file; ``a/**/*`` finds them all.
- A leading dot is nothing special: ``*`` finds hidden files.
- There are no braces and no escapes; ``[*]`` is a literal asterisk.
- Finding goes part by part, so there ``*`` stays within a directory. Matching a given path, which
  is how ``exclude_files`` is used, takes ``/`` as any character: ``a/*`` excludes ``a/b/c``.

Source: glob 0.3, ``Pattern::new``, ``fill_todo`` and ``MatchOptions::new``; Spin 1.5
crates/loader/src/local/assets.rs.
"""

from __future__ import annotations

import re
from collections.abc import Callable


def glob_fault(pattern: str) -> str | None:
    """Return what is wrong with a pattern of ``files`` or ``exclude_files``, or None."""
    if not pattern:
        return "must not be empty"
    if pattern.startswith("/"):
        return "must be relative to the app's directory"
    if "\0" in pattern:
        return "must not contain a NUL"
    for part in pattern.split("/"):
        if part == "..":
            return "must not contain `..`"
        if "***" in part:
            return "wildcards are either `*` or `**`"
        if "**" in part and part != "**":
            return "`**` must be a whole part of the path"
        try:
            _part_regex(part, any_char="[^/]")
        except ValueError as exc:
            return str(exc)
    return None


def split_glob(pattern: str) -> tuple[str | re.Pattern[str], ...]:
    """Return the parts to find one after another: a plain name, ``"**"``, or a regular expression.

    An empty result, or a last part ``"**"``, finds no file; so does a pattern that ends in ``/``,
    for which the last part is ``"**"`` too.
    """
    parts: list[str | re.Pattern[str]] = []
    for part in pattern.split("/"):
        if part in ("", "."):
            continue
        if part == "**":
            if parts[-1:] != ["**"]:
                parts.append(part)
        elif any(c in part for c in "*?["):
            parts.append(re.compile(_part_regex(part, any_char="[^/]"), re.DOTALL))
        else:
            parts.append(part)
    if pattern.endswith("/") and parts[-1:] != ["**"]:
        parts.append("**")
    return tuple(parts)


def path_matcher(pattern: str) -> Callable[[str], bool]:
    """Return a function that says whether a whole relative path matches ``pattern``."""
    parts = [part for part in pattern.split("/") if part != "."]
    regex = ""
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            regex += ".*" if last else "(?:.*/)?"
        else:
            regex += _part_regex(part, any_char=".") + ("" if last else "/")
    compiled = re.compile(regex, re.DOTALL)
    return lambda path: compiled.fullmatch(path) is not None


def _part_regex(part: str, any_char: str) -> str:
    regex = ""
    at = 0
    while at < len(part):
        match part[at]:
            case "?":
                regex += any_char
            case "*":
                regex += f"{any_char}*"
            case "[":
                negated = part[at + 1 : at + 2] == "!"
                first = at + (2 if negated else 1)
                close = part.find("]", first + 1)  # the first character may itself be a `]`
                if close < 0:
                    raise ValueError(f"`[` at character {at + 1} has no `]` that ends the set")
                regex += _set_regex(part[first:close], negated)
                at = close
            case char:
                regex += re.escape(char)
        at += 1
    return regex


def _set_regex(members: str, negated: bool) -> str:
    ranges = ""
    at = 0
    while at < len(members):
        if members[at + 1 : at + 2] == "-" and at + 2 < len(members):
            low, high = members[at], members[at + 2]
            if low <= high:  # the other way round it is a range of nothing
                ranges += f"{re.escape(low)}-{re.escape(high)}"
            at += 3
        else:
            ranges += re.escape(members[at])
            at += 1
    if not ranges:
        return "." if negated else "(?!)"
    return f"[{'^' if negated else ''}{ranges}]"
