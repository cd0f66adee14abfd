from __future__ import annotations

import os
from pathlib import Path

import pytest

from containerd_shim_spin_v1.files import plan as files
from containerd_shim_spin_v1.files.globs import glob_fault, path_matcher
from containerd_shim_spin_v1.files.plan import FilePlan, plan_files
from containerd_shim_spin_v1.manifest.model import (
    Component,
    FileEntry,
    FileGlob,
    FilePlacement,
    FileSource,
)
from containerd_shimkit.errors import ManifestError

TREE = [
    "app.wasm",
    "static/.hidden",
    "static/a.css",
    "static/b.txt",
    "static/sub/a.css",
    "static/sub/deep/c.css",
    "other/a.css",
    "other/[x].txt",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in TREE:
        make_file(root / name)
    make_file(tmp_path / "outside/secret")
    return root


def make_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.name)


def plan(root: Path, entries: list[FileEntry], exclude: tuple[str, ...] = ()) -> FilePlan:
    return plan_files(
        Component(
            id="c",
            source=FileSource("app.wasm"),
            files=tuple(entries),
            exclude_files=exclude,
        ),
        root,
    )


def copied(found: FilePlan) -> list[str]:
    return [guest for _, guest in found.copies]


@pytest.mark.parametrize(
    ("pattern", "guests"),
    [
        pytest.param("static/a.css", ["static/a.css"], id="one file"),
        pytest.param("./static//a.css", ["static/a.css"], id="dots and slashes"),
        pytest.param("static/*", ["static/.hidden", "static/a.css", "static/b.txt"], id="star"),
        pytest.param("*", ["app.wasm"], id="star finds no directory's files"),
        pytest.param("*/a.css", ["other/a.css", "static/a.css"], id="star for a directory"),
        pytest.param("static/?.css", ["static/a.css"], id="question mark"),
        pytest.param("static/[ab].*", ["static/a.css", "static/b.txt"], id="set"),
        pytest.param("static/[!a].*", ["static/b.txt"], id="negated set"),
        pytest.param("static/[b-z]*", ["static/b.txt"], id="range"),
        pytest.param("other/[[]x[]].txt", ["other/[x].txt"], id="brackets"),
        pytest.param("other/{a,b}.css", [], id="no braces"),
        pytest.param("static/A.css", [], id="case counts"),
        pytest.param(
            "**/*.css",
            ["other/a.css", "static/a.css", "static/sub/a.css", "static/sub/deep/c.css"],
            id="any depth",
        ),
        pytest.param("static/**/a.css", ["static/a.css", "static/sub/a.css"], id="below"),
        pytest.param("**/**/**/deep/*", ["static/sub/deep/c.css"], id="stars collapse"),
        pytest.param("**/sub/**/*.css", ["static/sub/a.css", "static/sub/deep/c.css"], id="twice"),
        pytest.param("**/*", sorted(TREE), id="everything"),
        pytest.param("static/**", [], id="two stars at the end find no file"),
        pytest.param("static", [], id="a directory is no file"),
        pytest.param("static/", [], id="a slash wants a directory"),
        pytest.param("static/a.css/", [], id="a slash wants no file"),
        pytest.param("none/*", [], id="not there"),
    ],
)
def test_glob_finds(root: Path, pattern: str, guests: list[str]) -> None:
    found = plan(root, [FileGlob(pattern)])
    assert found.direct == ()
    assert copied(found) == [f"/{guest}" for guest in guests]
    assert [host for host, _ in found.copies] == [root / guest for guest in guests]
    assert found.unmatched == (() if guests else (pattern,))


@pytest.mark.parametrize(
    ("exclude", "guests"),
    [
        pytest.param("static/a.css", ["/static/.hidden", "/static/b.txt"], id="one"),
        pytest.param("*.css", ["/static/.hidden", "/static/b.txt"], id="star crosses directories"),
        pytest.param("static/**", [], id="two stars exclude files"),
        pytest.param("**/b.txt", ["/static/.hidden", "/static/a.css"], id="any depth"),
        pytest.param("./static/a*", ["/static/.hidden", "/static/b.txt"], id="leading dot"),
        pytest.param(
            "static", ["/static/.hidden", "/static/a.css", "/static/b.txt"], id="not a directory"
        ),
    ],
)
def test_glob_without_excluded(root: Path, exclude: str, guests: list[str]) -> None:
    assert copied(plan(root, [FileGlob("static/*")], (exclude,))) == guests


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("a/*.txt", "a/b/c.txt", True),
        ("a?b", "a/b", True),
        ("a[/]b", "a/b", False),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("**", "x", True),
        ("**/b", "b", True),
        ("**/b", "a/b", True),
        ("**/b", "ab", False),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("[b-a]", "a", False),
        ("[a-]", "-", True),
        ("[]]", "]", True),
        ("[!]]", "]", False),
        ("[^a]", "^", True),
        ("a.b", "axb", False),
        ("a", "a\n", False),
        ("[\\d]", "5", False),
    ],
)
def test_path_matcher(pattern: str, path: str, expected: bool) -> None:
    if glob_fault(pattern) is None:
        assert path_matcher(pattern)(path) is expected
    else:
        assert not expected


