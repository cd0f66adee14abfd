"""Nodes with one of the shims, for the tests of a shim through containerd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.testing.apps import Node
from containerd_shimkit.testing.containerd import Containerd
from containerd_shimkit.testing.cri import BUSYBOX, Cri
from containerd_shimkit.testing.fixtures import (
    containerd_program,
    each_containerd,
    running_containerd,
)

MakeNode = Callable[[Containerd, Path, Path], Node]


def make_node(
    daemon: Containerd, directory: Path, shim_dir: Path, kind: str, warm: Callable[[Node], str]
) -> Node:
    """Return a node on which the zygote runs and the modules of an image are compiled.

    kind: of the shim: "spin", "slight", "wws".  warm: imports the image.
    """
    need_shim(shim_dir, kind)
    directory.mkdir(parents=True)
    node = Node(daemon, directory, kind, f"{kind.upper()}_HTTP_LISTEN_ADDR")
    node.run(warm(node)).stop()
    return node


def need_shim(shim_dir: Path, kind: str) -> None:
    """Skip the test if the shim has not been built."""
    program = shim_dir / f"containerd-shim-{kind}-v1"
    if not program.exists():
        pytest.skip(f"needs {program}: make build")


def session_nodes_fixture(make: MakeNode) -> Any:
    """Return a fixture: what gives the node of a program of containerd, for all of a worker."""

    @pytest.fixture(scope="session")
    def session_nodes(
        tmp_path_factory: pytest.TempPathFactory, shim_dir: Path, shims_home: Path
    ) -> Iterator[Callable[[str], Node]]:
        nodes: dict[str, Node] = {}

        def get(binary: str) -> Node:
            if binary not in nodes:
                place = tmp_path_factory.mktemp("node")
                daemon = running_containerd(
                    place / "containerd", shim_dir, shims_home, binary=binary
                )
                nodes[binary] = make(stack.enter_context(daemon), place / "apps", shim_dir)
            return nodes[binary]

        with ExitStack() as stack:
            yield get

    return session_nodes


@pytest.fixture
def node(session_nodes: Callable[[str], Node], containerd_binary: str) -> Iterator[Node]:
    """A containerd that others use too; what a test starts must be gone at its end."""
    found = session_nodes(containerd_binary)
    with found.leaving_nothing():
        yield found


def running_fixture(kind: str) -> Any:
    """Return a fixture: a containerd with CRI of each version, for all tests of a module."""

    @pytest.fixture(scope="module", params=each_containerd(f"{kind}-cri"))
    def running(
        request: pytest.FixtureRequest,
        tmp_path_factory: pytest.TempPathFactory,
        shim_dir: Path,
        shims_home: Path,
    ) -> Iterator[Cri]:
        directory, root = tmp_path_factory.mktemp("cri"), request.config.rootpath
        with running_cri(directory, root, shim_dir, shims_home, kind, request.param) as cri:
            cri.import_busybox()
            yield cri

    return running


@pytest.fixture
def cri(running: Cri) -> Iterator[Cri]:
    """What a test runs must be gone at its end."""
    with running.leaving_nothing():
        yield running


@contextmanager
def running_cri(
    directory: Path,
    root: Path,
    shim_dir: Path,
    shims_home: Path,
    kind: str,
    version: str,
    *,
    sandboxer: str = "podsandbox",
    systemd_cgroup: bool = False,
) -> Iterator[Cri]:
    """Yield the CRI of a containerd. version: see ``fixtures.VERSIONS``.  root: working copy."""
    binary = containerd_program(version, root)
    need_shim(shim_dir, kind)
    if not BUSYBOX.exists():  # whose image pause containers have
        pytest.skip(f"needs {BUSYBOX}: apt-get install busybox-static")
    pods = directory / "pods"
    pods.mkdir()
    with (
        running_containerd(
            directory / "containerd",
            shim_dir,
            shims_home,
            binary=binary,
            cri=True,
            sandboxer=sandboxer,
            systemd_cgroup=systemd_cgroup,
        ) as daemon,
        Cri(daemon, pods) as cri,
    ):
        yield cri


def import_example(node: Node, root: Path, name: str) -> str:
    """Import an image of ``images`` as ``make images`` writes it; return its reference."""
    archive = root / "dist" / "images" / f"{name}.tar"
    if not archive.exists():
        pytest.skip(f"needs {archive}: make images")
    return node.import_archive(archive, f"docker.io/library/wasmtest_{name}:latest")
