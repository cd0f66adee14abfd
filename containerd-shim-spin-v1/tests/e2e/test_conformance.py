"""A sample of the rules of Spin, through containerd: see ``tests/conformance``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import Node
from spin_rules.exchange import App
from spin_rules.served import SAMPLE

pytestmark = [pytest.mark.root, pytest.mark.containerd]

GUESTS = Path(__file__).parents[1] / "guests"


def image_of(node: Node, app: App) -> str:
    guests = [
        ImageFile(f"{name}.wasm", (GUESTS / f"{name}.wasm").read_bytes()) for name in app.guests
    ]
    return node.image([ImageFile("spin.toml", app.manifest.encode()), *guests])


@pytest.mark.parametrize("app", SAMPLE, ids=lambda app: app.name)
def test_served(app: App, node: Node) -> None:
    container = node.run(image_of(node, app))
    asyncio.run(app.check(*container.address))
    log = container.log
    for words in app.logged:
        assert words in log
    assert "Traceback" not in log
    assert container.stop() == 0
