"""Routes: which worker a URL's path leads to.

A worker's path without extension and without names ``index`` is its route. A name with a bracket
in it matches any segment, ``[...name]`` all that follow. Of several routes that match, static ones
come first, then dynamic ones with fewer segments, then tails with more of them; among those with
as many segments, static segments come before dynamic ones, from left to right, then by name.

A path is compared segment by segment, decoded; upstream compares encoded, so that files with other
than plain names are never found there.

Source: wasm-workers-server 1.7 crates/router/src/{lib,route}.rs, route/{segment,route_type}.rs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final
from urllib.parse import unquote

from containerd_shim_wws_v1.project.files import without_extension

_NAME: Final = re.compile(r"\[(\.{3})?(\w+)\]")
_KEPT: Final = re.compile(r"%(25|2b|2f)", re.IGNORECASE)
"""Escapes that parameters keep: ``%``, ``+`` and ``/``."""
_SLASHES: Final = re.compile("//+")
_SLASH: Final = re.compile("%2f", re.IGNORECASE)


class Kind(IntEnum):
    """Of a route, or of one of its segments; in the order in which they are tried."""

    STATIC = 0
    DYNAMIC = 1
    TAIL = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """One name of a route."""

    kind: Kind
    text: str

    @classmethod
    def of(cls, text: str) -> Segment:
        if text.startswith("[..."):
            return cls(Kind.TAIL, text)
        return cls(Kind.DYNAMIC if "[" in text else Kind.STATIC, text)


@dataclass(frozen=True, slots=True)
class Route:
    """The route of a worker."""

    file: str
    """The worker's path in the project."""
    path: str
    """With prefix; ``/`` is the root."""
    kind: Kind
    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, file: str, prefix: str = "") -> Route:
        """file: relative to the project.  prefix: see ``Settings.prefix``."""
        names = [name for name in without_extension(file).split("/") if name != "index"]
        path = prefix + "".join(f"/{name}" for name in names) or "/"
        return cls(file, path, _kind(path), tuple(map(Segment.of, path.split("/")[1:])))

    @property
    def order(self) -> tuple[object, ...]:
        """What routes are sorted by."""
        count = len(self.segments)
        if self.kind is Kind.STATIC:
            return self.kind, count, (), self.file
        segments = tuple((segment.kind, segment.text) for segment in self.segments)
        return self.kind, -count if self.kind is Kind.TAIL else count, segments, self.file

    def matches(self, count: int, segments: list[str]) -> bool:
        """Return whether a variable route is one for a URL's path.

        count: of its segments.  segments: these decoded, at least as many as the route has.
        """
        own = len(self.segments)
        if count < own or (count > own and self.kind is not Kind.TAIL):
            return False
        return all(
            own.kind is not Kind.STATIC or own.text == segment
            for own, segment in zip(self.segments, segments, strict=False)
        )

    def parameters(self, raw: list[str]) -> dict[str, str]:
        """Return what the route's names stand for. raw: segments of a path that matches."""
        found: dict[str, str] = {}
        for index, (segment, text) in enumerate(zip(self.segments, raw, strict=False)):
            names = _NAME.findall(segment.text)
            if segment.kind is Kind.TAIL:
                found.update((name, _parameter("/".join(raw[index:]))) for _, name in names)
                break
            if names:
                found.update(_of_segment(segment.text, text))
        return found


class RouteTable:
    """The routes of an app, with or without variable segments."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = sorted(routes, key=lambda route: route.order)
        self.shadowed: list[tuple[Route, Route]] = []
        """Routes that are never reached, and the route of the same path that is."""
        self._static: dict[str, Route] = {}
        self._variable: list[Route] = []
        seen: dict[str, Route] = {}
        for route in self.routes:
            first = seen.setdefault(route.path, route)
            if first is not route:
                self.shadowed.append((route, first))
            elif route.kind is Kind.STATIC:
                self._static[route.path] = route
            else:
                self._variable.append(route)
        self._most = max((len(route.segments) for route in self._variable), default=0)

    def find(self, path: str) -> tuple[Route, dict[str, str]] | None:
        """Return the route and its parameters. path: as ``normal_path`` returns it."""
        if _SLASH.search(path) is None:
            static = self._static.get(unquote(path, errors="replace"))
            if static is not None:
                return static, {}
        # A path may have tens of thousands of segments, a route has few.
        raw = path.split("/")[1:]
        segments = [unquote(segment, errors="replace") for segment in raw[: self._most]]
        for route in self._variable:
            if route.matches(len(raw), segments):
                return route, route.parameters(raw)
        return None


def normal_path(raw: str) -> str:
    """Return a path with single slashes and none at its end; ``/`` is the root.

    Source: actix-web 4, ``NormalizePath::trim``.
    """
    return _SLASHES.sub("/", raw).rstrip("/") or "/"


def _kind(path: str) -> Kind:
    if "/[..." in path:
        return Kind.TAIL
    return Kind.DYNAMIC if "/[" in path else Kind.STATIC


def _of_segment(pattern: str, text: str) -> dict[str, str]:
    """Return the parameters of one segment, which may have text around its names."""
    names = [name for _, name in _NAME.findall(pattern)]
    values = _between(_NAME.sub("\0", pattern).split("\0"), text) or [text] * len(names)
    return {name: _parameter(value) for name, value in zip(names, values, strict=True)}


def _between(literals: list[str], text: str) -> list[str] | None:
    """Return what is between literals, each time as little as possible; None if they do not fit.

    By hand: a regular expression would try all combinations where they do not.
    """
    first, *inner, last = literals
    at, end = len(first), len(text) - len(last)
    if not text.startswith(first) or not text.endswith(last):
        return None
    values = []
    for literal in inner:
        stop = text.find(literal, at + 1, end)
        if stop < 0:
            return None
        values.append(text[at:stop])
        at = stop + len(literal)
    return [*values, text[at:end]] if at < end else None


def _parameter(raw: str) -> str:
    """Return a value as upstream's router decodes it: all but ``%``, ``+`` and ``/``."""
    return unquote(_KEPT.sub(r"%25\1", raw), errors="replace")
