"""The committed .wasm files are what their sources and Debian 12's toolchain make."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
MAKE = ("make", "--no-print-directory", "-f", "images/guests.mk")
GUEST_DIRECTORIES = (
    "images",
    "containerd-shim-spin-v1/tests/guests",
    "containerd-shim-slight-v1/tests/guests",
    "containerd-shim-wws-v1/tests/guests",
)
# No guests of their own: others have them as modules.
MODULES = "images/rust"
SOURCE_SUFFIXES = (".c", ".h", ".rs", ".mk")
# Set it, to anything, where the toolchain cannot be installed.
SKIP_VARIABLE = "SKIP_GUEST_BUILDS"


def make(*arguments: str, directory: Path) -> str:
    """Run the guests' makefile; fail the test with what the compiler said."""
    result = subprocess.run(
        [*MAKE, *arguments], cwd=directory, capture_output=True, text=True, timeout=110
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def installed_version(package: str) -> str:
    command = ["dpkg-query", "--show", "--showformat=${Version}", package]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, built in another place than the repository."""
    if os.environ.get(SKIP_VARIABLE):
        pytest.skip(f"{SKIP_VARIABLE} is set")
    packages = make("guests-packages", directory=REPOSITORY).split()
    missing = [p for p in packages if installed_version(p.partition("=")[0]) != p.partition("=")[2]]
    if missing:
        pytest.fail(
            f"cannot check the committed .wasm files: install {' '.join(missing)} "
            f"(`make packages-guests`), or set {SKIP_VARIABLE}=1"
        )
    copy = tmp_path_factory.mktemp("guests")
    for directory in GUEST_DIRECTORIES:
        for source in (REPOSITORY / directory).rglob("*"):
            if source.suffix in SOURCE_SUFFIXES:
                target = copy / source.relative_to(REPOSITORY)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    make(f"-j{os.cpu_count() or 1}", "guests", directory=copy)
    return copy


@pytest.mark.parametrize("guest", make("guests-list", directory=REPOSITORY).split())
def test_committed_guest_matches_its_source(rebuilt: Path, guest: str) -> None:
    if (rebuilt / guest).read_bytes() != (REPOSITORY / guest).read_bytes():
        pytest.fail(f"{guest} is not what its source makes: run `make guests` and commit it")


def test_every_source_is_built() -> None:
    sources = {
        str(source.relative_to(REPOSITORY).with_suffix(".wasm"))
        for directory in GUEST_DIRECTORIES
        for source in (REPOSITORY / directory).rglob("*")
        if source.suffix in (".c", ".rs") and source.parent != REPOSITORY / MODULES
    }
    assert sources == set(make("guests-list", directory=REPOSITORY).split())
