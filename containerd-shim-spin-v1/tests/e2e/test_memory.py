"""What one more container costs in memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from containerd_shimkit.testing.apps import Node

pytestmark = [pytest.mark.root, pytest.mark.containerd]

# Measured are 9; what is shared with all others comes to it: docs/performance.md.
LIMIT_BYTES = 12_000_000


def private_bytes(pid: int) -> int:
    """Return what would be free if this process alone ended."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB$", text, re.MULTILINE)
    return sum(map(int, sizes)) * 1024


def test_shim_and_engine_share_most_of_their_memory(node: Node, hello_image: str) -> None:
    with node.leaving_nothing():
        first, second = node.run(hello_image), node.run(hello_image)
        for app in (first, second):
            assert app.get("/hello").status == 200
        private = {"shim": private_bytes(second.shim_pid), "engine": private_bytes(second.pid)}
        assert sum(private.values()) < LIMIT_BYTES, private
        for app in (first, second):
            app.stop()
