"""Nodes with the wws shim, and the images that most tests use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import App, Node
from containerd_shimkit.testing.containerd import Containerd
from containerd_shimkit.testing.shim_nodes import (
    import_example,
    make_node,
    node,
    session_nodes_fixture,
)

__all__ = ["node"]  # a fixture

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


session_nodes = session_nodes_fixture(make_wws_node)


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
