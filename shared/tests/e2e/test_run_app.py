"""``make run_spin`` and its like, as a user has them: in the foreground, ended by a signal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from containerd_shimkit.testing.leftovers import assert_nothing_left, snapshot_machine
from containerd_shimkit.testing.shim_nodes import need_shim

# The program keeps its containerd in the working copy: one at a time.
pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.xdist_group("run_spin")]

REPOSITORY = Path(__file__).parents[3]
RUN_DIRECTORY = REPOSITORY / ".run" / "app"
PROGRAM = [sys.executable, str(REPOSITORY / "shared/tools/run_app.py")]
COMMAND = [*PROGRAM, "spin", "testspin"]
HELLOS = {"spin": b"Hello world from Spin!", "slight": b"hello world!", "wws": b"hello world!"}


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        number: int = listener.getsockname()[1]
    return number


@contextmanager
def running(
    kind: str, port: int, shim_dir: Path, *arguments: str
) -> Iterator[subprocess.Popen[str]]:
    """The program, when its app answers."""
    need_shim(shim_dir, kind)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CONTAINERD_")}
    with subprocess.Popen(
        [*PROGRAM, kind, f"test{kind}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment | {"PORT": str(port)},
    ) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if line.startswith("running"):
                break
        else:
            pytest.fail("".join(seen))
        yield process
        process.terminate()


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("spin", signal.SIGINT),
        ("spin", signal.SIGTERM),
        ("slight", signal.SIGINT),
        ("wws", signal.SIGINT),
    ],
)
def test_answers_then_ends_and_leaves_nothing(
    kind: str, number: signal.Signals, port: int, shim_dir: Path
) -> None:
    with running(kind, port, shim_dir) as program:
        sockets = (RUN_DIRECTORY / "containerd" / "run").readlink()
        scope = [f"{RUN_DIRECTORY}/", f"{sockets}/"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/hello", timeout=10) as answer:
            assert (answer.status, answer.read().strip()) == (200, HELLOS[kind])

        program.send_signal(number)
        output, _ = program.communicate(timeout=30)

    assert program.returncode == 0, output
    assert_nothing_left(snapshot_machine(["cw-nothing-has-this"]), snapshot_machine(scope))
    assert not RUN_DIRECTORY.exists()
    assert not sockets.exists()


def test_another_image_is_up_when_its_health_is_answered(port: int, shim_dir: Path) -> None:
    url = f"http://127.0.0.1:{port}/.well-known/spin/health"
    with running("spin", port, shim_dir, "--image", "spin-key-value") as program:
        with urllib.request.urlopen(url, timeout=10) as answer:
            status = answer.status
        program.send_signal(signal.SIGTERM)
        output, _ = program.communicate(timeout=30)
    assert (status, program.returncode) == (200, 0), output


def test_image_that_is_not_there_is_refused() -> None:
    result = subprocess.run([*COMMAND, "--image", "none"], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.endswith("dist/images/none.tar is not there: make images\n")


def test_port_in_use_is_refused_in_one_sentence() -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = listener.getsockname()[1]
        result = subprocess.run(
            COMMAND, capture_output=True, text=True, env=os.environ | {"PORT": str(port)}
        )
    if "is not there" in result.stderr:
        pytest.skip("needs dist: make build images")
    sentence = f"run_spin: port {port} is in use: free it, or choose another by PORT=\n"
    assert (result.stderr, result.returncode) == (sentence, 1)


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1"])
def test_bad_port_is_refused(port: str) -> None:
    result = subprocess.run(
        COMMAND, capture_output=True, text=True, env=os.environ | {"PORT": port}
    )
    assert (result.stdout, result.returncode) == ("", 1)
    assert f"PORT is '{port}'" in result.stderr
