"""The images of this repository, built by the tool that ``make images`` runs."""

from __future__ import annotations

import re
import shlex
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
    by_docker: dict[str, str] = {}
    for line in re.findall(r"^COPY (.*)$", (directory / "Dockerfile").read_text(), re.M):
        *sources, target = shlex.split(line)
        for source in sources:
            by_docker |= copied(directory, source, target.lstrip("/"))
    settings = tomllib.loads((directory / "image.toml").read_text())
    assert by_docker == {file["source"]: file["path"] for file in settings["files"]}


def copied(directory: Path, source: str, target: str) -> dict[str, str]:
    """Return what a COPY of one source does: files and where they are in the image."""
    path = directory / source
    if path.is_dir():
        files = [file.relative_to(path) for file in path.rglob("*") if file.is_file()]
        return {f"{source}/{file}": f"{target}/{file}" for file in files}
    return {source: target + path.name if target in ("", f"{target.rstrip('/')}/") else target}
