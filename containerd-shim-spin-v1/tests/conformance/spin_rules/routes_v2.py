"""Routes of manifest version 2."""

from __future__ import annotations

from typing import Final

from spin_rules.routing import Path, Routing

ROUTES_V2: Final = (
    # A route without open parts is one path; slashes around it make no difference.
    Routing(["/foo"], [
        Path("the path itself", "/foo", 0, ""),
        Path("one trailing slash", "/foo/", 0, ""),
        Path("two trailing slashes", "/foo//", 0, ""),
        Path("two leading slashes", "//foo", 0, ""),
        Path("nothing below it", "/foo/bar", None),
        Path("no longer name", "/foobar", None),
        Path("case counts", "/Foo", None),
        Path("an escape is no letter", "/%66oo", None),
        Path("the query does not", "/foo?/bar", 0, ""),
        Path("a whole URL is its path", "http://test/foo", 0, ""),
        Path("the asterisk is no path", "*", None),
    ]),
    Routing(["/foo/"], [Path("a route's trailing slash is none", "/foo", 0, "")]),
    Routing(["foo"], [Path("a leading slash is added", "/foo", 0, "")]),
    Routing(["/"], [
        Path("the root", "/", 0, ""),
        Path("an empty path is the root", "", 0, ""),
        Path("slashes are the root", "//", 0, ""),
        Path("nothing below it", "/x", None),
    ]),
    Routing(["/a/b"], [Path("a slash inside counts", "/a//b", None)]),
    Routing(["/a//b"], [Path("but not in a route", "/a/b", 0, "")]),
    # `/...` and `/*` are any number of parts.
    Routing(["/..."], [
        Path("the root", "/", 0, "/"),
        Path("everything", "/a/b/", 0, "/a/b/"),
        Path("the asterisk is no path", "*", None),
    ]),
    Routing(["/*"], [Path("an asterisk is the same", "/a/b/", 0, "/a/b/")]),
    Routing(["/foo/..."], sample=True, paths=[
        Path("the prefix itself", "/foo", 0, ""),
        Path("the prefix and a slash", "/foo/", 0, "/"),
        Path("below the prefix", "/foo/bar", 0, "/bar"),
        Path("a trailing slash stays in the rest", "/foo/bar/", 0, "/bar/"),
        Path("two slashes do", "/foo//bar", 0, "//bar"),
        Path("the prefix ends at a slash", "/foobar", None),
    ]),
    Routing(["/foo/.../"], [Path("a wildcard's trailing slash is none", "/foo/bar", 0, "/bar")]),
    Routing(["/foo..."], [
        Path("dots behind text are text", "/foo/x", None),
        Path("and match themselves", "/foo...", 0, ""),
    ]),
    Routing(["/a%20b", "/a/b", "/a/.b", "/a.b"], [
        Path("escapes match escapes", "/a%20b", 0, ""),
        Path("nothing is decoded", "/a%2Fb", None),
        Path("a leading dot is text", "/a/.b", 2, ""),
        Path("a dot is no pattern", "/aXb", None),
    ]),
    # `:name` is one part.
    Routing(["/:id"], sample=True, paths=[
        Path("any part", "/7", 0, "", {"id": "7"}),
        Path("a trailing slash is not of it", "/7/", 0, "", {"id": "7"}),
        Path("dots are", "/a.b", 0, "", {"id": "a.b"}),
        Path("one part", "/a/b", None),
        Path("not an empty one", "/", None),
    ]),
    Routing(["/a/:id"], [
        Path("nor at the end", "/a", None),
        Path("nor behind slashes", "/a//", None),
    ]),
    Routing(["/a/:id/b"], [Path("but between slashes", "/a//b", 0, "", {"id": ""})]),
    Routing(["/a/:one/b/:two_x"], [
        Path("two names", "/a/1/b/2", 0, "", {"one": "1", "two_x": "2"}),
    ]),
    Routing(["/a/:one/..."], [
        Path("a name before a wildcard", "/a/1/b/2/", 0, "/b/2/", {"one": "1"}),
        Path("with nothing below", "/a/1", 0, "", {"one": "1"}),
    ]),
    Routing(["/:file.json"], [
        Path("a name goes to the first dot if the part goes on", "/x.json", 0, "", {"file": "x"}),
        Path("so there is none in it", "/x.y.json", None),
        Path("what follows has to be there", "/x", None),
    ]),
    Routing(["/:a%20"], [Path("nothing of it is decoded", "/%20", 0, "", {"a%20": "%20"})]),
    # The base is part of every route.
    Routing(["/a"], base="/base/", paths=[
        Path("base and route", "/base/a", 0, ""),
        Path("no route without the base", "/a", None),
    ]),
    # The first difference decides: text, then name, then wildcard.
    Routing(["/...", "/a"], [Path("text before wildcard", "/a", 1)]),
    Routing(["/a/...", "/a"], [Path("text before the wildcard of its path", "/a", 1)]),
    Routing(["/:x", "/a"], [Path("text before name", "/a", 1)]),
    Routing(["/...", "/:x"], [Path("name before wildcard", "/a", 1, "", {"x": "a"})]),
    Routing(["/:x/b", "/a/:y"], sample=True, paths=[
        Path("the first difference decides", "/a/b", 1, "", {"y": "b"}),
        Path("the other is there for the rest", "/c/b", 0, "", {"x": "c"}),
    ]),
    Routing(["/:x/b", "/a/..."], [Path("even for a wildcard", "/a/b", 1, "/b")]),
    Routing(["/...", "/a/...", "/a/b/..."], [Path("the longest prefix", "/a/b/c", 2, "/c")]),
    Routing(["/a/b/...", "/a/...", "/..."], [Path("of whole parts", "/a/c", 1, "/c")]),
    Routing(["/:x", "/:x.json"], [
        Path("a name and text before a name", "/a.json", 1, "", {"x": "a"}),
    ]),
    # Of routes written the same the later one is served, of others that match the same the earlier.
    Routing(["/a", "/b", "/a"], [Path("the later of the same", "/a", 2)], shadowed=[(0, 2)]),
    Routing(["/a", "/a/"], [Path("the earlier, by a slash", "/a", 0)], shadowed=[(1, 0)]),
    Routing(["/:x", "/:y"], shadowed=[(1, 0)], sample=True, paths=[
        Path("the earlier, by a name", "/a", 0, "", {"x": "a"}),
    ]),
    Routing(["/a/...", "/a/*"], shadowed=[(1, 0)], paths=[
        Path("the earlier of two wildcards", "/a/b", 0, "/b"),
    ]),
    Routing(["/a", "/a/", "/a"], shadowed=[(0, 2), (2, 1)], paths=[
        Path("one of three", "/a", 1),
    ]),
)  # fmt: skip
"""Sources: Spin 3.6 crates/routes/src/lib.rs, routefinder 0.5.4 and its tests."""