def test_placement_is_mounted_as_it_is(root: Path) -> None:
    found = plan(root, [FilePlacement("static", "/assets/")])
    assert found == FilePlan(direct=((root / "static", "/assets"),))


@pytest.mark.parametrize(
    ("source", "destination", "guest"),
    [
        (".", "/", "/"),
        ("./static/", "//a//b/", "/a/b"),
        ("static/../other", "/o/./p", "/o/p"),
    ],
)
def test_placement_paths_are_made_plain(
    root: Path, source: str, destination: str, guest: str
) -> None:
    found = plan(root, [FilePlacement(source, destination)])
    assert found.direct == (((root / source).resolve(), guest),)


def test_placement_with_exclusions_is_copied(root: Path) -> None:
    found = plan(root, [FilePlacement("static", "/s")], ("static/sub/*",))
    assert found.direct == ()
    assert copied(found) == ["/s/.hidden", "/s/a.css", "/s/b.txt"]


def test_placement_without_excluded_files_stays_mounted(root: Path) -> None:
    found = plan(root, [FilePlacement("static", "/s")], ("other/*",))
    assert found == FilePlan(direct=((root / "static", "/s"),))


@pytest.mark.parametrize(
    ("entries", "direct"),
    [
        pytest.param(
            [FilePlacement("static", "/s"), FileGlob("other/*")], ["/s"], id="apart from copies"
        ),
        pytest.param([FilePlacement("static", "/"), FileGlob("other/*")], [], id="copies below"),
        pytest.param(
            [FilePlacement("static", "/a"), FilePlacement("other", "/b")], ["/a", "/b"], id="two"
        ),
        pytest.param([FilePlacement("static", "/a"), FilePlacement("other", "/a")], [], id="same"),
        pytest.param(
            [FilePlacement("static", "/a"), FilePlacement("other", "/a/b")], [], id="nested"
        ),
        pytest.param(
            [FilePlacement("static", "/a"), FilePlacement("other", "/ab")],
            ["/a", "/ab"],
            id="alike",
        ),
        pytest.param(
            [FilePlacement("static", "/"), FilePlacement("other", "/x/y"), FileGlob("app.wasm")],
            [],
            id="one after another",
        ),
    ],
)
def test_overlapping_placements_are_copied(
    root: Path, entries: list[FileEntry], direct: list[str]
) -> None:
    found = plan(root, entries)
    assert [guest for _, guest in found.direct] == direct
    everything = len(copied(found)) + sum(1 for d, _ in found.direct for p in d.rglob("*.*"))
    assert everything >= 2


@pytest.mark.parametrize("order", [1, -1], ids=["static last", "other last"])
def test_later_entry_wins(root: Path, order: int) -> None:
    entries: list[FileEntry] = [FilePlacement("other", "/"), FilePlacement("static", "/")]
    hosts = {guest: host for host, guest in plan(root, entries[::order]).copies}
    assert hosts["/a.css"] == root / ("static" if order == 1 else "other") / "a.css"


def test_symlinks_inside_the_root_are_followed(root: Path) -> None:
    (root / "links").mkdir()
    (root / "links/file").symlink_to("../static/a.css")
    (root / "links/dir").symlink_to(root / "other")
    found = plan(root, [FileGlob("links/**/*")])
    assert found.copies == (
        (root / "other/[x].txt", "/links/dir/[x].txt"),
        (root / "other/a.css", "/links/dir/a.css"),
        (root / "static/a.css", "/links/file"),
    )


@pytest.mark.parametrize(
    "target", ["../../outside/secret", "../../outside", "gone", "link", "/", ".", "..", "/dev/null"]
)
def test_symlink_that_leads_nowhere_good_is_left_out(root: Path, target: str) -> None:
    (root / "links").mkdir()
    (root / "links/link").symlink_to(target)
    found = plan(root, [FileGlob("links/link"), FileGlob("links/link/*"), FileGlob("links/**/*")])
    assert not [guest for guest in copied(found) if "secret" in guest or guest == "/links/link"]
    assert all(host.is_relative_to(root) for host, _ in found.copies)


