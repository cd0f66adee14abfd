"""pytest plugin: a real containerd for each test that asks; nothing of it may be left afterwards.

Marks: ``root`` and ``containerd`` tests are skipped, saying what is missing, where they cannot run.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from containerd_shimkit.testing.clean import CleanProcess
from containerd_shimkit.testing.containerd import SYSTEM_PATH, Containerd
from containerd_shimkit.testing.leftovers import Machine, assert_nothing_left, snapshot_machine

PROGRAMS = ("containerd", "ctr", "runc")


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
def containerd(tmp_path: Path, shim_dir: Path, shims_home: Path) -> Iterator[Containerd]:
    """A containerd for one test."""
    with running_containerd(tmp_path / "containerd", shim_dir, shims_home) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def shared_containerd(
    tmp_path_factory: pytest.TempPathFactory, shim_dir: Path, shims_home: Path
) -> Iterator[Containerd]:
    """A containerd for all tests of a module, which clean up behind themselves."""
    directory = tmp_path_factory.mktemp("containerd")
    with running_containerd(directory, shim_dir, shims_home) as daemon:
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
) -> Iterator[Containerd]:
    """Run a daemon and, when it has stopped, check that the machine is free of it."""
    daemon = Containerd(
        directory,
        shim_dir=shim_dir,
        binary=binary,
        cri=cri,
        shims_cache=shims_home / "cache",
        shims_root=shims_home / "root",
    )
    with daemon:
        scope = daemon.scope
        yield daemon
    log = Machine(files=frozenset([str(daemon.log_file)]))
    assert_nothing_left(log, snapshot_machine(scope, [daemon.directory, daemon.runc_dir]))
