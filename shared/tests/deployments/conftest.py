"""Nodes to install on, an API server, and the installer."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from containerd_shimkit.testing.api_server import ApiServer
from containerd_shimkit.testing.cri import BUSYBOX
from containerd_shimkit.testing.layouts import LAYOUTS
from containerd_shimkit.testing.node_root import SHIMS, NodeRoot, running_node
from containerd_shimkit.testing.shim_nodes import need_shim

Install = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def make_node(
    tmp_path: Path, containerd_binary: str, shim_dir: Path
) -> Iterator[Callable[..., NodeRoot]]:
    """Return what makes a node with a layout; all of it is gone afterwards."""
    for shim in SHIMS:
        need_shim(shim_dir, shim)
    if not BUSYBOX.exists():
        pytest.skip(f"needs {BUSYBOX}: apt-get install busybox-static")
    with ExitStack() as stack:

        def make(layout: str, size: str = "1g") -> NodeRoot:
            return stack.enter_context(
                running_node(tmp_path, LAYOUTS[layout], containerd_binary, size)
            )

        yield make


@pytest.fixture
def api_server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def install(
    tmp_path: Path, shim_dir: Path, api_server: ApiServer, pytestconfig: pytest.Config
) -> Install:
    """Run the installer on a node as its pod does."""
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("secret-token")
    (account / "ca.crt").write_text("")
    script = pytestconfig.rootpath / "deployments/node-installer/install.sh"

    def run(
        node: NodeRoot, action: str = "install", **env: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "HOST_PID": str(node.pid),
            "SOURCE": str(shim_dir),
            "NODE_NAME": "worker-1",
            "API_SERVER": api_server.url,
            "API_RETRIES": "0",
            "SERVICE_ACCOUNT": str(account),
            "WAIT_SECONDS": "60",
        }
        return subprocess.run(
            ["/bin/sh", script, action],
            env=environment | env,
            capture_output=True,
            text=True,
            timeout=110,
        )

    return run
