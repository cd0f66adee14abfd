from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shim_spin_v1.routing.v1 import RoutePattern, Router, answer_reserved, is_reserved
from spin_rules.answers import NOT_RESERVED, RESERVED
from spin_rules.routes_v1 import ROUTES_V1
from spin_rules.routing import Routing, sent_path


@pytest.mark.parametrize("routing", ROUTES_V1, ids=lambda routing: routing.name)
def test_routing(routing: Routing) -> None:
    router = Router(routing.base, [(f"c{i}", route) for i, route in enumerate(routing.routes)])
    for asked in routing.paths:
        match = router.match(sent_path(asked.path))
        found = None if match is None else (match.route.index, match.path_info, match.captures)
        wanted = None if asked.route is None else (asked.route, asked.path_info, ())
        assert found == wanted, asked.rule
    shadowed = [(s.route.index, s.used.index) for s in router.shadowed]
    assert shadowed == list(routing.shadowed)


def test_shadowed_routes_are_reported() -> None:
    (shadowed,) = Router("/", [("a", "/x"), ("b", "/x/")]).shadowed
    assert str(shadowed) == (
        'route "/x" of component "a" duplicates that of component "b" and will never be used'
    )


@pytest.mark.parametrize(
    ("route", "text"), [("/", "/"), ("/a/", "/a"), ("/a/...", "/a/..."), ("/...", "/...")]
)
def test_pattern_as_text(route: str, text: str) -> None:
    assert str(RoutePattern.of("/", route)) == text


PATHS = st.text(alphabet="/ab.", max_size=10)


def naive_match(router: Router, path: str) -> int | None:
    """The rules word for word, over all routes."""
    path = (path or "/").removesuffix("/")
    best: tuple[bool, int, int] | None = None
    for route in router.routes:
        pattern = route.pattern
        below = pattern.wildcard and path.startswith(pattern.path + "/")
        if path == pattern.path or below:
            rank = (not pattern.wildcard, len(pattern.path), route.index)
            best = rank if best is None else max(best, rank)
    return None if best is None else best[2]


@given(
    st.sampled_from(["/", "", "/a", "/a/"]),
    st.lists(st.builds("{}{}".format, PATHS, st.sampled_from(["", "/..."])), max_size=8),
    PATHS,
)
def test_router_agrees_with_the_rules(base: str, routes: list[str], path: str) -> None:
    router = Router(base, (("c", route) for route in routes))
    match = router.match(path)
    assert (None if match is None else match.route.index) == naive_match(router, path)


def test_match_takes_as_long_with_many_routes() -> None:
    """A long path of slashes among 10,000 routes costs what its prefixes cost."""
    routes = [(str(i), f"/r{i}/x/...") for i in range(10_000)]
    router = Router("/", routes)
    start = time.thread_time()
    for _ in range(1000):
        assert router.match("/" * 8000) is None
        assert router.match("/r9999/x/y/z") is not None
    assert time.thread_time() - start < 2


@pytest.mark.parametrize("path", RESERVED)
def test_reserved_answer(path: str) -> None:
    answer = answer_reserved(path, "app", "1.0")
    assert answer is not None
    assert (answer.status, answer.body) == RESERVED[path]
    assert answer.content_type is None


@pytest.mark.parametrize("path", NOT_RESERVED)
def test_other_path_is_not_reserved(path: str) -> None:
    assert not is_reserved(path)
    assert answer_reserved(path, "app", "1.0") is None


@pytest.mark.parametrize(
    ("version", "expected"),
    [("1.0", {"name": "é", "version": "1.0"}), (None, {"name": "é"})],
    ids=["version", "no version"],
)
def test_info_is_json(version: str | None, expected: dict[str, str]) -> None:
    answer = answer_reserved("/.well-known/spin/info", "é", version)
    assert answer is not None
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert json.loads(answer.body) == expected
    assert b'{\n  "name"' in answer.body
