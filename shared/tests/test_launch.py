"""What containerd waits for at every start: few imports, and a message that keeps every byte."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from containerd_shimkit import launch
from containerd_shimkit.handover import decode, encode, zygote_socket
from containerd_shimkit.testing import STUB_KIND


def test_launcher_imports_nothing_that_takes_time() -> None:
    """The interpreter without site has these anyway, but for our own three or four."""
    code = (
        "import sys; before = set(sys.modules); sys.path[:0] = sys.argv[1:];"
        "import containerd_shimkit.launch; print(*sorted(set(sys.modules) - before))"
    )
    source = str(Path(launch.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code, source], capture_output=True, text=True, check=True
    )
    ours = {f"containerd_shimkit{name}" for name in ("", ".launch", ".handover", ".runtime")}
    python = {"__future__", "_socket", "os", "os.path", "posixpath", "genericpath", "stat", "_stat"}
    python |= {"_collections_abc", "abc", "_abc", "zipimport", "time"}
    assert set(done.stdout.split()) <= ours | python


@pytest.mark.parametrize(
    "arguments",
    [
        ["-namespace", "n", "-id", "i", "start"],
        [],
        ["", " ", "\n", "ä", "="],
        ["\udcff\udc80", "start"],
    ],
    ids=["usual", "none", "odd", "not-utf8"],
)
def test_message_keeps_arguments(arguments: list[str]) -> None:
    assert decode(encode(arguments)) == (arguments, dict(os.environ), os.getcwd())


def test_message_keeps_environment_and_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "a\nb \udcff"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("EQUALS", "a=b=c")
    monkeypatch.setenv("BYTES", "\udcfe")
    _, environment, cwd = decode(encode(["start"]))
    assert cwd == str(directory)
    assert (environment["EMPTY"], environment["EQUALS"], environment["BYTES"]) == (
        *("", "a=b=c", "\udcfe"),
    )


@pytest.mark.parametrize("message", [b"", b"x\0y", b"1", b"1\x001\0start", b"9\x009\0a\0b"])
def test_message_that_is_none_is_refused(message: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        decode(message)


def test_each_build_has_its_zygote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINERD_WASM_SHIMS_RUN", "/run/x")
    assert zygote_socket(STUB_KIND, "abc") == "/run/x/stub-abc.sock"
    monkeypatch.delenv("CONTAINERD_WASM_SHIMS_RUN")
    assert zygote_socket(STUB_KIND, "d") == "/run/containerd-wasm-shims/stub-d.sock"


def test_source_checkout_has_no_zygote(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("CONTAINERD_WASM_SHIMS_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(sys, "argv", ["shim", "zygote"])
    assert launch.main(STUB_KIND, None) == 64
    assert "zygote" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "greets", "kept"),
    [
        pytest.param("start", False, False, id="hung"),
        pytest.param("start", True, True, id="slow-start"),
        pytest.param("delete", True, True, id="slow-delete"),
        pytest.param("delete", False, True, id="busy"),
    ],
)
def test_only_a_zygote_that_hangs_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, greets: bool, kept: bool
) -> None:
    monkeypatch.setenv("CONTAINERD_WASM_SHIMS_RUN", str(tmp_path))
    monkeypatch.setattr(launch, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(launch, "DELETE_GREETING_SECONDS", 0.2)
    path = zygote_socket(STUB_KIND, "b")

    def greet() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.send(b"!")
            connection.recv(1)
            done.wait(5)

    done = threading.Event()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        ThreadPoolExecutor(1) as pool,
    ):
        listener.bind(path)
        listener.listen()
        greeting = pool.submit(greet) if greets else None
        with pytest.raises(launch.Unanswered):
            launch.forward(STUB_KIND, "b", [command])
        done.set()
        if greeting is not None:
            greeting.result(5)
    assert Path(path).exists() is kept
