"""Documents are true: links lead somewhere, commands do what they say. Blocks: test_blocks.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_player.document import anchors, blocks, commands, documents, links
from doc_player.place import place
from doc_player.player import Player, copy_of

ROOT = Path(__file__).parents[3]
DOCUMENTS = documents(ROOT)
PLAYED = [
    str(path.relative_to(ROOT))
    for path in DOCUMENTS
    # Some files are built only where the document is played.
    if any(block.kind == "console" or block.path for block in blocks(path.read_text()))
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
    document = ROOT / name
    docker = any(
        command.text.startswith("docker ")
        for block in blocks(document.read_text())
        if block.kind == "console"
        for command in commands(block)
    )
    with place(tmp_path, shims_home, default_binary, docker=docker) as where:
        assert Player(copy, where.environment, where.prefix).play(document)
