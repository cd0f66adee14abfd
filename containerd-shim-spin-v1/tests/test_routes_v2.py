from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shim_spin_v1.routing.v2 import PatternRouter
from spin_rules.routes_v2 import ROUTES_V2
from spin_rules.routing import Routing, sent_path


@pytest.mark.parametrize("routing", ROUTES_V2, ids=lambda routing: routing.name)
def test_routing(routing: Routing) -> None:
    routes = [(f"c{index}", route) for index, route in enumerate(routing.routes)]
    router = PatternRouter(routing.base, routes)
    for asked in routing.paths:
        match = router.match(sent_path(asked.path))
        found = None if match is None else (match.route.index, match.path_info, match.captures)
        captures = tuple(asked.captures.items())
        wanted = None if asked.route is None else (asked.route, asked.path_info, captures)
        assert found == wanted, asked.rule
    shadowed = [(s.route.index, s.used.index) for s in router.shadowed]
    assert shadowed == list(routing.shadowed)


PARTS = st.sampled_from(["a", "b", ":x", ":x.a", ".a", "a.b", ""])


@given(
    st.lists(st.tuples(st.lists(PARTS, max_size=3), st.sampled_from(["", "/..."])), min_size=1),
    st.lists(st.sampled_from(["a", "b", "a.b", ".a", "", "%"]), max_size=4),
)
def test_the_match_does_not_depend_on_the_order(
    routes: list[tuple[list[str], str]], path: list[str]
) -> None:
    """Of routes that differ in what they match the most specific is found in whatever order."""
    written = ["/" + "/".join(parts) + end for parts, end in routes]
    router = PatternRouter("/", [("c", route) for route in written])
    kept = [r for r in router.routes if r not in [s.route for s in router.shadowed]]
    reverse = PatternRouter("/", [("c", r.raw_component_route) for r in reversed(kept)])
    wanted = "/" + "/".join(path)
    found, other = router.match(wanted), reverse.match(wanted)
    assert (found is None) == (other is None)
    if found is not None and other is not None:
        assert found.route.raw_component_route == other.route.raw_component_route
