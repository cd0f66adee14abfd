"""The command as people run it, and real containerds that read what it writes."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit import cli
from containerd_shimkit.node.config_text import Runtime, runtimes_of
from containerd_shimkit.runtime import ShimKind

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a shim's command: exit code, standard output and error."""

    def run_it(*arguments: object, kind: str = "spin") -> tuple[int, str, str]:
        shim = ShimKind(kind, "", "1.2.3")
        code = cli.run(shim, None, [str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run_it


@pytest.fixture
def runtimes(containerd_binary: str) -> Callable[[Path], dict[str, Runtime]]:
    """What a real containerd takes for its runtimes, from a file."""

    def read(file: Path) -> dict[str, Runtime]:
        command = [containerd_binary, "-c", str(file), "config", "dump"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        tables: dict[str, Any] = tomllib.loads(done.stdout)
        return runtimes_of(tables)

    return read
