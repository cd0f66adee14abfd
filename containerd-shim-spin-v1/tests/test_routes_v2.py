from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shim_spin_v1.routing.v2 import PatternRouter


@pytest.mark.parametrize(
    ("route", "path", "path_info"),
    [
        # path_info None: no match
        pytest.param("/foo", "/foo", "", id="exact"),
        pytest.param("/foo", "/foo/", "", id="exact, trailing slash"),
        pytest.param("/foo", "/foo//", "", id="exact, two trailing slashes"),
        pytest.param("/foo", "//foo", "", id="exact, two leading slashes"),
        pytest.param("/foo/", "/foo", "", id="route with trailing slash"),
        pytest.param("foo", "/foo", "", id="route without leading slash"),
        pytest.param("/foo", "/foo/bar", None, id="exact is no prefix"),
        pytest.param("/foo", "/foobar", None, id="parts are whole"),
        pytest.param("/foo", "/Foo", None, id="case counts"),
        pytest.param("/", "/", "", id="root"),
        pytest.param("/", "", "", id="empty path is the root"),
        pytest.param("/", "//", "", id="slashes are the root"),
        pytest.param("/", "/x", None, id="root is no prefix"),
        pytest.param("/a/b", "/a//b", None, id="slash inside counts"),
        pytest.param("/a//b", "/a/b", "", id="but not in a route"),
        pytest.param("/...", "/", "/", id="catch-all, root"),
        pytest.param("/...", "", "", id="catch-all, empty path"),
        pytest.param("/...", "/a/b/", "/a/b/", id="catch-all, deep"),
        pytest.param("/*", "/a/b/", "/a/b/", id="asterisk is the same"),
        pytest.param("/...", "*", None, id="asterisk form matches nothing"),
        pytest.param("/foo/...", "/foo", "", id="prefix itself"),
        pytest.param("/foo/...", "/foo/", "/", id="prefix and slash"),
        pytest.param("/foo/...", "/foo/bar", "/bar", id="below prefix"),
        pytest.param("/foo/...", "/foo/bar/", "/bar/", id="trailing slash stays in the rest"),
        pytest.param("/foo/...", "/foo//bar", "//bar", id="double slash below prefix"),
        pytest.param("/foo/...", "/foobar", None, id="prefix ends at a slash"),
        pytest.param("/foo/.../", "/foo/bar", "/bar", id="wildcard with trailing slash"),
        pytest.param("/foo...", "/foo/x", None, id="dots without slash are text"),
        pytest.param("/foo...", "/foo...", "", id="dots without slash match themselves"),
        pytest.param("/a%20b", "/a%20b", "", id="encoded matches encoded"),
        pytest.param("/a/b", "/a%2Fb", None, id="nothing is decoded"),
        pytest.param("/a/.b", "/a/.b", "", id="leading dot"),
        pytest.param("/a.b", "/aXb", None, id="a dot is no pattern"),
    ],
)
def test_route_matches(route: str, path: str, path_info: str | None) -> None:
    match = PatternRouter("/", [("c", route)]).match(path)
    assert (None if match is None else match.path_info) == path_info


@pytest.mark.parametrize(
    ("route", "path", "captures"),
    [
        pytest.param("/:id", "/7", {"id": "7"}, id="name"),
        pytest.param("/:id", "/7/", {"id": "7"}, id="name, trailing slash"),
        pytest.param("/:id", "/", None, id="a name is not empty"),
        pytest.param("/a/:id", "/a", None, id="a name at the end is not empty"),
        pytest.param("/a/:id", "/a//", None, id="nor after slashes"),
        pytest.param("/a/:id/b", "/a//b", {"id": ""}, id="but it may be between slashes"),
        pytest.param("/:id", "/a.b", {"id": "a.b"}, id="dots belong to it"),
        pytest.param("/:id", "/a/b", None, id="one part"),
        pytest.param("/a/:one/b/:two_x", "/a/1/b/2", {"one": "1", "two_x": "2"}, id="two"),
        pytest.param("/a/:one/...", "/a/1/b/2", {"one": "1"}, id="and a wildcard"),
        pytest.param("/a/:one/...", "/a/1", {"one": "1"}, id="and an empty wildcard"),
        pytest.param("/:file.json", "/x.json", {"file": "x"}, id="suffix"),
        pytest.param("/:file.json", "/x.y.json", None, id="suffix after the first dot"),
        pytest.param("/:file.json", "/x", None, id="suffix missing"),
        pytest.param("/:a%20", "/%20", {"a%20": "%20"}, id="nothing is decoded"),
    ],
)
def test_captures(route: str, path: str, captures: dict[str, str] | None) -> None:
    match = PatternRouter("/", [("c", route)]).match(path)
    assert (None if match is None else dict(match.captures)) == captures


