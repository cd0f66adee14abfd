"""A sample of the rules of Spin, through containerd: see ``tests/conformance``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from containerd_shimkit.errors import ExitCode
from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import Node
from spin_rules.exchange import App
from spin_rules.manifest_locked import FAULTS_LOCKED
from spin_rules.manifest_v1 import FAULTS_V1
from spin_rules.manifest_v2 import FAULTS_V2, NOT_SERVED_V2
from spin_rules.manifests import Fault
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


REFUSED = [
    pytest.param(file, fault, id=f"{file}: {fault}")
    for file, faults in (
        ("spin.toml", [*FAULTS_V1, *FAULTS_V2, *NOT_SERVED_V2]),
        ("spin.lock", FAULTS_LOCKED),
    )
    for fault in faults
    if fault.sample
]


@pytest.mark.parametrize(("file", "fault"), REFUSED)
def test_refused(file: str, fault: Fault, node: Node) -> None:
    refusal = node.run_refused(node.image([ImageFile(file, fault.text.encode())]))
    assert refusal.exit_code == ExitCode.MANIFEST
    assert fault.message in refusal.error
    assert fault.message in refusal.log
    assert "Traceback" not in refusal.log
