"""The images of this repository, built by the tool that ``make images`` runs."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from build_images import find_images

REPOSITORY = Path(__file__).parents[3]
TOOL = REPOSITORY / "shared" / "tools" / "build_images.py"
IMAGES = find_images(REPOSITORY / "images")


def build(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_spin_image_is_smaller_than_100_kilobytes(tmp_path: Path) -> None:
    result = build("--output", str(tmp_path), "spin")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "spin.tar").stat().st_size < 100_000


def test_all_images_are_built_without_names(tmp_path: Path) -> None:
    assert build("--output", str(tmp_path)).returncode == 0
    assert sorted(archive.stem for archive in tmp_path.iterdir()) == sorted(IMAGES)
    assert all(tarfile.is_tarfile(archive) for archive in tmp_path.iterdir())


def test_missing_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    manifest = 'entrypoint = ["/"]\nfiles = [{ source = "none.wasm", path = "a.wasm" }]\n'
    (tmp_path / "broken" / "image.toml").write_text(manifest)
    result = build("--images", str(tmp_path), "--output", str(tmp_path), "broken")
    assert result.returncode == 66
    assert "broken/none.wasm: No such file or directory" in result.stderr


def test_image_in_another_ones_directory_has_both_names() -> None:
    assert IMAGES["spin-redis-hello"] == REPOSITORY / "images" / "spin" / "redis-hello"


@pytest.mark.parametrize("directory", IMAGES.values(), ids=IMAGES.keys())
def test_dockerfile_copies_the_same_files(directory: Path) -> None:
    copies = re.findall(r"^COPY (\S+) /(\S*)$", (directory / "Dockerfile").read_text(), re.M)
    by_docker = {source: target + Path(source).name for source, target in copies}
    settings = tomllib.loads((directory / "image.toml").read_text())
    assert by_docker == {file["source"]: file["path"] for file in settings["files"]}