def test_wildcard_below_a_name_has_its_rest() -> None:
    match = PatternRouter("/", [("c", "/a/:one/...")]).match("/a/1/b/2/")
    assert match is not None
    assert match.path_info == "/b/2/"


@pytest.mark.parametrize(
    ("routes", "path", "used"),
    [
        pytest.param(["/...", "/a"], "/a", 1, id="text before wildcard"),
        pytest.param(["/a/...", "/a"], "/a", 1, id="text before the wildcard of its path"),
        pytest.param(["/:x", "/a"], "/a", 1, id="text before name"),
        pytest.param(["/...", "/:x"], "/a", 1, id="name before wildcard"),
        pytest.param(["/:x/b", "/a/:y"], "/a/b", 1, id="the first difference decides"),
        pytest.param(["/:x/b", "/a/..."], "/a/b", 1, id="even for a wildcard"),
        pytest.param(["/...", "/a/...", "/a/b/..."], "/a/b/c", 2, id="longest prefix"),
        pytest.param(["/a/b/...", "/a/...", "/..."], "/a/c", 1, id="whole parts"),
        pytest.param(["/:x", "/:x.json"], "/a.json", 1, id="name with suffix before name"),
        pytest.param(["/a", "/b", "/a"], "/a", 2, id="later of two written the same"),
        pytest.param(["/a", "/a/"], "/a", 0, id="earlier if they differ in a slash"),
        pytest.param(["/:x", "/:y"], "/a", 0, id="earlier if they differ in a name"),
        pytest.param(["/a/...", "/a/*"], "/a/b", 0, id="earlier of two wildcards"),
    ],
)
def test_precedence(routes: list[str], path: str, used: int) -> None:
    router = PatternRouter("/", [(f"c{index}", route) for index, route in enumerate(routes)])
    match = router.match(path)
    assert match is not None
    assert match.route.index == used


@pytest.mark.parametrize(
    ("routes", "shadowed"),
    [
        (["/a", "/b"], []),
        (["/a", "/a"], [(0, 1)]),
        (["/a", "/a/"], [(1, 0)]),
        (["/:x", "/:y"], [(1, 0)]),
        (["/a", "/a/", "/a"], [(0, 2), (2, 1)]),
        (["/a/...", "/a"], []),
    ],
)
def test_shadowed(routes: list[str], shadowed: list[tuple[int, int]]) -> None:
    router = PatternRouter("/", [(f"c{index}", route) for index, route in enumerate(routes)])
    assert [(s.route.index, s.used.index) for s in router.shadowed] == shadowed


def test_what_requests_are_told() -> None:
    route = PatternRouter("/base", [("c", "/a/:x/...")]).routes[0]
    assert (route.base_path, route.matched_route) == ("/", "/base/a/:x/...")
    assert (route.raw_component_route, route.component_route) == ("/a/:x/...", "/a/:x")
    assert (route.pattern.path, route.pattern.wildcard) == ("/base/a/:x", True)


def test_base() -> None:
    router = PatternRouter("/base/", [("c", "/a")])
    assert router.match("/base/a") is not None
    assert router.match("/a") is None


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