def test_links_in_a_circle_end(root: Path) -> None:
    for name, target in (("p", "q"), ("q", "p")):
        (root / name).mkdir()
        (root / name / "link").symlink_to(f"../{target}")
        make_file(root / name / "file")
    assert copied(plan(root, [FileGlob("p/**/*")])) == ["/p/file", "/p/link/file"]


def test_excluded_file_is_not_reached_by_a_link(root: Path) -> None:
    (root / "other/alias").symlink_to("../static/b.txt")
    found = plan(root, [FileGlob("other/*")], ("static/b.txt",))
    assert "/other/alias" not in copied(found)


def test_single_file_is_placed(root: Path) -> None:
    """``exclude_files`` are for what patterns and directories hold."""
    found = plan(root, [FilePlacement("static/a.css", "/x/./style.css")], ("static/*",))
    assert found == FilePlan(copies=((root.resolve() / "static/a.css", "/x/style.css"),))


def test_special_files_are_left_out(root: Path) -> None:
    os.mkfifo(root / "static/fifo")
    assert "/static/fifo" not in copied(plan(root, [FileGlob("static/*")]))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        pytest.param(FileGlob("/etc/*"), "must be relative", id="absolute glob"),
        pytest.param(FileGlob("../*"), "must not contain `..`", id="glob up"),
        pytest.param(FilePlacement("gone", "/"), "source `gone` not found", id="not there"),
        pytest.param(FilePlacement("a.css", "/"), "not found", id="not there either"),
        pytest.param(FilePlacement("app.wasm", "/"), "is not a directory", id="a file"),
        pytest.param(FilePlacement("/etc", "/"), "source must be relative", id="absolute source"),
        pytest.param(FilePlacement("../outside", "/"), "leads out of", id="source up"),
        pytest.param(FilePlacement("escape", "/"), "leads out of", id="source by link"),
        pytest.param(FilePlacement("loop", "/"), "not found", id="source in a circle"),
        pytest.param(FilePlacement("static", "x"), "must be absolute", id="destination"),
        pytest.param(FilePlacement("static", "/x/.."), "not contain `..`", id="destination up"),
    ],
)
def test_bad_entry_is_refused(root: Path, entry: FileEntry, message: str) -> None:
    (root / "escape").symlink_to("../outside")
    (root / "loop").symlink_to("loop")
    with pytest.raises(ManifestError) as caught:
        plan(root, [entry])
    assert message in str(caught.value)
    assert str(caught.value).startswith('component "c": files entry `')


def test_dots_after_a_link_mean_the_real_directory(root: Path) -> None:
    """``up/../..`` looks as if it left the root, and leads to ``static``."""
    (root / "up").symlink_to("static/sub/deep")
    found = plan(root, [FilePlacement("up/../..", "/s")])
    assert found.direct == ((root / "static", "/s"),)
    found = plan(root, [FilePlacement("up/../..", "/s")], ("static/*.css",))
    assert copied(found) == ["/s/.hidden", "/s/b.txt"]


def test_unreadable_directory_names_the_entry(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    entries: list[FileEntry] = [FilePlacement("static", "/s"), FilePlacement("other", "/s")]
    with pytest.raises(ManifestError, match=r"entry `static` at `/s`: cannot read .*denied"):
        plan(root, entries)


def test_bad_entry_names_its_place(root: Path) -> None:
    entry = FilePlacement("gone", "/", where='spin.toml:8:10: component[0] ("c").files[0]')
    with pytest.raises(
        ManifestError, match=r'^spin.toml:8:10: component\[0\] \("c"\).files\[0\]: '
    ):
        plan(root, [entry])


def test_bad_exclusion_is_refused(root: Path) -> None:
    with pytest.raises(ManifestError, match="exclude_files entry `/x`: must be relative"):
        plan(root, [FileGlob("*")], ("/x",))


def test_file_where_a_directory_is_wanted_is_refused(root: Path) -> None:
    entries: list[FileEntry] = [FileGlob("app.wasm"), FilePlacement("static", "/app.wasm/x")]
    with pytest.raises(ManifestError, match="both a file and the directory"):
        plan(root, entries)


def test_too_many_entries_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ENTRIES", 10)
    with pytest.raises(ManifestError, match="more than 10 files and directories"):
        plan(root, [FileGlob("**/*")])


def test_whole_root_is_mounted_unread(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A placement that nothing overlaps costs nothing however large it is."""
    monkeypatch.setattr(files, "MAX_ENTRIES", 0)
    assert plan(root, [FilePlacement(".", "/")]).direct == ((root, "/"),)
