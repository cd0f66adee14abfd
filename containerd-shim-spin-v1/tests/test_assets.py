"""The copies that are made of single files: where, of what, and that they go away."""

from __future__ import annotations

from pathlib import Path

import pytest

from containerd_shim_spin_v1.files.assets import Assets
from containerd_shim_spin_v1.files.plan import FilePlan
from containerd_shimkit import scratch
from containerd_shimkit.errors import ManifestError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies go."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr(scratch, "PLACES", (str(directory),))
    return directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "image").mkdir()
    path = tmp_path / "image" / "file"
    path.write_text("content")
    return path


def test_directories_are_not_copied(place: Path, source: Path) -> None:
    plan = FilePlan(direct=((source.parent, "/site"),))
    assert Assets().place("one", plan) == [(str(source.parent), "/site")]
    assert list(place.iterdir()) == []


def test_nothing_to_show_is_nothing(place: Path) -> None:
    assert Assets().place("one", FilePlan()) == []
    assert list(place.iterdir()) == []


def test_files_are_copied_below_the_root(place: Path, source: Path) -> None:
    plan = FilePlan(copies=((source, "/a"), (source, "/deep/er/b")))
    ((directory, guest),) = Assets().place("one", plan)
    assert guest == "/"
    assert Path(directory).is_relative_to(place)
    assert (Path(directory) / "a").read_text() == "content"
    assert (Path(directory) / "deep" / "er" / "b").read_text() == "content"


def test_components_have_their_own_copies(place: Path, source: Path) -> None:
    assets = Assets()
    ((first, _),) = assets.place("one", FilePlan(copies=((source, "/a"),)))
    ((second, _),) = assets.place("two", FilePlan(copies=((source, "/b"),)))
    assert not (Path(first) / "b").exists()
    assert not (Path(second) / "a").exists()
    assert len(list(place.iterdir())) == 1


def test_remove_leaves_nothing_and_may_be_repeated(place: Path, source: Path) -> None:
    assets = Assets()
    assets.place("one", FilePlan(copies=((source, "/a"),)))
    assert place.stat().st_mode
    for _ in range(2):
        assets.remove()
        assert list(place.iterdir()) == []


def test_copies_are_for_the_containers_user_only(place: Path, source: Path) -> None:
    Assets().place("one", FilePlan(copies=((source, "/a"),)))
    (made,) = place.iterdir()
    assert made.stat().st_mode & 0o077 == 0


def test_second_place_is_used_where_the_first_is_not_writable(
    place: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "PLACES", ("/proc/nowhere", str(place)))
    ((directory, _),) = Assets().place("one", FilePlan(copies=((source, "/a"),)))
    assert Path(directory).is_relative_to(place)


def test_no_place_is_an_error_that_helps(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "PLACES", ("/proc/nowhere",))
    with pytest.raises(ManifestError, match=r"needs a writable directory .*emptyDir"):
        Assets().place("one", FilePlan(copies=((source, "/a"),)))


def test_file_that_cannot_be_copied_is_named(place: Path, source: Path) -> None:
    plan = FilePlan(copies=((source.parent / "gone", "/a"),))
    with pytest.raises(ManifestError, match=r"component 'one': files cannot be copied to .*gone"):
        Assets().place("one", plan)
