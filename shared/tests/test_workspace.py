"""The four distributions, their versions and the lock files agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SHIMS = ("containerd-shim-spin-v1", "containerd-shim-slight-v1", "containerd-shim-wws-v1")
LOCKS = ("requirements.lock", "requirements-dev.lock")


def project(directory: str) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / directory / "pyproject.toml").read_text())
    found: dict[str, Any] = table["project"]
    return found


def locked(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+) \\$", text, flags=re.MULTILINE))


@pytest.mark.parametrize("shim", SHIMS)
def test_shim_has_the_version_of_the_kit_and_requires_exactly_it(shim: str) -> None:
    version = project("shared")["version"]
    assert project(shim)["version"] == version
    assert f"containerd-shimkit=={version}" in project(shim)["dependencies"]


@pytest.mark.parametrize("shim", SHIMS)
def test_console_script_is_the_name_containerd_looks_for(shim: str) -> None:
    assert list(project(shim)["scripts"]) == [shim]


@pytest.mark.parametrize("lock", LOCKS)
def test_pins_of_the_kit_are_the_locked_versions(lock: str) -> None:
    pins = dict(line.split("==") for line in project("shared")["dependencies"])
    assert {name: locked(lock)[name] for name in pins} == pins


def test_what_is_shipped_is_what_is_tested() -> None:
    """Every runtime version is the one of the development environment."""
    assert locked("requirements.lock").items() <= locked("requirements-dev.lock").items()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_requirement_has_hashes_and_no_index(lock: str) -> None:
    lines = (ROOT / lock).read_text().splitlines()
    code = [line for line in lines if line and not line.lstrip().startswith("#")]
    requirements = [n for n, line in enumerate(code) if not line.startswith(" ")]
    assert all("==" in code[n] and "--hash=sha256:" in code[n + 1] for n in requirements)
    assert not [line for line in code if "://" in line or line.startswith("-")]


@pytest.mark.parametrize("directory", ["shared", *SHIMS])
def test_changelog_has_a_section_for_the_next_release(directory: str) -> None:
    assert "## [Unreleased]" in (ROOT / directory / "CHANGELOG.md").read_text()
