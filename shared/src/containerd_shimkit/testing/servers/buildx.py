"""Docker's buildx with a BuildKit of its own, as ``make buildx`` builds them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from containerd_shimkit.testing.apps import eventually

_SECONDS: Final = 60.0


class Buildx:
    """The client, with all it keeps in one directory."""

    def __init__(self, program: Path, directory: Path, socket: Path) -> None:
        self._program = program
        self._environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(directory),
            "BUILDX_CONFIG": str(directory / "buildx"),
        }
        self._run("create", "--name", "ours", "--driver", "remote", f"unix://{socket}")

    def build(self, *arguments: object) -> None:
        """Run ``docker buildx build``, which leaves with its output only what that says."""
        self._run("--builder", "ours", "build", "--progress", "plain", *arguments)

    def is_ready(self) -> bool:
        """Whether BuildKit serves."""
        return "running" in self._run("inspect", "ours")

    def _run(self, *arguments: object) -> str:
        command = [str(self._program), *map(str, arguments)]
        done = subprocess.run(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout


@contextmanager
def running_buildx(root: Path) -> Iterator[Buildx]:
    """A BuildKit that runs no programs in what it builds; gone at the end. root: working copy."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    programs = root / ".cache/buildx"
    if not (programs / "buildx").exists():
        pytest.skip(f"needs {programs / 'buildx'}: make buildx")
    # A short one: the path of a socket may be 107 bytes long.
    with tempfile.TemporaryDirectory(prefix="buildx-") as name:
        directory = Path(name)
        socket, log = directory / "buildkit.sock", directory / "buildkit.log"
        configuration = directory / "buildkitd.toml"
        configuration.touch()  # not the machine's
        command = [
            # Its mounts are gone with it.
            *("unshare", "--mount", str(programs / "buildkitd"), "--config", str(configuration)),
            *("--addr", f"unix://{socket}", "--root", str(directory / "data")),
            *("--containerd-worker=false", "--oci-worker-snapshotter=native"),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:

            def is_ready() -> bool:
                assert process.poll() is None, log.read_text()[-2000:]
                return buildx.is_ready()

            buildx = Buildx(programs / "buildx", directory, socket)
            eventually(is_ready, "BuildKit is ready", _SECONDS)
            yield buildx
        finally:
            process.terminate()
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_SECONDS)
