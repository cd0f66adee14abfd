"""pytest plugin: a real containerd for each test that asks; nothing of it may be left afterwards.

Marks: ``root`` and ``containerd`` tests are skipped, saying what is missing, where they cannot run.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.linux.systemd import Systemd, systemd_runs
from containerd_shimkit.testing.clean import CleanProcess
from containerd_shimkit.testing.containerd import SYSTEM_PATH, Containerd
from containerd_shimkit.testing.leftovers import Machine, assert_nothing_left, snapshot_machine

PROGRAMS = ("containerd", "ctr", "runc")
VERSIONS = {"1.6": "containerd", "2.4": ".cache/containerd-2.4/containerd"}
"""The containerds that tests run on: Debian's, and what ``make containerd`` builds.

Programs by their names, or by paths in the working copy. The first is the one for tests that do
not choose. ``TEST_CONTAINERD`` takes another's place: one of these versions, or a program's path.
"""


def pytest_runtest_setup(item: pytest.Item) -> None:
    needs_containerd = item.get_closest_marker("containerd") is not None
    if (needs_containerd or item.get_closest_marker("root")) and os.geteuid() != 0:
        pytest.skip("needs root")
    if needs_containerd:
        missing = [name for name in PROGRAMS if shutil.which(name, path=SYSTEM_PATH) is None]
        if missing:
            pytest.skip(f"needs {' and '.join(missing)}: apt-get install containerd runc")


@pytest.fixture(scope="session")
def shim_dir(pytestconfig: pytest.Config) -> Path:
    """Where the built shims are: ``SHIM_DIR``, or ``dist`` of the working copy."""
    return Path(os.environ.get("SHIM_DIR") or pytestconfig.rootpath / "dist").resolve()


def chosen_versions() -> list[str]:
    """Return the versions of containerd that tests run on: ``TEST_CONTAINERD``, or all."""
    chosen = os.environ.get("TEST_CONTAINERD")
    return [chosen] if chosen else list(VERSIONS)


def each_containerd(group: str = "") -> list[Any]:
    """Return a parameter of pytest's for each of ``chosen_versions``.

    group: what is parametrized so runs in one worker of xdist for each version.
    """
    return [
        pytest.param(
            version,
            id=version if version in VERSIONS else "given",
            marks=[pytest.mark.xdist_group(f"{group}-{version}")] if group else (),
        )
        for version in chosen_versions()
    ]


def containerd_program(version: str, root: Path) -> str:
    """Return what to execute for a version that ``each_containerd`` gave; skip if it is not there.

    root: of the working copy.
    """
    program = VERSIONS.get(version, version)
    if "/" not in program:
        return program
    path = root / program
    if not path.exists():
        pytest.skip(f"needs {path}: make containerd")
    return str(path)


ON_EACH_CONTAINERD = pytest.mark.parametrize("containerd_binary", each_containerd(), indirect=True)
"""For tests of what differs between versions."""


@pytest.fixture(scope="session")
def default_binary(pytestconfig: pytest.Config) -> str:
    """The program of the containerd that tests take which do not choose."""
    return containerd_program(chosen_versions()[0], pytestconfig.rootpath)


@pytest.fixture
def containerd_binary(request: pytest.FixtureRequest, default_binary: str) -> str:
    """The program of a test's containerd."""
    if version := getattr(request, "param", None):
        return containerd_program(version, request.config.rootpath)
    return default_binary


@pytest.fixture
def slice_name() -> Iterator[str]:
    """A slice of the node's systemd that does not exist yet, and does not afterwards."""
    if not systemd_runs() or os.geteuid() != 0:
        pytest.skip("needs systemd as the node's service manager: test_uml runs it on such a node")
    name = f"shimkit{secrets.token_hex(8)}.slice"
    yield name
    with Systemd(20.0) as systemd:
        systemd.stop_unit(name)


@pytest.fixture(scope="session")
def clean_process() -> Iterator[CleanProcess]:
    """Where tests that fork run; see ``in_clean_process``."""
    process = CleanProcess()
    yield process
    process.close()


@pytest.fixture(scope="session")
def shims_home() -> Iterator[Path]:
    """Where the shims of this session keep compiled modules and unpack themselves."""
    with tempfile.TemporaryDirectory(prefix="cw-shims-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture
def containerd(
    tmp_path: Path, shim_dir: Path, shims_home: Path, containerd_binary: str
) -> Iterator[Containerd]:
    """A containerd for one test."""
    directory = tmp_path / "containerd"
    with running_containerd(directory, shim_dir, shims_home, binary=containerd_binary) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def shared_containerd(
    tmp_path_factory: pytest.TempPathFactory, shim_dir: Path, shims_home: Path, default_binary: str
) -> Iterator[Containerd]:
    """A containerd for all tests of a module, which clean up behind themselves."""
    directory = tmp_path_factory.mktemp("containerd")
    with running_containerd(directory, shim_dir, shims_home, binary=default_binary) as daemon:
        yield daemon


@pytest.fixture
def nothing_left() -> Iterator[Callable[[Containerd], None]]:
    """Name a daemon: what the test adds to the machine on its behalf must be gone at its end."""
    watched = []

    def watch(daemon: Containerd) -> None:
        scope = daemon.scope
        watched.append((scope, snapshot_machine(scope)))

    yield watch
    for scope, before in watched:
        assert_nothing_left(before, snapshot_machine(scope))


@contextmanager
def running_containerd(
    directory: Path,
    shim_dir: Path,
    shims_home: Path,
    *,
    binary: str = "containerd",
    cri: bool = False,
    sandboxer: str = "podsandbox",
    systemd_cgroup: bool = False,
    netns: Path | None = None,
) -> Iterator[Containerd]:
    """Run a daemon and, when it has stopped, check that the machine is free of it."""
    daemon = Containerd(
        directory,
        shim_dir=shim_dir,
        binary=binary,
        cri=cri,
        sandboxer=sandboxer,
        systemd_cgroup=systemd_cgroup,
        netns=netns,
        shims_cache=shims_home / "cache",
        shims_root=shims_home / "root",
    )
    with daemon:
        scope = daemon.scope
        yield daemon
    log = Machine(files=frozenset([str(daemon.log_file)]))
    assert_nothing_left(log, snapshot_machine(scope, [daemon.directory, daemon.runc_dir]))
