from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shim_spin_v1.routing.v1 import RoutePattern, Router, answer_reserved, is_reserved


@pytest.mark.parametrize(
    ("base", "route", "path", "path_info"),
    [
        # path_info None: no match
        pytest.param("/", "/foo", "/foo", "", id="exact"),
        pytest.param("/", "/foo", "/foo/", "/", id="exact, one trailing slash"),
        pytest.param("/", "/foo", "/foo//", None, id="exact, two trailing slashes"),
        pytest.param("/", "/foo/", "/foo", "", id="route with trailing slash"),
        pytest.param("/", "/foo//", "/foo", None, id="route with two trailing slashes"),
        pytest.param("/", "/foo//", "/foo//", "/", id="route and path with two"),
        pytest.param("/", "/foo", "/foo/bar", None, id="exact is no prefix"),
        pytest.param("/", "/foo", "/Foo", None, id="case counts"),
        pytest.param("/", "/", "/", "/", id="root"),
        pytest.param("/", "/", "", "/", id="empty path is the root"),
        pytest.param("/", "/", "//", None, id="two slashes are not the root"),
        pytest.param("/", "/", "/x", None, id="root is no prefix"),
        pytest.param("/", "", "/", "/", id="empty route is the root"),
        pytest.param("/", "foo", "/foo", "", id="leading slash added"),
        pytest.param("/base", "foo", "/base/foo", "", id="leading slash added after base"),
        pytest.param("", "/foo", "/foo", "", id="empty base"),
        pytest.param("/base", "/foo", "/base/foo", "", id="base"),
        pytest.param("/base/", "/foo", "/base/foo", "", id="base with trailing slash"),
        pytest.param("/base//", "/foo", "/base//foo", "", id="base with two"),
        pytest.param("/base", "/foo", "/foo", None, id="base missing"),
        pytest.param("/base", "/", "/base", "", id="root below base"),
        pytest.param("/base", "/", "/base/", "/", id="root below base, slash"),
        pytest.param("/", "/...", "/", "/", id="catch-all, root"),
        pytest.param("/", "/...", "", "/", id="catch-all, empty path"),
        pytest.param("/", "/...", "/a/b/", "/a/b/", id="catch-all, deep"),
        pytest.param("/", "/...", "//a", "//a", id="catch-all, double slash"),
        pytest.param("/", "/...", "*", None, id="asterisk form matches nothing"),
        pytest.param("/", "/foo/...", "/foo", "", id="prefix itself"),
        pytest.param("/", "/foo/...", "/foo/", "/", id="prefix and slash"),
        pytest.param("/", "/foo/...", "/foo/bar", "/bar", id="below prefix"),
        pytest.param("/", "/foo/...", "/foo/bar/", "/bar/", id="trailing slash stays in the rest"),
        pytest.param("/", "/foo/...", "/foo//bar", "//bar", id="double slash below prefix"),
        pytest.param("/", "/foo/...", "/foobar", None, id="prefix ends at a slash"),
        pytest.param("/", "/foo/.../", "/foo/bar", "/bar", id="wildcard with trailing slash"),
        pytest.param("/base", "/...", "/base/x", "/x", id="catch-all below base"),
        pytest.param("/base", "/...", "/basex", None, id="base ends at a slash"),
        pytest.param("/", "/foo...", "/foo/x", None, id="dots without slash are text"),
        pytest.param("/", "/:id", "/7", None, id="names are text"),
        pytest.param("/", "/a%20b", "/a%20b", "", id="encoded matches encoded"),
        pytest.param("/", "/a/b", "/a%2Fb", None, id="nothing is decoded"),
        pytest.param("/", "/a%2fb", "/a%2Fb", None, id="case of escapes counts"),
        pytest.param("/", "/a/...", "/a/../b", "/../b", id="dot segments stay"),
    ],
)
def test_route_matches(base: str, route: str, path: str, path_info: str | None) -> None:
    match = Router(base, [("c", route)]).match(path)
    assert (None if match is None else match.path_info) == path_info


@pytest.mark.parametrize(
    ("routes", "path", "component"),
    [
        pytest.param(["/...", "/a"], "/a", 1, id="exact after wildcard"),
        pytest.param(["/a", "/..."], "/a", 0, id="exact before wildcard"),
        pytest.param(["/a/b/...", "/a/b"], "/a/b", 1, id="exact beats the wildcard of its path"),
        pytest.param(["/a/b", "/a/..."], "/a/b/c", 1, id="wildcard for the rest"),
        pytest.param(["/...", "/a/b/...", "/a/..."], "/a/b/c", 1, id="longest prefix"),
        pytest.param(["/...", "/a/b/...", "/a/..."], "/a/bc", 2, id="longest whole prefix"),
        pytest.param(["/...", "/a/b/...", "/a/..."], "/x", 0, id="catch-all last"),
        pytest.param(["/a", "/a"], "/a", 1, id="later of two exact"),
        pytest.param(["/a/...", "/a/.../"], "/a/b", 1, id="later of two wildcards"),
        pytest.param(["/a", "/a/"], "/a", 1, id="trailing slash makes no difference"),
    ],
)
def test_best_route_wins(routes: list[str], path: str, component: int) -> None:
    match = Router("/", ((str(i), route) for i, route in enumerate(routes))).match(path)
    assert match is not None
    assert match.route.index == component
    assert match.route.component_id == str(component)


def test_shadowed_routes_are_reported_in_order() -> None:
    routes = [("a", "/x"), ("b", "/y/..."), ("c", "/x/"), ("d", "/y/..."), ("e", "/x/...")]
    assert [str(shadowed) for shadowed in Router("/", routes).shadowed] == [
        'route "/x" of component "a" duplicates that of component "c" and will never be used',
        'route "/y/..." of component "b" duplicates that of component "d" and will never be used',
    ]


@pytest.mark.parametrize(
    ("base", "route", "matched", "component_route"),
    [
        pytest.param("/", "/foo/...", "/foo/...", "/foo", id="wildcard"),
        pytest.param("/base", "/foo/", "/base/foo", "/foo/", id="exact"),
        pytest.param("/", "/...", "/...", "", id="catch-all"),
        pytest.param("/", "/", "", "/", id="root"),
        pytest.param("/base/", "foo", "/base/foo", "foo", id="no leading slash"),
    ],
)
def test_route_values(base: str, route: str, matched: str, component_route: str) -> None:
    (found,) = Router(base, [("c", route)]).routes
    assert found.matched_route == matched
    assert found.component_route == component_route
    assert (found.base_path, found.raw_component_route) == (base, route)


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
    start = time.perf_counter()
    for _ in range(1000):
        assert router.match("/" * 8000) is None
        assert router.match("/r9999/x/y/z") is not None
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        pytest.param("/.well-known/spin/health", 200, b"OK", id="health"),
        pytest.param("/.well-known/spin/health/", 404, b"", id="health and slash"),
        pytest.param("/.well-known/spin/", 404, b"", id="nothing"),
        pytest.param("/.well-known/spin/other", 404, b"", id="other"),
    ],
)
def test_reserved_answer(path: str, status: int, body: bytes) -> None:
    answer = answer_reserved(path, "app", "1.0")
    assert answer is not None
    assert (answer.status, answer.body, answer.content_type) == (status, body, None)


@pytest.mark.parametrize(
    "path", ["/.well-known/spin", "/.well-known/spinx", "/x/.well-known/spin/"]
)
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
