"""Routes of manifest version 1."""

from __future__ import annotations

from typing import Final

from spin_rules.routing import Path, Routing

ROUTES_V1: Final = (
    # A route without a wildcard is one path; one trailing slash makes no difference.
    Routing(["/foo"], sample=True, paths=[
        Path("the path itself", "/foo", 0, ""),
        Path("one trailing slash", "/foo/", 0, "/"),
        Path("two are another path", "/foo//", None),
        Path("nothing below it", "/foo/bar", None),
        Path("no longer name", "/foobar", None),
        Path("case counts", "/Foo", None),
        Path("an escape is no letter", "/%66oo", None),
        Path("a slash in front counts", "//foo", None),
        Path("the query does not", "/foo?/bar", 0, ""),
        Path("a whole URL is its path", "http://test/foo", 0, ""),
        Path("the asterisk is no path", "*", None),
    ]),
    Routing(["/foo/"], [Path("a route's trailing slash is none", "/foo", 0, "")]),
    Routing(["/foo//"], [
        Path("two leave one", "/foo", None),
        Path("which the path has, too", "/foo//", 0, "/"),
    ]),
    # The root.
    Routing(["/"], [
        Path("the root", "/", 0, "/"),
        Path("an empty path is the root", "", 0, "/"),
        Path("two slashes are not", "//", None),
        Path("nothing below it", "/x", None),
    ]),
    Routing([""], [Path("an empty route is the root", "/", 0, "/")]),
    # Spin 1.2.1: a route without a leading slash gets one.
    Routing(["foo"], [Path("a leading slash is added", "/foo", 0, "")]),
    Routing(["foo"], [Path("also behind a base", "/base/foo", 0, "")], base="/base"),
    # Base and route are joined, each without one trailing slash.
    Routing(["/foo"], [Path("no base", "/foo", 0, "")], base=""),
    Routing(["/foo", "/", "/bar/..."], base="/base", sample=True, paths=[
        Path("base and route", "/base/foo", 0, ""),
        Path("no route without the base", "/foo", None),
        Path("the root below the base", "/base", 1, ""),
        Path("and its slash", "/base/", 1, "/"),
        Path("a wildcard below the base", "/base/bar/x", 2, "/x"),
    ]),
    Routing(["/foo"], [Path("a base's trailing slash is none", "/base/foo", 0, "")], base="/base/"),
    Routing(["/foo"], [Path("two leave one", "/base//foo", 0, "")], base="/base//"),
    Routing(["/..."], base="/base", paths=[
        Path("everything below the base", "/base/x", 0, "/x"),
        Path("which ends at a slash", "/basex", None),
    ]),
    # A wildcard matches its prefix, and the prefix and whatever begins with a slash.
    Routing(["/..."], [
        Path("the root", "/", 0, "/"),
        Path("an empty path", "", 0, "/"),
        Path("everything", "/a/b/", 0, "/a/b/"),
        Path("slashes stay", "//a", 0, "//a"),
        Path("the asterisk is no path", "*", None),
    ]),
    Routing(["/foo/..."], [
        Path("the prefix itself", "/foo", 0, ""),
        Path("the prefix and a slash", "/foo/", 0, "/"),
        Path("below the prefix", "/foo/bar", 0, "/bar"),
        Path("a trailing slash stays in the rest", "/foo/bar/", 0, "/bar/"),
        Path("two slashes do", "/foo//bar", 0, "//bar"),
        Path("the prefix ends at a slash", "/foobar", None),
        Path("dot segments are text", "/foo/../bar", 0, "/../bar"),
    ]),
    Routing(["/foo/.../"], [Path("a wildcard's trailing slash is none", "/foo/bar", 0, "/bar")]),
    # Nothing else has a meaning.
    Routing(["/foo..."], [
        Path("dots behind text are text", "/foo/x", None),
        Path("and match themselves", "/foo...", 0, ""),
    ]),
    Routing(["/:id"], [
        Path("names are text", "/7", None),
        Path("and match themselves", "/:id", 0, ""),
    ]),
    Routing(["/a%20b", "/a/b", "/a%2fb"], [
        Path("escapes match escapes", "/a%20b", 0, ""),
        Path("nothing is decoded", "/a%2Fb", None),
        Path("case of escapes counts", "/a%2fb", 2, ""),
    ]),
    # Exact comes before wildcard, a longer wildcard before a shorter one, whatever the order.
    Routing(["/...", "/a"], [Path("exact behind a wildcard", "/a", 1, "")]),
    Routing(["/a", "/..."], [Path("exact before a wildcard", "/a", 0, "")]),
    Routing(["/a/b/...", "/a/b"], [
        Path("exact beats the wildcard of its path", "/a/b", 1, ""),
        Path("with a trailing slash, too", "/a/b/", 1, "/"),
        Path("which has the rest", "/a/b/c", 0, "/c"),
    ]),
    Routing(["/...", "/exact", "/a/...", "/a/b/..."], sample=True, paths=[
        Path("exact", "/exact", 1, ""),
        Path("below it is the wildcard's", "/exact/more", 0, "/exact/more"),
        Path("the longer prefix", "/a/b/c", 3, "/c"),
        Path("which itself belongs to it", "/a/b", 3, ""),
        Path("prefixes are whole parts", "/a/bc", 2, "/bc"),
        Path("everything else", "/ab", 0, "/ab"),
        Path("an escape is other text", "/%65xact", 0, "/%65xact"),
        Path("slashes are", "//exact", 0, "//exact"),
        Path("a query is no path", "/a?x=/exact", 2, ""),
    ]),
    # Of equal routes the last one is served, and the log says so.
    Routing(["/a", "/a"], [Path("the later of two", "/a", 1, "")], shadowed=[(0, 1)], sample=True),
    Routing(["/a", "/a/"], [Path("a slash is no difference", "/a", 1, "")], shadowed=[(0, 1)]),
    Routing(["/a/...", "/a/.../"], shadowed=[(0, 1)], paths=[
        Path("the later of two wildcards", "/a/b", 1, "/b"),
    ]),
    Routing(["/x", "/y/...", "/x/", "/y/...", "/x/..."], shadowed=[(0, 2), (1, 3)], paths=[
        Path("exact and wildcard are not equal", "/x", 2, ""),
        Path("the wildcard has its own", "/x/z", 4, "/z"),
    ]),
)  # fmt: skip
"""Sources: Spin 1.5 crates/http/src/routes.rs and its tests."""
