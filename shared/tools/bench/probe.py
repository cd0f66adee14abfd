"""A guest that does what the path of a request says, beside hello."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.machine import REPOSITORY
from bench.node import SPIN, Node
from containerd_shimkit.oci.archive import ImageFile, write_image_archive

PROBE = replace(SPIN, image="docker.io/library/bench_probe:latest")

_MANIFEST = """\
spin_manifest_version = "1"
name = "bench"
version = "1.0.0"
trigger = { type = "http", base = "/" }

[[component]]
id = "hello"
source = "hello.wasm"
[component.trigger]
route = "/hello"

[[component]]
id = "probe"
source = "probe.wasm"
[component.trigger]
route = "/..."
"""


def import_probe_image(node: Node, directory: Path) -> None:
    """Give the node the image; ``directory`` is for its archive."""
    hello = REPOSITORY / "images/spin/hello/hello.wasm"
    probe = REPOSITORY / "containerd-shim-spin-v1/tests/guests/probe.wasm"
    files = [
        ImageFile("spin.toml", _MANIFEST.encode()),
        ImageFile("hello.wasm", hello.read_bytes()),
        ImageFile("probe.wasm", probe.read_bytes()),
    ]
    path = directory / "probe.tar"
    write_image_archive(path, PROBE.image, files, entrypoint=["/"])
    node.containerd.import_image(path)
