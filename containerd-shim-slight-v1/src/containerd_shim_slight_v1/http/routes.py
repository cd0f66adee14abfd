"""Routes: patterns with ``:name`` and ``*``, as upstream's router (routerify 3.0) reads them.

- ``:name`` is one or more characters other than ``/``; a name ends at ``/`` or ``.``.
- ``*`` is any characters, ``/`` too, or none; its parameter is called ``*``.
- A slash at the end makes no difference, of pattern or path. Paths are percent-decoded first.
- Of several routes that fit, the first of the method is taken. Upstream takes the right route but,
  where patterns overlap, now and then another's handler; that is not imitated.

Matching goes over a path once for each part of the pattern, whatever either is: with a regular
expression, a route of several ``*`` would take quadratic time and more.

Source: SpiderLightning 0.5 crates/http-server/src/lib.rs; routerify 3.0 src/regex_generator,
src/router, src/service/request_service.rs.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import unquote_to_bytes

MAX_ROUTES: Final = 1000

_WILDCARD: Final = re.compile(r":([^/.]+)|\*", re.S)
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")

Parameters = list[tuple[str, str]]


class _Part(ABC):
    """A part of a pattern."""

    name: str | None = None
    """Of the parameter that it is."""

    @abstractmethod
    def starts(self, path: str, ends: Collection[int]) -> Collection[int]:
        """Return where the part may start in ``path`` so that it ends at one of ``ends``."""

    @abstractmethod
    def end(self, path: str, start: int, ends: Collection[int]) -> int:
        """Return which of ``ends`` it reaches from ``start``: the furthest. There is one."""


class _Literal(_Part):
    def __init__(self, text: str) -> None:
        self.text = text

    def starts(self, path: str, ends: Collection[int]) -> Collection[int]:
        # There may be many ends, and few places of the text, or none.
        found: set[int] = set()
        at = path.find(self.text)
        while at >= 0:
            if at + len(self.text) in ends:
                found.add(at)
            at = path.find(self.text, at + 1)
        return found

    def end(self, path: str, start: int, ends: Collection[int]) -> int:
        return start + len(self.text)


class _Name(_Part):
    def __init__(self, name: str) -> None:
        self.name = name

    def starts(self, path: str, ends: Collection[int]) -> Collection[int]:
        found: set[int] = set()
        for end in ends:
            at = end - 1
            while at >= 0 and path[at] != "/" and at not in found:
                found.add(at)
                at -= 1
        return found

    def end(self, path: str, start: int, ends: Collection[int]) -> int:
        slash = path.find("/", start)
        limit = len(path) if slash < 0 else slash
        return max(end for end in ends if start < end <= limit)


class _Rest(_Part):
    name = "*"

    def starts(self, path: str, ends: Collection[int]) -> Collection[int]:
        return range(max(ends) + 1)

    def end(self, path: str, start: int, ends: Collection[int]) -> int:
        return max(ends)


def _parse(pattern: str) -> list[_Part]:
    parts: list[_Part] = []
    at = 0
    for found in _WILDCARD.finditer(pattern):
        if found.start() > at:
            parts.append(_Literal(pattern[at : found.start()]))
        parts.append(_Rest() if found[0] == "*" else _Name(found[1]))
        at = found.end()
    if at < len(pattern):
        parts.append(_Literal(pattern[at:]))
    return parts


def _match(parts: Sequence[_Part], path: str) -> Parameters | None:
    # Most routes are others from their start on, and a path may be long.
    if isinstance(parts[0], _Literal) and not path.startswith(parts[0].text):
        return None
    # From the end: where each part may end so that all behind it fit.
    ends: list[Collection[int]] = []
    possible: Collection[int] = (len(path),)
    for part in reversed(parts):
        ends.append(possible)
        possible = part.starts(path, possible)
        if not possible:
            return None
    if 0 not in possible:
        return None
    found: dict[str, str] = {}
    at = 0
    for part, possible in zip(parts, reversed(ends), strict=True):
        end = part.end(path, at, possible)
        if part.name is not None:
            found[part.name] = path[at:end]
        at = end
    return list(found.items())


@dataclass(frozen=True, slots=True)
class Route:
    """A method, a pattern and who answers."""

    method: str
    """``GET``, ``PUT``, ``POST``, ``DELETE``."""
    pattern: str
    handler: str
    """As the guest names it, with ``_``."""

    @property
    def export(self) -> str:
        """The function of the module."""
        return self.handler.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Router:
    """What a guest builds: each method gives a new one, and the old one stays as it is."""

    base: str = ""
    """In front of all patterns, without a slash at its end."""
    routes: tuple[Route, ...] = ()

    @classmethod
    def with_base(cls, base: str) -> Router:
        """Return an empty one. base: a path, or a URL, of which the path counts."""
        url = _URL.match(base)
        path = base[url.end() if url is not None else 0 :].rstrip("/")
        return cls(path if not path or path.startswith("/") else f"/{path}")

    def add(self, method: str, pattern: str, handler: str) -> Router:
        """Return a router with one more route. Raises ValueError beyond MAX_ROUTES."""
        if len(self.routes) >= MAX_ROUTES:
            raise ValueError(f"a router has at most {MAX_ROUTES} routes")
        return replace(self, routes=(*self.routes, Route(method, self.base + pattern, handler)))


@dataclass(slots=True)
class RouteTable:
    """Routes, ready to be looked up."""

    routes: Iterable[Route]
    _by_method: dict[str, list[tuple[Route, list[_Part]]]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for route in self.routes:
            parts = _parse(f"{route.pattern.removesuffix('/')}/")
            self._by_method.setdefault(route.method, []).append((route, parts))

    def find(self, method: str, raw_path: bytes) -> tuple[Route, Parameters] | None:
        """Return the route of a request and its parameters. raw_path: percent-encoded."""
        try:
            path = unquote_to_bytes(raw_path).decode()
        except UnicodeDecodeError:
            return None
        if not path.endswith("/"):
            path += "/"
        for route, parts in self._by_method.get(method, ()):
            parameters = _match(parts, path)
            if parameters is not None:
                return route, parameters
        return None
