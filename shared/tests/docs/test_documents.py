"""Documents are true: links lead somewhere, blocks can be read, commands do what they say."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from doc_player.document import anchors, blocks, commands, documents, links
from doc_player.player import Player, copy_of, rule_of

from containerd_shimkit.testing.cri import network_namespace
from containerd_shimkit.testing.fixtures import running_containerd

ROOT = Path(__file__).parents[3]
DOCUMENTS = documents(ROOT)
PLAYED = [
    "README.md",
    "containerd-shim-spin-v1/quickstart.md",
    "containerd-shim-slight-v1/quickstart.md",
    "containerd-shim-wws-v1/quickstart.md",
    "deployments/README.md",
    "deployments/microk8s/README.md",
    "deployments/node-installer/README.md",
]

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS]
)


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    for target in links(document.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = document if not path else document.parent / path
        assert file.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{target}: no such heading"


@each_document
def test_blocks_can_be_read(document: Path) -> None:
    for block in blocks(document.read_text()):
        if block.kind == "toml":
            tomllib.loads(block.text)
        elif block.kind == "console":
            for command in commands(block):
                assert rule_of(command.text), f"line {command.line}: no rule for {command.text!r}"


@pytest.mark.root
@pytest.mark.containerd
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PLAYED)
def test_commands_do_what_they_say(
    name: str, tmp_path: Path, shim_dir: Path, shims_home: Path, default_binary: str
) -> None:
    for needed in (shim_dir / "containerd-shim-spin-v1", shim_dir / "images" / "spin.tar"):
        if not needed.exists():
            pytest.skip(f"needs {needed}: make build images")
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_of(ROOT, copy)
    with player(copy, tmp_path, shims_home, default_binary) as play:
        assert play.play(ROOT / name)


@contextmanager
def player(copy: Path, tmp_path: Path, shims_home: Path, binary: str) -> Iterator[Player]:
    """Commands run in a network of their own: documents name ports that may be taken here."""
    installed = tmp_path / "installed"
    with network_namespace() as netns:
        shims = installed / "usr/local/bin"
        shims.mkdir(parents=True)
        daemon = running_containerd(
            tmp_path / "containerd", shims, shims_home, binary=binary, netns=netns
        )
        with daemon as started:
            environment = {
                name: value
                for name, value in os.environ.items()
                if not name.startswith("CONTAINERD_")
            } | {
                "DESTDIR": str(installed),
                "CONTAINERD_ADDRESS": started.address,
                "CONTAINERD_NAMESPACE": started.namespace,
            }
            yield Player(copy, environment, ["nsenter", f"--net={netns}"])
