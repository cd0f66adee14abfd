"""A backend whose libraries the zygote has not: they are imported in the container."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from containerd_shim_slight_v1 import capabilities
from containerd_shim_slight_v1.slightfile.resources import RESOURCES, Resource
from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import Node
from containerd_shimkit.testing.fixtures import running_containerd
from containerd_shimkit.testing.shim_nodes import need_shim

pytestmark = [pytest.mark.root, pytest.mark.containerd]

REPOSITORY = Path(__file__).parents[3]
GUESTS = Path(__file__).parents[1] / "guests"
CAPABILITIES = Path(capabilities.__file__).parent
PACKAGES = ("shared/src", "containerd-shim-slight-v1/src")
BACKEND = '''\
"""Stores of files, by a module that brings others, some of them in C, and knows what it is."""
import importlib.metadata
import logging
import sys

late = "asyncpg" not in sys.modules
import asyncpg.protocol.protocol
from containerd_shim_slight_v1.capabilities.keyvalue.filesystem import Backend

log = logging.getLogger(__name__)
log.warning("asyncpg %s is %s", importlib.metadata.version("asyncpg"), "late" if late else "there")
log.warning("its protocol is %s", asyncpg.protocol.protocol.__file__)
'''
SLIGHTFILE = """\
specversion = "0.2"
[[capability]]
resource = "http"
name = "api"
[[capability]]
resource = "keyvalue.dapr"
name = "*"
"""


@pytest.fixture(scope="module")
def late_node(
    tmp_path_factory: pytest.TempPathFactory, shim_dir: Path, shims_home: Path
) -> Iterator[Node]:
    """A node whose shim has one backend more."""
    need_shim(shim_dir, "slight")
    sys.path.append(str(REPOSITORY / "shared/tools"))
    tool = importlib.import_module("build_binary")
    directory = tmp_path_factory.mktemp("late")
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, directory / "sources" / package)
    families = "sources/containerd-shim-slight-v1/src/containerd_shim_slight_v1/capabilities"
    (directory / families / "keyvalue/dapr.py").write_text(BACKEND)
    interpreter = tool.chosen_interpreter()
    binary = directory / "bin/containerd-shim-slight-v1"
    runtime = tool.build_runtime(interpreter)
    tool.build("slight", interpreter, runtime, binary, directory / "sources")
    with running_containerd(directory / "containerd", binary.parent, shims_home) as daemon:
        (directory / "apps").mkdir()
        node = Node(daemon, directory / "apps", "slight", "SLIGHT_HTTP_LISTEN_ADDR")
        node.run(late_image(node)).stop()  # from now on there is a zygote
        yield node


def late_image(node: Node, user: str = "") -> str:
    """Return an image whose slightfile names that backend."""
    wasm = (GUESTS / "probe.wasm").read_bytes()
    files = [ImageFile("slightfile.toml", SLIGHTFILE.encode()), ImageFile("app.wasm", wasm)]
    return node.image(files, user)


@pytest.mark.parametrize("user", ["", "1000:1000"], ids=["root", "user"])
def test_backend_is_imported_in_the_container(late_node: Node, user: str) -> None:
    mount = "type=tmpfs,src=tmpfs,dst=/tmp,options=mode=1777"
    with late_node.leaving_nothing():
        app = late_node.run(late_image(late_node, user), "--mount", mount, "--seccomp")
        assert "asyncpg 0." in app.log
        assert " is late\n" in app.log
        assert "its protocol is /proc/self/fd/" in app.log
        assert app.get("/kv/store/key", method="PUT", body=b"x").status == 204
        assert app.get("/kv/store/key").body == b"x"
        links = open_links(app.pid)
        # But for the interpreter itself, which libffi holds.
        assert not [link for link in links if "/lib" in link or link.endswith("/files")]
        assert app.stop() == 0


def open_links(pid: int) -> list[str]:
    """Return what a process has open, without what it closes meanwhile."""
    links = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(fd.readlink()))
    return links


def test_every_backend_can_be_imported_in_a_container(node: Node) -> None:
    """Nothing connects before a guest opens something."""
    environment = {name: "1" for resource in RESOURCES.values() for name in needed(resource)}
    text = 'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "api"\n'
    for number, resource in enumerate(served()):
        text += f'[[capability]]\nresource = "{resource.name}"\nname = "n{number}"\n'
        text += "[capability.configs]\n" if resource.configs else ""
        text += "".join(f'{n} = "${{envvars.{n}}}"\n' for n in needed(resource))
    wasm = (GUESTS / "probe.wasm").read_bytes()
    files = [ImageFile("slightfile.toml", text.encode()), ImageFile("app.wasm", wasm)]
    app = node.run(node.image(files), env=environment)
    assert app.get("/.well-known/slight/health").body == b"OK"
    assert app.stop() == 0


def needed(resource: Resource) -> list[str]:
    return [names[0] for names in resource.configs]


def served() -> list[Resource]:
    """Return the resources that there is a module for."""
    return [
        resource
        for resource in dict.fromkeys(RESOURCES.values())
        if (CAPABILITIES / resource.family / f"{resource.backend}.py").exists()
    ]
