"""The command line, in Go's style."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from containerd_shimkit import cli
from containerd_shimkit.cli import run
from containerd_shimkit.proto.types_pb2 import RuntimeInfo
from containerd_shimkit.testing import STUB_KIND
from containerd_shimkit.testing.commands import write_stub_binary
from containerd_shimkit.wasm.engine import WASMTIME_VERSION

BINARY = "containerd-shim-stub-v1"


@pytest.mark.parametrize("flag", ["-v", "--version"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(STUB_KIND, "abc", [flag]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{BINARY}:",
        "  Runtime: io.containerd.stub.v1",
        "  Version: 0",
        f"  Wasmtime: {WASMTIME_VERSION}",
        "  Revision: abc",
        "",
    ]


def test_version_of_a_source_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(STUB_KIND, None, ["-v"]) == 0
    assert "Revision: source checkout" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["-info", "--info"])
def test_info_is_a_message(flag: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(STUB_KIND, "abc", [flag]) == 0
    sys.stdout.flush()
    info = RuntimeInfo.FromString(capfdbinary.readouterr().out)
    assert info.name == "io.containerd.stub.v1"
    assert (info.version.version, info.version.revision) == ("0", "abc")


@pytest.mark.parametrize("flag", ["-h", "-help", "--help"])
def test_help(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(STUB_KIND, None, [flag]) == 0
    text = capsys.readouterr().out
    for word in (BINARY, "io.containerd.stub.v1", "-namespace", "-publish-binary", "start"):
        assert word in text


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["-namespace", "n", "-id", "i", "-address", "/a"], id="one-dash"),
        pytest.param(["--namespace", "n", "--id", "i", "--address", "/a"], id="two-dashes"),
        pytest.param(["-namespace=n", "--id=i", "-address=/a"], id="equals"),
        pytest.param(["-debug", "-namespace", "n", "-id", "i", "-address", "/a"], id="debug"),
        pytest.param(
            ["-namespace", "n", "-id", "i", "-socket", "", "-address", "/a"], id="old-flag"
        ),
    ],
)
def test_flags(
    arguments: list[str], capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []

    def delete(*args: str) -> RuntimeInfo:
        calls.append(args)
        return RuntimeInfo(name="answer")

    monkeypatch.setattr(cli, "delete_task", delete)
    assert run(STUB_KIND, None, [*arguments, "-bundle", "/b", "delete"]) == 0
    assert calls == [("/a", "n", "i", "/b")]
    sys.stdout.flush()
    assert RuntimeInfo.FromString(capfdbinary.readouterr().out).name == "answer"


def test_bundle_is_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    seen = []

    def delete(*args: str) -> RuntimeInfo:
        seen.append(args[3])
        return RuntimeInfo()

    monkeypatch.setattr(cli, "delete_task", delete)
    monkeypatch.chdir(tmp_path)
    assert run(STUB_KIND, None, ["-namespace", "n", "-id", "i", "delete"]) == 0
    assert seen == [str(tmp_path)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["-nonsense", "start"], "-nonsense", id="unknown-flag"),
        pytest.param(["-names=n", "start"], "-names", id="no-abbreviation"),
        pytest.param(["explode"], "explode", id="unknown-command"),
        pytest.param(["start", "delete"], "delete", id="two-commands"),
        pytest.param(["-id"], "expected one argument", id="no-value"),
        pytest.param([], "executed by containerd", id="nothing"),
        pytest.param(["-namespace", "n", "start"], "start needs -id", id="no-id"),
        pytest.param(["-id", "i", "delete"], "delete needs -namespace", id="no-namespace"),
        pytest.param(["start"], "start needs -namespace and -id", id="neither"),
        pytest.param(["-namespace", "n", "-id", "", "start"], "needs -id", id="empty-id"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(STUB_KIND, None, arguments) == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(BINARY)
    assert words in captured.err
    assert captured.err.count("\n") == 1


def test_executed_with_wrong_usage(tmp_path: Path) -> None:
    binary = write_stub_binary(tmp_path / "shim")
    done = subprocess.run([binary, "-what"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (64, "")
    assert "-what" in done.stderr


def test_nothing_but_the_answer_is_printed(tmp_path: Path) -> None:
    """containerd reads stdout and stderr together."""
    binary = write_stub_binary(tmp_path / "shim")
    environment = {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "default"}
    done = subprocess.run([binary, "-info"], capture_output=True, env=environment, input=b"\0")
    assert RuntimeInfo.FromString(done.stdout).name == STUB_KIND.runtime
    assert done.stderr == b""
