"""Tests that need a kernel with AppArmor, SELinux or pure cgroup version 2, run on such a one."""

from __future__ import annotations

from pathlib import Path

import pytest

from containerd_shimkit.testing import uml_lsm as uml

pytestmark = pytest.mark.timeout(400)

REPOSITORY = Path(__file__).parents[2]
HERE = Path(__file__).parent
SECONDS = 360.0  # of which a machine with nothing else to do needs 40


def assert_passes(tmp_path: Path, lsm: str, *arguments: str) -> None:
    """Every test passes, and none is skipped for want of what this kernel is for."""
    if missing := uml.missing_packages():
        pytest.skip(f"needs another kernel: apt-get install {missing}")
    words = ["-q", "-rs", *arguments]
    code, output = uml.run_pytest(REPOSITORY, tmp_path, words, lsm=lsm, seconds=SECONDS)
    assert code == 0, output
    assert " skipped" not in output, output


def test_apparmor(tmp_path: Path) -> None:
    assert_passes(tmp_path, "apparmor", str(HERE / "linux" / "test_lsm.py"), "-k", "apparmor")


def test_selinux(tmp_path: Path) -> None:
    assert_passes(tmp_path, "selinux", str(HERE / "linux" / "test_lsm.py"), "-k", "selinux")


def test_cgroup_version_2(tmp_path: Path) -> None:
    files = (HERE / "linux" / "test_device_filter.py", HERE / "test_device_rules.py")
    assert_passes(tmp_path, "capability", *map(str, files), "-m", "root")
