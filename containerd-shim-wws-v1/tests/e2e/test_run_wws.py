"""``make run_wws``, as a user has it: a program in the foreground, ended by a signal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from containerd_shimkit.testing.leftovers import assert_nothing_left, snapshot_machine

# The program keeps its containerd in the working copy: one at a time, of either kind.
pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.xdist_group("run_spin")]

REPOSITORY = Path(__file__).parents[3]
RUN_DIRECTORY = REPOSITORY / ".run" / "app"
COMMAND = [sys.executable, str(REPOSITORY / "shared/tools/run_app.py"), "wws", "testwws"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        number: int = listener.getsockname()[1]
    return number


def test_answers_then_ends_and_leaves_nothing(shim_dir: Path) -> None:
    if not (shim_dir / "containerd-shim-wws-v1").exists():
        pytest.skip("needs dist/containerd-shim-wws-v1: make build")
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CONTAINERD_")}
    with subprocess.Popen(
        COMMAND,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment | {"PORT": str(port)},
    ) as process:
        try:
            assert process.stdout is not None
            seen = []
            for line in process.stdout:
                seen.append(line)
                if line.startswith("running"):
                    break
            else:
                pytest.fail("".join(seen))
            sockets = (RUN_DIRECTORY / "containerd" / "run").readlink()
            scope = [f"{RUN_DIRECTORY}/", f"{sockets}/"]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/hello", timeout=10) as answer:
                assert (answer.status, answer.read()) == (200, b"hello world!")
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=30)
        finally:
            process.terminate()
    assert process.returncode == 0, output
    assert_nothing_left(snapshot_machine(["cw-nothing-has-this"]), snapshot_machine(scope))
    assert not RUN_DIRECTORY.exists()
    assert not sockets.exists()
