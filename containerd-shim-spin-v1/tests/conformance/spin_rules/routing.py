"""The form of the routing tables, and the apps that are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from spin_rules.apps import manifest_v1, manifest_v2
from spin_rules.exchange import App, Exchange, Seen, Sent


@dataclass(frozen=True, slots=True)
class Path:
    """A request's path, and which of the routes it is for."""

    rule: str
    path: str
    """As it is sent; empty is a URL that ends with the host."""
    route: int | None
    """The place among the routes; None is no route: 404."""
    path_info: str = ""
    """What the route leaves of the path."""
    captures: Mapping[str, str] = field(default_factory=dict)
    """What ``:name`` parts stand for."""

    def exchange(self) -> Exchange:
        sent = Sent(self.path or "http://test", method="OPTIONS" if self.path == "*" else "GET")
        if self.route is None:
            return Exchange(self.rule, sent, 404, b"")
        headers: dict[str, Sequence[str] | None] = {"spin-path-info": [self.path_info]}
        for name, value in self.captures.items():
            headers[f"spin-path-match-{name.replace('_', '-')}"] = [value]
        return Exchange(self.rule, sent, seen=Seen(f"c{self.route}", headers=headers))


@dataclass(frozen=True, slots=True)
class Routing:
    """Routes in the manifest's order, and paths that are asked for."""

    routes: Sequence[str]
    paths: Sequence[Path]
    base: str = "/"
    shadowed: Sequence[tuple[int, int]] = ()
    """Routes that are never used, and those used instead."""
    sample: bool = False

    @property
    def name(self) -> str:
        base = "" if self.base == "/" else f"{self.base or 'empty base'}: "
        return base + " ".join(route or "empty" for route in self.routes)

    def app(self, version: Literal[1, 2]) -> App:
        """Return the app with these routes."""
        make = manifest_v1 if version == 1 else manifest_v2
        return App(
            f"version {version}: {self.name}",
            make(self.base, self.routes),
            ["mirror"],
            [path.exchange() for path in self.paths],
            [
                f'of component "c{route}" duplicates that of component "c{used}" and will never'
                for route, used in self.shadowed
            ],
            self.sample,
        )


def sent_path(target: str) -> str:
    """Return the path that a router is asked for, of a request's target."""
    return target.removeprefix("http://test").partition("?")[0]
