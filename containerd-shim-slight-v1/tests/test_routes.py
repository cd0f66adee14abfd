"""Which route a path is for, and the parameters it has."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shim_slight_v1.http.routes import MAX_ROUTES, Route, Router, RouteTable

Found = dict[str, str] | None


def find(pattern: str, path: str) -> Found:
    found = RouteTable([Route("GET", pattern, "h")]).find("GET", path.encode())
    return None if found is None else dict(found[1])


@pytest.mark.parametrize(
    ("pattern", "path", "parameters"),
    [
        ("/hello", "/hello", {}),
        ("/hello", "/hello/", {}),
        ("/hello/", "/hello", {}),
        ("/hello", "/hello//", None),
        ("/hello", "/Hello", None),
        ("/hello", "/hell", None),
        ("/hello", "/hello/x", None),
        ("/", "/", {}),
        ("", "/", {}),
        ("/", "/x", None),
        ("hello", "/hello", None),
        ("/person/:name", "/person/x", {"name": "x"}),
        ("/person/:name", "/person/x/", {"name": "x"}),
        ("/person/:name", "/person/", None),
        ("/person/:name", "/person/x/y", None),
        ("/person/:name", "/person/J%C3%BCrgen%20X", {"name": "Jürgen X"}),
        ("/person/:name", "/person/a%2Fb", None),
        ("/person/:name", "/person/%FF", None),
        ("/:a/:b", "/1/2", {"a": "1", "b": "2"}),
        ("/:a/:a", "/1/2", {"a": "2"}),
        ("/:file.:kind", "/a.tar.gz", {"file": "a.tar", "kind": "gz"}),
        ("/:file.json", "/a.json", {"file": "a"}),
        ("/:file.json", "/.json", None),
        ("/x:id", "/x12", {"id": "12"}),
        ("/files/*", "/files/a/b", {"*": "a/b"}),
        ("/files/*", "/files/", None),
        ("/files/*", "/files//", {"*": ""}),
        ("*", "/a/b", {"*": "/a/b"}),
        ("/*/x", "/a/x/b/x", {"*": "a/x/b"}),
        ("/*/:id", "/a/b/c", {"*": "a/b", "id": "c"}),
        ("/:id/*", "/a/b/c", {"id": "a", "*": "b/c"}),
        ("/**", "/ab", {"*": ""}),
        ("/a+b", "/a+b", {}),
        ("/a.b", "/axb", None),
        ("/:", "/:", {}),
    ],
)
def test_pattern(pattern: str, path: str, parameters: Found) -> None:
    assert find(pattern, path) == parameters


def as_regex(pattern: str) -> tuple[str, list[str]]:
    names, regex, at = [], "", 0
    for found in re.finditer(r":([^/.]+)|\*", pattern, re.S):
        regex += re.escape(pattern[at : found.start()])
        regex += "(.*)" if found[0] == "*" else "([^/]+)"
        names.append(found[1] or "*")
        at = found.end()
    return f"{regex}{re.escape(pattern[at:])}", names


@given(
    st.lists(st.sampled_from(["/", "a", ".", "*", ":x", ":y"]), max_size=7).map("".join),
    st.text("/a.b", max_size=12),
)
def test_it_is_what_the_regular_expression_says(pattern: str, path: str) -> None:
    regex, names = as_regex(f"{pattern.removesuffix('/')}/")
    decoded = path if path.endswith("/") else f"{path}/"
    found = re.fullmatch(regex, decoded, re.S)
    expected = None if found is None else dict(zip(names, found.groups(), strict=True))
    assert find(pattern, path) == expected


def test_hostile_paths_take_no_time() -> None:
    start = time.monotonic()
    assert find("/*a*a*a*a*a*b", "/" + "a" * 60_000) is None
    assert find("/:a.:b.:c.:d.x", "/" + "." * 60_000) is None
    assert time.monotonic() - start < 5


def test_a_long_path_of_none_of_many_routes_takes_no_time() -> None:
    table = RouteTable([Route("GET", f"/v{number}/:id", "h") for number in range(MAX_ROUTES)])
    start = time.monotonic()
    assert table.find("GET", b"/" + b"a" * 60_000) is None
    assert time.monotonic() - start < 5


def test_a_long_base_takes_no_time() -> None:
    start = time.monotonic()
    assert Router.with_base("a" * 200_000).base == "/" + "a" * 200_000
    assert time.monotonic() - start < 5


def test_the_first_route_of_the_method_is_taken() -> None:
    router = (
        Router()
        .add("PUT", "/a", "put")
        .add("GET", "/:x", "first")
        .add("GET", "/a", "second")
        .add("GET", "/a/b", "third_one")
    )
    table = RouteTable(router.routes)

    def handler(method: str, path: bytes) -> str | None:
        found = table.find(method, path)
        return None if found is None else found[0].export

    assert handler("GET", b"/a") == "first"
    assert handler("PUT", b"/a") == "put"
    assert handler("GET", b"/a/b") == "third-one"
    assert handler("DELETE", b"/a") is None


def test_a_router_stays_as_it_is() -> None:
    empty = Router()
    assert empty.add("GET", "/", "h").routes != ()
    assert empty.routes == ()


@pytest.mark.parametrize(
    ("base", "pattern"),
    [
        ("/api", "/api/x"),
        ("/api/", "/api/x"),
        ("api", "/api/x"),
        ("", "/x"),
        ("/", "/x"),
        ("http://localhost:3000", "/x"),
        ("http://localhost:3000/v1/", "/v1/x"),
        ("/:tenant", "/:tenant/x"),
    ],
)
def test_base(base: str, pattern: str) -> None:
    (route,) = Router.with_base(base).add("GET", "/x", "h").routes
    assert route.pattern == pattern


def test_too_many_routes() -> None:
    router = Router()
    for number in range(MAX_ROUTES):
        router = router.add("GET", f"/{number}", "h")
    with pytest.raises(ValueError, match="at most 1000 routes"):
        router.add("GET", "/", "h")
