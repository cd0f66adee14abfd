"""Shims of the stub engine, run as containerd does."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from containerd_shimkit.testing import assert_nothing_left, snapshot_machine
from containerd_shimkit.testing.commands import ShimCommand, shim_command, write_stub_binary


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[str]:
    """A namespace whose processes, mounts and cgroups are gone after the test."""
    name = f"kit-{secrets.token_hex(4)}"
    scope = [name, str(tmp_path)]
    before = snapshot_machine(scope)
    yield name
    cgroups = [
        *Path("/sys/fs/cgroup").glob(f"*/{name}"),
        *Path("/sys/fs/cgroup").glob(f"{name}"),
    ]
    for cgroup in cgroups:
        with contextlib.suppress(OSError):  # the assertion says what is left
            cgroup.rmdir()
    try:
        assert_nothing_left(before, snapshot_machine(scope))
    finally:
        for cgroup in cgroups:
            for directory in [*cgroup.glob("*"), cgroup]:
                with contextlib.suppress(OSError):
                    directory.rmdir()


@pytest.fixture
def stub(tmp_path: Path, namespace: str) -> Iterator[ShimCommand]:
    """The stub shim without a zygote."""
    with shim_command(write_stub_binary(tmp_path / "shim"), namespace) as command:
        yield command


@pytest.fixture(scope="session")
def build_binary(pytestconfig: pytest.Config) -> ModuleType:
    """The tool that builds the shims."""
    tools = str(pytestconfig.rootpath / "shared/tools")
    if tools not in sys.path:
        sys.path.append(tools)
    return importlib.import_module("build_binary")


@pytest.fixture(scope="session")
def make_launcher(build_binary: ModuleType) -> Callable[[Path, Path, str], Path]:
    """Write an executable that is the launcher, with a script in place of a bundle of its own."""

    def make(path: Path, script: Path, build_id: str) -> Path:
        launcher = build_binary.compile_launcher()
        fields = {"shim": "stub", "build": build_id, "execute": str(script)}
        build_binary.write_binary(path, launcher, [], fields, "stub\n")
        return path

    return make


@pytest.fixture(scope="session")
def spin_binary(
    build_binary: ModuleType,
    pytestconfig: pytest.Config,
    shim_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The built spin shim, of the sources as they are now."""
    built = shim_dir / "containerd-shim-spin-v1"
    repository = pytestconfig.rootpath
    sources = [
        *repository.glob("shared/src/**/*.py"),
        *repository.glob("shared/launcher/*"),
        *repository.glob("containerd-shim-spin-v1/src/**/*.py"),
        *repository.glob("shared/tools/build_binary.py"),
        *repository.glob("shared/tools/binary/*.py"),
    ]
    newest = max(source.stat().st_mtime for source in sources)
    if not built.exists() or built.stat().st_mtime < newest:
        built = tmp_path_factory.mktemp("dist") / built.name
        interpreter = build_binary.chosen_interpreter()
        build_binary.build("spin", interpreter, build_binary.build_runtime(interpreter), built)
    return built


@pytest.fixture(scope="session")
def newer_binary(
    build_binary: ModuleType, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The spin shim of sources that differ a little."""
    directory = tmp_path_factory.mktemp("newer")
    for source in ("shared/src", "containerd-shim-spin-v1/src"):
        shutil.copytree(pytestconfig.rootpath / source, directory / source)
    package = directory / "containerd-shim-spin-v1/src/containerd_shim_spin_v1/__init__.py"
    package.write_text(package.read_text() + "\nNEWER = True\n")
    binary = directory / "containerd-shim-spin-v1.built"
    interpreter = build_binary.chosen_interpreter()
    runtime = build_binary.build_runtime(interpreter)
    build_binary.build("spin", interpreter, runtime, binary, directory)
    return binary


@pytest.fixture(scope="session")
def unpacked(spin_binary: Path) -> Iterator[Path]:
    """A root in which the spin shim is unpacked already."""
    with tempfile.TemporaryDirectory(prefix="cw-root-") as directory:
        environment = {"PATH": os.defpath, "CONTAINERD_WASM_SHIMS_ROOT": directory}
        subprocess.run([spin_binary, "-info"], env=environment, check=True, capture_output=True)
        yield Path(directory)


@pytest.fixture
def spin(spin_binary: Path, unpacked: Path, namespace: str) -> Iterator[ShimCommand]:
    """The built spin shim with a zygote of its own."""
    with shim_command(spin_binary, namespace) as command:
        command.env["CONTAINERD_WASM_SHIMS_ROOT"] = str(unpacked)
        yield command
