"""Nodes with the Slight shim, and the images that most tests use."""

from __future__ import annotations

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

VERSION = 'specversion = "0.2"\n'
HTTP = '[[capability]]\nresource = "http"\nname = "api"\n'
KV = '[[capability]]\nresource = "keyvalue.filesystem"\nname = "*"\n'
ENV = '[[capability]]\nresource = "configs.envvars"\nname = "env"\n'


def image_of(node: Node, guest: str, slightfile: str, user: str = "") -> str:
    """Return an image of a guest of the tests."""
    wasm = (GUESTS / f"{guest}.wasm").read_bytes()
    files = [ImageFile("slightfile.toml", slightfile.encode()), ImageFile("app.wasm", wasm)]
    return node.image(files, user)


def probe_of(node: Node) -> str:
    """Return the image of the guest that does what its path says."""
    return image_of(node, "probe", VERSION + HTTP + KV + ENV)


def make_slight_node(daemon: Containerd, directory: Path, shim_dir: Path) -> Node:
    return make_node(daemon, directory, shim_dir, "slight", probe_of)


session_nodes = session_nodes_fixture(make_slight_node)


@pytest.fixture
def probe_image(node: Node) -> str:
    """The guest that does what its path says."""
    return probe_of(node)


@pytest.fixture
def probe(node: Node, probe_image: str) -> App:
    """A running container of ``probe_image``."""
    return node.run(probe_image)


@pytest.fixture
def program_image(node: Node) -> str:
    """A program that shows what it is given."""
    return image_of(node, "program", VERSION + KV)


@pytest.fixture
def hello_image(node: Node, pytestconfig: pytest.Config) -> str:
    """The image of ``images/slight``, as ``make images`` writes it."""
    return import_example(node, pytestconfig.rootpath, "slight")
