"""Routes of the HTTP trigger, by the rules of Spin 1.x; see ``routes_v2`` for the newer ones.

- A route's path is the app's base and the component's route, each without one trailing ``/``,
  joined. A route without a leading ``/`` gets one (Spin 1.2.1).
- If that path ends in ``/...`` the rest is a prefix: it matches itself and whatever goes on with a
  ``/``. Any other path matches only itself. ``:name`` and a ``...`` elsewhere mean nothing special.
- The request path is compared as it was sent: nothing is percent-decoded and no ``//`` merged. One
  trailing ``/`` is dropped first. An empty path is ``/``.
- An exact match comes before any prefix, a longer prefix before a shorter one. Of equal routes the
  last one listed is served and the others never are.
- Paths below ``/.well-known/spin/`` never reach a component.

Sources: Spin 1.5 crates/http/src/{lib,routes}.rs, crates/trigger-http/src/lib.rs; paths of the Rust
crate http 0.2.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

WELL_KNOWN_PREFIX = "/.well-known/spin/"
HEALTH_PATH = WELL_KNOWN_PREFIX + "health"
INFO_PATH = WELL_KNOWN_PREFIX + "info"
_WILDCARD = "/..."


@dataclass(frozen=True, slots=True)
class RoutePattern:
    """What a route matches."""

    path: str
    """The whole path, or the prefix of a wildcard; empty for the root."""
    wildcard: bool

    @classmethod
    def of(cls, base: str, route: str) -> RoutePattern:
        """Return the pattern of ``route`` in an app with ``base``."""
        path = join_route(base, route)
        if path.endswith(_WILDCARD):
            return cls(path.removesuffix(_WILDCARD), True)
        return cls(path, False)

    def __str__(self) -> str:
        return self.path + _WILDCARD if self.wildcard else self.path or "/"

    def path_info(self, path: str) -> str:
        """Return what ``path``, as it was sent, has after the matched part."""
        return path[len(self.path) :] if path.startswith(self.path) else ""


@dataclass(frozen=True, slots=True)
class Route:
    """A component's route, with all that requests are told of it."""

    component_id: str
    index: int
    """The place among the routes given to the router."""
    pattern: RoutePattern
    base_path: str
    """As the manifest has it."""
    raw_component_route: str
    """As the manifest has it."""
    component_route: str
    """The same without ``/...``."""
    matched_route: str
    """Base and route joined, with ``/...``; empty for the root."""


@dataclass(slots=True)
class Match:
    """The route for a request."""

    route: Route
    path_info: str
    captures: tuple[tuple[str, str], ...] = ()
    """Names and values of the parts that a route leaves open; version 2 only."""


@dataclass(frozen=True, slots=True)
class ShadowedRoute:
    """A route that is never used because a later one is the same."""

    route: Route
    used: Route

    def __str__(self) -> str:
        return (
            f'route "{self.route.pattern}" of component "{self.route.component_id}" duplicates that'
            f' of component "{self.used.component_id}" and will never be used'
        )


@dataclass(frozen=True, slots=True)
class ReservedAnswer:
    """The answer to a request for one of Spin's own paths."""

    status: int
    content_type: str | None = None
    body: bytes = b""


class RouteFinder(Protocol):
    """Finds the route for a path, by the rules of one version."""

    routes: list[Route]
    """Every route, the shadowed ones too, in the order given."""
    shadowed: list[ShadowedRoute]

    def match(self, path: str) -> Match | None:
        """Return the route for a request path, None for no route (404).

        path: as sent, without query.
        """


class Router:
    """The rules of version 1.

    An exact route is one dictionary lookup. Prefixes are looked up from the longest that can match,
    one for each ``/`` of the path, so the number of routes does not matter.
    """

    def __init__(self, base: str, routes: Iterable[tuple[str, str]]) -> None:
        """``routes``: component id and route of each component, in the manifest's order."""
        self.routes: list[Route] = []
        self.shadowed: list[ShadowedRoute] = []
        self._exact: dict[str, Route] = {}
        self._prefixes: dict[str, Route] = {}
        for index, (component_id, raw) in enumerate(routes):
            route = Route(
                component_id=component_id,
                index=index,
                pattern=RoutePattern.of(base, raw),
                base_path=base,
                raw_component_route=raw,
                component_route=raw.removesuffix(_WILDCARD),
                matched_route=join_route(base, raw),
            )
            self.routes.append(route)
        self._index()
        self._longest_prefix = max(map(len, self._prefixes), default=0)

    def _index(self) -> None:
        for route in reversed(self.routes):
            table = self._prefixes if route.pattern.wildcard else self._exact
            used = table.setdefault(route.pattern.path, route)
            if used is not route:
                self.shadowed.insert(0, ShadowedRoute(route, used))

    def match(self, path: str) -> Match | None:
        """See ``RouteFinder``."""
        path = path or "/"
        wanted = path.removesuffix("/")
        route = self._exact.get(wanted)
        if route is None and self._prefixes:
            route = self._match_prefix(wanted)
        return None if route is None else Match(route, route.pattern.path_info(path))

    def _match_prefix(self, path: str) -> Route | None:
        if path and not path.startswith("/"):  # the `*` of OPTIONS
            return None
        # A prefix longer than all of ours is not worth cutting out.
        end = len(path)
        if end > self._longest_prefix:
            end = path.rfind("/", 0, self._longest_prefix + 1)
        while end >= 0:
            route = self._prefixes.get(path[:end])
            if route is not None:
                return route
            end = path.rfind("/", 0, end)
        return None


def join_route(base: str, route: str) -> str:
    """Return base and route joined, each without one trailing ``/``."""
    if not route.startswith("/"):
        route = "/" + route
    return base.removesuffix("/") + route.removesuffix("/")


def is_reserved(path: str) -> bool:
    """Return whether a request path is one of Spin's own."""
    return path.startswith(WELL_KNOWN_PREFIX)


def answer_reserved(path: str, name: str, version: str | None) -> ReservedAnswer | None:
    """Return the answer to a reserved path, whatever the method; None for all other paths.

    name, version: of the app.  Reserved paths without meaning, as ``health/``, are 404.
    """
    if not is_reserved(path):
        return None
    if path == HEALTH_PATH:
        return ReservedAnswer(200, None, b"OK")
    if path == INFO_PATH:
        info = {"name": name}
        if version is not None:
            info["version"] = version
        body = json.dumps(info, indent=2, ensure_ascii=False).encode()
        return ReservedAnswer(200, "application/json", body)
    return ReservedAnswer(404)
