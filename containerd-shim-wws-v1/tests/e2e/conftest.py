"""Nodes with the wws shim, and the images that most tests use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import App, Node
from containerd_shimkit.testing.containerd import Containerd
from containerd_shimkit.testing.fixtures import running_containerd

GUESTS = Path(__file__).parents[1] / "guests"
SHIM = "containerd-shim-wws-v1"


def make_image(node: Node, files: dict[str, str], user: str = "") -> str:
    """Return an image of text files and guests of the tests. files: content, or ``GUEST.wasm``."""
    return node.image(
        [
            ImageFile(
                path,
                (GUESTS / content).read_bytes() if path.endswith(".wasm") else content.encode(),
            )
            for path, content in files.items()
        ],
        user,
    )


PROBE = {"probe.wasm": "probe.wasm", "public/page.html": "<p>page</p>"}


def make_node(daemon: Containerd, directory: Path, shim_dir: Path) -> Node:
    """Return a warm node: the zygote runs, the module of ``probe_image`` is compiled."""
    if not (shim_dir / SHIM).exists():
        pytest.skip(f"needs {shim_dir / SHIM}: make build")
    directory.mkdir(parents=True)
    node = Node(daemon, directory, "wws", "WWS_HTTP_LISTEN_ADDR")
    node.run(make_image(node, PROBE)).stop()
    return node


@pytest.fixture(scope="session")
def session_nodes(
    tmp_path_factory: pytest.TempPathFactory, shim_dir: Path, shims_home: Path
) -> Iterator[Callable[[str], Node]]:
    """One of each program of containerd, for all tests of a worker."""
    nodes: dict[str, Node] = {}

    def get(binary: str) -> Node:
        if binary not in nodes:
            directory = tmp_path_factory.mktemp("node")
            daemon = running_containerd(
                directory / "containerd", shim_dir, shims_home, binary=binary
            )
            nodes[binary] = make_node(stack.enter_context(daemon), directory / "apps", shim_dir)
        return nodes[binary]

    with ExitStack() as stack:
        yield get


@pytest.fixture
def node(session_nodes: Callable[[str], Node], containerd_binary: str) -> Iterator[Node]:
    """A containerd that others use too; what a test starts must be gone at its end."""
    node = session_nodes(containerd_binary)
    with node.leaving_nothing():
        yield node


@pytest.fixture
def image_of() -> Callable[..., str]:
    """See ``make_image``."""
    return make_image


@pytest.fixture
def probe_image(node: Node) -> str:
    """A worker that does what its URL says, and a page."""
    return make_image(node, PROBE)


@pytest.fixture
def probe(node: Node, probe_image: str) -> App:
    """A running container of ``probe_image``."""
    return node.run(probe_image)


@pytest.fixture
def hello_image(node: Node, pytestconfig: pytest.Config) -> str:
    """The image of ``images/wws``, as ``make images`` writes it."""
    archive = pytestconfig.rootpath / "dist" / "images" / "wws.tar"
    if not archive.exists():
        pytest.skip(f"needs {archive}: make images")
    return node.import_archive(archive, "docker.io/library/wasmtest_wws:latest")


@pytest.fixture
def python_image(node: Node, pytestconfig: pytest.Config) -> str:
    """The image of ``images/wws-python``, as ``make images`` writes it."""
    archive = pytestconfig.rootpath / "dist" / "images" / "wws-python.tar"
    if not archive.exists():
        pytest.skip(f"needs {archive}: make images")
    return node.import_archive(archive, "docker.io/library/wasmtest_wws-python:latest")
