"""The files that guests of a container see: the image's and the volumes', and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import Node
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD

pytestmark = [pytest.mark.root, pytest.mark.containerd]

GUESTS = Path(__file__).parents[1] / "guests"
SLIGHTFILE = 'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "api"\n'
HIDDEN = [
    "proc/self/status",
    "proc/self/maps",
    "proc/self/fd/0",
    "dev/null",
    "sys/kernel/uevent_seqnum",
]


def image_of(node: Node, user: str = "") -> str:
    return node.image(
        [
            ImageFile("slightfile.toml", SLIGHTFILE.encode()),
            ImageFile("app.wasm", (GUESTS / "files.wasm").read_bytes()),
            ImageFile("text/hello.txt", b"hello"),
            ImageFile("proc/self/status", b"the image's"),
        ],
        user,
    )


@ON_EACH_CONTAINERD
@pytest.mark.parametrize("user", ["", "1000:1000"])
def test_image_and_volumes_are_read(node: Node, tmp_path: Path, user: str) -> None:
    volume, private = tmp_path / "volume", tmp_path / "private"
    volume.mkdir()
    private.mkdir(mode=0o700)
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(0o755)
    (volume / "mounted.txt").write_text("of the volume")
    (private / "secret.txt").write_text("of root")
    mounts = []
    for source, place in ((volume, "/data/volume"), (private, "/private")):
        mounts += ["--mount", f"type=bind,src={source},dst={place},options=rbind:rw"]
    app = node.run(image_of(node, user), *mounts)
    assert app.get("/text/hello.txt").body == b"hello"
    assert app.get("/data/volume/mounted.txt").body == b"of the volume"
    assert (app.get("/private/secret.txt").status == 200) == (user == "")
    assert app.get("/data/volume/new.txt", method="PUT").status == 403
    assert app.get("/text/new.txt", method="PUT").status == 403
    assert app.stop() == 0


def test_what_the_kernel_says_of_this_process_is_not(node: Node) -> None:
    """The image has files in its place, which are what the guest sees."""
    app = node.run(image_of(node))
    assert app.get("/proc/self/status").body == b"the image's"
    for path in HIDDEN[1:]:
        assert app.get(f"/{path}").status == 404, path
    assert app.stop() == 0


def test_place_of_a_volume_in_another_that_is_replaced(node: Node, tmp_path: Path) -> None:
    """Who shares the outer volume cannot have the guest read this process."""
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    (outer / "in").mkdir(parents=True)
    inner.mkdir()
    (inner / "mounted.txt").write_text("of the volume")
    mounts = []
    for source, place in ((outer, "/data"), (inner, "/data/in")):
        mounts += ["--mount", f"type=bind,src={source},dst={place},options=rbind:rw"]
    app = node.run(image_of(node), *mounts)
    assert app.get("/data/in/mounted.txt").body == b"of the volume"
    (outer / "in").rename(outer / "elsewhere")
    (outer / "in").symlink_to("/proc/self")
    assert app.get("/data/in/status").status == 404
    assert app.get("/data/in/mounted.txt").body == b"of the volume"
    assert app.stop() == 0
