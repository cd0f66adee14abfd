"""Which files are workers, and which of them a path leads to: one line a rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from containerd_shim_wws_v1.project.files import ProjectFiles
from containerd_shim_wws_v1.project.globs import GlobError, PathGlob
from containerd_shim_wws_v1.project.routes import Route, RouteTable, normal_path
from containerd_shim_wws_v1.settings import format_prefix

# Files


def find(root: Path, files: list[str], *ignore: str, extensions: str = "js wasm") -> list[str]:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    found = ProjectFiles(root)
    try:
        return found.find_workers(extensions.split(), [PathGlob(each) for each in ignore])
    finally:
        found.close()


@pytest.mark.parametrize(
    ("file", "is_worker"),
    [
        ("index.js", True),
        ("a/b/c.wasm", True),
        ("public.js", True),
        ("a/public.js", True),
        ("my_worker.js", True),
        (".hidden.js", True),
        ("a.b.js", True),
        ("a.py", False),
        ("a.JS", False),
        ("js", False),
        (".js", False),
        ("a.js/readme.md", False),
        ("public/a.js", False),
        ("a/public/b/c.js", False),
        (".wws/a.js", False),
        ("_index.js", False),
        ("_internal/index.js", False),
        ("a/_b/c/d.js", False),
        ("a/_b.js", False),
    ],
)
def test_worker(tmp_path: Path, file: str, is_worker: bool) -> None:
    assert find(tmp_path, [file]) == ([file] if is_worker else [])


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("**/old/**", ["old", "old/a", "a/old", "a/old/b/c"], ["olds", "a/older/b"]),
        ("*/*pub*", ["a/public.js"], ["public.js", "a/b/public.js"]),
        ("lib/*.js", ["lib/a.js"], ["lib/a/b.js", "xlib/a.js"]),
        ("**/*.test.js", ["a.test.js", "a/b/c.test.js"], ["a.test.jsx"]),
        ("a?c", ["abc"], ["ac", "a/c"]),
        ("{lib,vendor}/**", ["lib", "vendor/x"], ["libs"]),
        ("[a-c]x", ["ax", "cx"], ["dx"]),
        ("[!a-c]x", ["dx"], ["ax", "/x"]),
        ("a/**/b", ["a/b", "a/x/y/b"], ["ab", "a/xb"]),
        ("**", ["a", "a/b"], []),
    ],
)
def test_glob(pattern: str, matches: list[str], others: list[str]) -> None:
    glob = PathGlob(pattern)
    assert [path for path in matches + others if glob.matches(path)] == matches


@pytest.mark.parametrize("pattern", ["a**", "[a", "{a", "[z-a]", "[]", "x" * 1001])
def test_glob_that_is_none(pattern: str) -> None:
    with pytest.raises(GlobError):
        PathGlob(pattern)


def test_ignored_files(tmp_path: Path) -> None:
    files = ["index.js", "lib/a.js", "b/c.js"]
    assert find(tmp_path, files, "lib/**", "**/c.*") == ["index.js"]


def test_links(tmp_path: Path) -> None:
    """A link is a file like others; what is behind it counts when it is read."""
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "passwd.js").symlink_to("/etc/passwd")
    assert find(tmp_path, ["real/a.js"]) == ["passwd.js", "real/a.js"]
    files = ProjectFiles(tmp_path)
    assert files.read_text("linked/a.js") == ""
    assert files.read_text("passwd.js") is None
    files.close()


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("containerd_shim_wws_v1.project.files.MAX_ENTRIES", 3)
    with pytest.raises(Exception, match="more than 3 files: WWS_IGNORE"):
        find(tmp_path, ["a.js", "b.js", "c.js", "d.js"])


# Paths of routes


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("index.js", "/"),
        ("examples/index.wasm", "/examples"),
        ("examples/api/index.js", "/examples/api"),
        ("examples/index/index.js", "/examples"),
        ("index/a.js", "/a"),
        ("handler.js", "/handler"),
        ("examples/api/handler.wasm", "/examples/api/handler"),
        ("a.b.js", "/a.b"),
        (".hidden.js", "/.hidden"),
        ("indexes.js", "/indexes"),
    ],
)
def test_path_of_a_file(file: str, path: str) -> None:
    assert Route.of(file).path == path


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        *(("", ""), ("/", ""), ("app", "/app"), ("/app", "/app"), ("app/", "/app")),
        *(("\\app", "/app"), ("/a/b/", "/a/b"), ("//a", "/a")),
    ],
)
def test_prefix(text: str, prefix: str) -> None:
    assert format_prefix(text) == prefix


@pytest.mark.parametrize(("file", "path"), [("index.js", "/app"), ("a/b.js", "/app/a/b")])
def test_path_with_prefix(file: str, path: str) -> None:
    assert Route.of(file, "/app").path == path


# Which route


@pytest.mark.parametrize(
    ("files", "path", "file"),
    [
        # Static
        ("index.js", "/", "index.js"),
        ("index.js", "/index", None),
        ("a.js", "/a", "a.js"),
        ("a.js", "/A", None),
        ("a.js", "/a/b", None),
        ("a.js", "/a.js", None),
        ("a.js", "/%61", "a.js"),
        ("a/b.js", "/a%2Fb", None),
        ("größe.js", "/gr%C3%B6%C3%9Fe", "größe.js"),
        ("a b.js", "/a%20b", "a b.js"),
        # Dynamic
        ("[id].js", "/5", "[id].js"),
        ("[id].js", "/5/6", None),
        ("[id].js", "/", "[id].js"),
        ("a/[id].js", "/b/5", None),
        ("[id].js a.js", "/a", "a.js"),
        ("[id]/b.js a/[id].js", "/a/b", "a/[id].js"),
        ("[id]/b.js a/[id].js", "/x/b", "[id]/b.js"),
        ("[a]/[b].js [a]/x.js", "/1/x", "[a]/x.js"),
        ("[b].js [a].js", "/1", "[a].js"),
        ("a-[id].js", "/a-[id]", "a-[id].js"),
        # Tails
        ("[...rest].js", "/a", "[...rest].js"),
        ("[...rest].js", "/a/b/c", "[...rest].js"),
        ("[...rest].js", "/", "[...rest].js"),
        ("a/[...rest].js", "/a", None),
        ("a/[...rest].js", "/b/c", None),
        ("a/[...rest].js [...rest].js", "/a/b", "a/[...rest].js"),
        ("a/[...rest].js [...rest].js", "/b/b", "[...rest].js"),
        ("[...rest].js [id].js", "/a", "[id].js"),
        ("[...rest].js [id].js", "/a/b", "[...rest].js"),
        ("[...rest].js a/b.js", "/a/b", "a/b.js"),
        ("[id]/[...rest].js a/[...rest].js", "/a/b", "a/[...rest].js"),
        # None of them
        ("a.js", "/a/../a", None),
        ("a.js", "/%00", None),
        ("a.js", "/%ff", None),
    ],
)
def test_route(files: str, path: str, file: str | None) -> None:
    names = files.split() if "a b" not in files else [files]
    found = RouteTable(map(Route.of, names)).find(path)
    assert (found[0].file if found else None) == file


def test_order_of_files_does_not_matter() -> None:
    files = ["[...t].js", "[a].js", "a/[...t].js", "a/[b]/c.js", "a.js", "a/[b].js", "[a]/b.js"]
    order = [route.file for route in RouteTable(map(Route.of, files)).routes]
    assert order == [route.file for route in RouteTable(map(Route.of, files[::-1])).routes]
    assert order == [
        *("a.js", "[a].js", "a/[b].js", "[a]/b.js", "a/[b]/c.js", "a/[...t].js", "[...t].js"),
    ]


@pytest.mark.parametrize(
    ("file", "path", "parameters"),
    [
        ("a.js", "/a", {}),
        ("[id].js", "/5", {"id": "5"}),
        ("[a]/x/[b].js", "/1/x/2", {"a": "1", "b": "2"}),
        ("[id].js", "/a%20b%C3%9F", {"id": "a bß"}),
        ("[id].js", "/a%2Fb%2bc%25d", {"id": "a%2Fb%2bc%25d"}),
        ("[id].js", "/%ff", {"id": "\ufffd"}),
        ("[...rest].js", "/a/b%20c/d", {"rest": "a/b c/d"}),
        ("[...rest].js", "/", {"rest": ""}),
        ("[id]/[...rest].js", "/1/2/3", {"id": "1", "rest": "2/3"}),
        ("x/[id]-[no].js", "/x/a-1", {"id": "a", "no": "1"}),
        ("[id]-[no].js", "/a-1-2", {"id": "a", "no": "1-2"}),
        ("[id]-[no].x.js", "/a-1.x", {"id": "a", "no": "1"}),
        ("[id]-[no].x.js", "/--1.x", {"id": "-", "no": "1"}),
        ("[a]/v[id].js", "/x/v1", {"a": "x", "id": "1"}),
        ("[a][b].js", "/123", {"a": "1", "b": "23"}),
        # What does not fit is given whole, as upstream's own check lets it pass.
        ("[id]-[no].x.js", "/other", {"id": "other", "no": "other"}),
        ("[id]-[no].js", "/-", {"id": "-", "no": "-"}),
    ],
)
def test_parameters(file: str, path: str, parameters: dict[str, str]) -> None:
    found = RouteTable([Route.of(file)]).find(path)
    assert found is not None
    assert found[1] == parameters


@pytest.mark.parametrize(
    "path",
    ["/" + "-" * 65_000, "/a" * 32_000, "/%61" * 16_000, "/%2f" * 16_000],
    ids=["one segment", "many segments", "encoded segments", "encoded slashes"],
)
def test_long_paths(path: str) -> None:
    """They hold nobody up: this would take minutes."""
    files = [f"[a{n}]-[b]-[c]-[d].x.js" for n in range(500)]
    table = RouteTable(map(Route.of, [*files, "a/a/[...rest].js", "[...all].js"]))
    for _ in range(20):
        assert table.find(path) is not None


@pytest.mark.parametrize(
    ("raw", "path"),
    [("/a/", "/a"), ("//a///b//", "/a/b"), ("/", "/"), ("//", "/"), ("/a", "/a"), ("", "/")],
)
def test_normal_path(raw: str, path: str) -> None:
    assert normal_path(raw) == path


def test_two_files_for_one_route() -> None:
    files = ["hello.wasm", "hello.js", "hello/index.js"]
    table = RouteTable(map(Route.of, files))
    found = table.find("/hello")
    assert found is not None
    assert found[0].file == "hello.js"
    assert [(route.file, first.file) for route, first in table.shadowed] == [
        ("hello.wasm", "hello.js"),
        ("hello/index.js", "hello.js"),
    ]
