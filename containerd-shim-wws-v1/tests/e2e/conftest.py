"""Nodes with the wws shim, and the images that most tests use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import App, Node
from containerd_shimkit.testing.containerd import Containerd
from containerd_shimkit.testing.shim_nodes import import_example, make_node, shared_nodes

GUESTS = Path(__file__).parents[1] / "guests"


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


def probe_of(node: Node) -> str:
    """Return the image of a worker that does what its URL says, and a page."""
    return make_image(node, PROBE)


def make_wws_node(daemon: Containerd, directory: Path, shim_dir: Path) -> Node:
    return make_node(daemon, directory, shim_dir, "wws", probe_of)


@pytest.fixture(scope="session")
def session_nodes(
    tmp_path_factory: pytest.TempPathFactory, shim_dir: Path, shims_home: Path
) -> Iterator[Callable[[str], Node]]:
    """One of each program of containerd, for all tests of a worker."""
    make_directory = partial(tmp_path_factory.mktemp, "node")
    with shared_nodes(make_directory, shim_dir, shims_home, make_wws_node) as get:
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
    """See ``probe_of``."""
    return probe_of(node)


@pytest.fixture
def probe(node: Node, probe_image: str) -> App:
    """A running container of ``probe_image``."""
    return node.run(probe_image)


@pytest.fixture
def hello_image(node: Node, pytestconfig: pytest.Config) -> str:
    """The image of ``images/wws``, as ``make images`` writes it."""
    return import_example(node, pytestconfig.rootpath, "wws")


@pytest.fixture
def python_image(node: Node, pytestconfig: pytest.Config) -> str:
    """The image of ``images/wws-python``, as ``make images`` writes it."""
    return import_example(node, pytestconfig.rootpath, "wws-python")
