"""Tools for images beside containerd and Docker, and what is in an image layout."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from containerd_shimkit.testing.servers.process import need_program

_SECONDS: Final = 60.0


def skopeo(*arguments: object) -> str:
    """Run the tool whose library buildah, Podman and CRI-O have, too."""
    command = [need_program("skopeo", "skopeo"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class Buildah:
    """What it knows is in one directory."""

    def __init__(self, program: str, directory: Path) -> None:
        self._command = [
            *(program, "--root", str(directory / "root"), "--runroot", str(directory / "run")),
            *("--storage-driver", "vfs"),  # no mounts that could stay behind
        ]

    def run(self, command: str, *arguments: object) -> str:
        """Run a command; return what it printed, without the messages."""
        isolation = ["--isolation", "chroot"] if command == "build" else []
        line = [*self._command, command, *isolation, *map(str, arguments)]
        done = subprocess.run(
            line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS
        )
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout.strip()


@contextmanager
def new_buildah() -> Iterator[Buildah]:
    """A buildah that knows no images; gone at the end."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    program = need_program("buildah", "buildah")
    with tempfile.TemporaryDirectory(prefix="buildah-") as directory:
        yield Buildah(program, Path(directory))


def files_of(layout: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the files of an OCI layout's one image by their paths, and how it is to be run."""

    def blob(descriptor: dict[str, Any]) -> bytes:
        digest: str = descriptor["digest"]
        return (layout / "blobs" / digest.replace(":", "/")).read_bytes()

    (described,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads(blob(described))
    files: dict[str, bytes] = {}
    for layer in manifest["layers"]:
        data = blob(layer)
        plain = gzip.decompress(data) if layer["mediaType"].endswith("gzip") else data
        with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
            for member in tar:
                if member.isfile():
                    content = tar.extractfile(member)
                    assert content is not None
                    files[member.name.removeprefix("./")] = content.read()
    return files, json.loads(blob(manifest["config"]))["config"]
