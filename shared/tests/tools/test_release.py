"""``make release``: what it writes is whole, the same each time, and says what is in it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import release
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator

ROOT = Path(__file__).parents[3]
CHANGELOG = """\
# Changelog

## [Unreleased]

### Added

- Something new.

## [1.0.0] - 2026-01-01

### Fixed

- Something old.
"""


@pytest.fixture
def changelog(tmp_path: Path) -> Path:
    path = tmp_path / "CHANGELOG.md"
    path.write_text(CHANGELOG)
    return path


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("1.0.0", "#### Fixed\n\n- Something old."),
        ("1.1.0", "#### Added\n\n- Something new."),
    ],
)
def test_notes_are_those_of_the_version(changelog: Path, version: str, text: str) -> None:
    assert release.section(changelog, version) == text


def test_archive_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    file = tmp_path / "shim"
    file.write_bytes(b"program")
    archives = [tmp_path / "1.tar.gz", tmp_path / "2.tar.gz"]
    for archive in archives:
        release.write_archive(archive, [(file, "containerd-shim-spin-v1", 0o755)])
        file.touch()
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with tarfile.open(archives[0]) as packed:
        (entry,) = packed.getmembers()
        assert (entry.name, entry.mode, entry.uid) == ("containerd-shim-spin-v1", 0o755, 0)


@pytest.mark.timeout(300)
def test_release(tmp_path: Path) -> None:
    missing = [p for p in release.SHIMS if not (ROOT / "dist" / p).exists()]
    if missing or not list((ROOT / "dist" / "images").glob("*.tar")):
        pytest.skip("needs dist: make build images")
    release.write_release(tmp_path / "release")
    files = {path.name: path for path in (tmp_path / "release").iterdir()}
    lines = [line.split("  ") for line in files.pop("SHA256SUMS").read_text().splitlines()]
    sums = {name: digest for digest, name in lines}
    assert sums == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    }
    names = sorted(files)
    assert [n for n in names if n.endswith(".whl")] == sorted(
        f"{name}-{release.version_of(ROOT / 'shared')}-py3-none-any.whl"
        for name in ("containerd_shimkit", *(shim.replace("-", "_") for shim in release.SHIMS))
    )
    assert {"spin.tar", "slight.tar", "RELEASE_NOTES.md"} <= files.keys()
    for shim in release.SHIMS:
        (archive,) = (path for name, path in files.items() if name.startswith(f"{shim}-linux-"))
        with tarfile.open(archive) as packed:
            assert packed.getnames() == [shim, "README.md", "LICENSE"]
    bill = files["sbom.cdx.json"].read_text()
    assert (
        make_schemabased_validator(OutputFormat.JSON, SchemaVersion.V1_6).validate_str(bill) is None
    )
    for name in ("wasmtime", "uvloop", "python"):
        assert f'"name": "{name}"' in bill


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github/workflows").glob("*.yml")))
def test_workflow_is_one(workflow: Path) -> None:
    command = ["check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(workflow)]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
