"""Hooks of a container that containerd runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.oci.spec import HOOKS
from containerd_shimkit.testing.apps import App, Node, end_process, eventually, free_address

pytestmark = [pytest.mark.root, pytest.mark.containerd]

GUESTS = Path(__file__).parents[1] / "guests"
MANIFEST = """\
spin_manifest_version = "1"
name = "probe"
version = "1.0.0"
trigger = { type = "http", base = "/" }

[[component]]
id = "probe"
source = "probe.wasm"
[component.trigger]
route = "/..."
"""
SHIM_HOOKS = [kind for kind in HOOKS if kind not in ("createContainer", "startContainer")]


def config_like(app: App, directory: Path, address: tuple[str, int], task_id: str) -> Any:
    """Return a ``config.json`` like that of a running container, with a rootfs of its own."""
    (directory / "rootfs").mkdir()
    (directory / "rootfs" / "spin.toml").write_text(MANIFEST)
    (directory / "rootfs" / "probe.wasm").write_bytes((GUESTS / "probe.wasm").read_bytes())
    config = json.loads((app.bundle / "config.json").read_text())
    config["root"] = {"path": str(directory / "rootfs")}
    config["linux"]["cgroupsPath"] = f"/{app.node.daemon.namespace}/{task_id}"
    env = config["process"]["env"]
    variable = f"SPIN_HTTP_LISTEN_ADDR={address[0]}:{address[1]}"
    config["process"]["env"] = [e for e in env if not e.startswith("SPIN_")] + [variable]
    return config


def run_with_hooks(node: Node, probe: App, directory: Path) -> App:
    """``ctr run`` takes no hooks, but a whole config. Each leaves its name in ``order``."""
    task_id, address = node.new_id(), free_address()
    config = config_like(probe, directory, address, task_id)
    config["hooks"] = {kind: [shell(f"echo {kind} >>{directory}/order")] for kind in SHIM_HOOKS}
    (directory / "config.json").write_text(json.dumps(config))
    run = ("run", "-d", "--null-io", "--runtime", node.runtime)
    node.daemon.ctr(*run, "--config", str(directory / "config.json"), task_id)
    return node.adopt(task_id, address)


def shell(command: str) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", command], "timeout": 10}


def order(directory: Path) -> list[str]:
    return (directory / "order").read_text().split()


def test_hooks_run(node: Node, probe: App, tmp_path: Path) -> None:
    app = run_with_hooks(node, probe, tmp_path)
    assert app.get("/echo", method="POST", body=b"x").body == b"x"
    assert order(tmp_path) == ["prestart", "createRuntime", "poststart"]
    assert app.stop() == 0
    assert order(tmp_path) == SHIM_HOOKS


def test_poststop_runs_when_the_shim_was_killed(node: Node, probe: App, tmp_path: Path) -> None:
    app = run_with_hooks(node, probe, tmp_path)
    end_process(app.shim_pid, 9)
    eventually(lambda: order(tmp_path)[3:] == ["poststop"], "the delete command runs it")
    app.wait_for_process()
