"""Routes of the HTTP trigger, by the rules of manifest version 2.

- Routes and paths are compared part by part. Any number of ``/`` before and after makes no
  difference; one inside does. Nothing is percent-decoded.
- ``:name`` is any one part, or any text up to the next dot if the part goes on, as in
  ``:name.json``.
- ``/...`` or ``/*`` at the end is any number of parts, none of them included.
- Of several routes that match, the first place where they differ decides: text comes before
  ``:name``, which comes before a wildcard; if one is the beginning of the other it comes first.
- Of two routes written the same the later is served; of two that differ only in a name or a ``/``
  the earlier.
- Private routes are no routes.

Source: Spin 3.6 crates/routes/src/lib.rs; routefinder 0.5.4 src/{route_spec,segment}.rs. Where a
part of the path begins with a dot routefinder joins it to the part before; we do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from containerd_shim_spin_v1.routing.v1 import (
    Match,
    Route,
    RoutePattern,
    ShadowedRoute,
    join_route,
)

_WILDCARD = re.compile(r"/(?:\.\.\.|\*)\Z")
_TEXT, _NAME_AND_TEXT, _NAME, _REST = range(4)  # what comes first is more specific


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A route taken apart."""

    rank: tuple[int, ...]
    """Compared from left to right; lower is more specific."""
    key: str
    """The same for routes that match the same."""
    text: str | None
    """All of it, without ``/`` around, if nothing of it is open."""
    regex: re.Pattern[str]
    names: tuple[str, ...]


class PatternRouter:
    """The rules of version 2; see ``routes.RouteFinder``.

    A route without open parts is one dictionary lookup. Of the others those are tried one after
    another that begin as the path does, then those whose first part is open.
    """

    def __init__(self, base: str, routes: Iterable[tuple[str, str]]) -> None:
        """``routes``: component id and route of each trigger, in the manifest's order."""
        self.routes: list[Route] = []
        self.shadowed: list[ShadowedRoute] = []
        self._exact: dict[str, Route] = {}
        self._by_first: dict[str, list[tuple[_Pattern, Route]]] = {}
        self._open: list[tuple[_Pattern, Route]] = []
        for index, (component_id, raw) in enumerate(routes):
            based = join_route(base, raw)
            route = Route(
                component_id=component_id,
                index=index,
                pattern=RoutePattern(_WILDCARD.sub("", based), _WILDCARD.search(based) is not None),
                base_path="/",
                raw_component_route=raw,
                component_route=raw.removesuffix("/..."),
                matched_route=based,
            )
            self.routes.append(route)
        self._index()

    def _index(self) -> None:
        by_text: dict[str, Route] = {route.raw_component_route: route for route in self.routes}
        by_key: dict[str, Route] = {}
        for route in self.routes:
            pattern = _parse(route.matched_route)
            used = by_text[route.raw_component_route]
            if used is route:
                used = by_key.setdefault(pattern.key, route)
            if used is not route:
                self.shadowed.append(ShadowedRoute(route, used))
            elif pattern.text is not None:
                self._exact[pattern.text] = route
            elif pattern.rank[0] == _TEXT:
                first = pattern.key.partition("/")[0]
                self._by_first.setdefault(first, []).append((pattern, route))
            else:
                self._open.append((pattern, route))
        for entries in (*self._by_first.values(), self._open):
            entries.sort(key=lambda entry: entry[0].rank)

    def match(self, path: str) -> Match | None:
        """See ``routes.RouteFinder``."""
        if path == "*":  # of OPTIONS
            return None
        wanted = path.strip("/")
        if (route := self._exact.get(wanted)) is not None:
            return Match(route, "")
        entries = self._by_first.get(wanted.partition("/")[0], ())
        for pattern, route in chain(entries, self._open):
            found = pattern.regex.fullmatch(wanted)
            if found is not None:
                rest = _path_info(found["rest"], path) if route.pattern.wildcard else ""
                values = found.groups()[: len(pattern.names)]
                return Match(route, rest, tuple(zip(pattern.names, values, strict=True)))
        return None


def _path_info(rest: str | None, path: str) -> str:
    """Return what a wildcard stands for, with the last ``/`` of the path if it has one."""
    slash = "/" if path.endswith("/") else ""
    return f"/{rest}{slash}" if rest else slash


def _parse(route: str) -> _Pattern:
    wildcard = _WILDCARD.search(route) is not None
    parts = [part for part in _WILDCARD.sub("", route).split("/") if part]
    rank: list[int] = []
    regexes, keys, names = [], [], []
    for part in parts:
        if not part.startswith(":"):
            rank.append(_TEXT)
            regexes.append(re.escape(part))
            keys.append(part)
            continue
        name, dot, suffix = part[1:].partition(".")
        rank.append(_NAME_AND_TEXT if dot else _NAME)
        names.append(name)
        # A name stands for no text only between two slashes, never at the end of the path.
        regexes.append(f"(?!\\Z)([^/{'.' if dot else ''}]*){re.escape(dot + suffix)}")
        keys.append(":" + dot + suffix)
    regex = "/".join(regexes)
    if wildcard:
        rank.append(_REST)
        regex += r"(?:/(?P<rest>.*)|\Z)" if parts else "(?P<rest>.*)"
        keys.append("*")
    return _Pattern(
        rank=tuple(rank),
        key="/".join(keys),
        text=None if names or wildcard else "/".join(parts),
        regex=re.compile(regex, re.S),
        names=tuple(names),
    )
