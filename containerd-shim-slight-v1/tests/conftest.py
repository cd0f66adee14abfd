"""Slight apps run in this process: real guests, the real engine, a directory as the image."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from containerd_shim_slight_v1 import engine as engine_module
from containerd_shim_slight_v1.engine import SlightEngine
from containerd_shim_slight_v1.http import servers as servers_module
from containerd_shimkit.engine import RuntimeContext
from containerd_shimkit.testing.in_process import InProcessImage, compiler, open_image
from containerd_shimkit.wasm.module import Compile

__all__ = ["compiler"]  # a fixture

GUESTS = Path(__file__).parent / "guests"
VERSION = 'specversion = "0.2"\n'
HTTP = '[[capability]]\nresource = "http"\nname = "api"\n'
PROBE = (
    f"{VERSION}{HTTP}"
    '[[capability]]\nresource = "keyvalue.filesystem"\nname = "*"\n'
    '[[capability]]\nresource = "configs.envvars"\nname = "env"\n'
)


class SlightImage(InProcessImage):
    """The files of a Slight app."""

    engine = SlightEngine
    environment: ClassVar[Mapping[str, str]] = {
        "SLIGHT_HTTP_LISTEN_ADDR": "127.0.0.1:0",
        "SLIGHT_MAX_INSTANCE_COUNT": "50",
    }

    def __init__(self, directory: Path, compiler: Compile) -> None:
        super().__init__(directory, compiler)
        self.temporary = directory / "tmp"
        self.slightfile(PROBE)
        self.guest("probe")

    def slightfile(self, text: str) -> None:
        (self.root / "slightfile.toml").write_text(text)

    def guest(self, name: str) -> None:
        """Make a guest of the tests the app's module."""
        shutil.copyfile(GUESTS / f"{name}.wasm", self.root / "app.wasm")

    def context(self, **env: str) -> RuntimeContext:
        return super().context(**({"TMPDIR": str(self.temporary)} | env))


@pytest.fixture
def image(
    tmp_path: Path, compiler: Compile, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SlightImage]:
    """An app whose handlers do what the path says."""
    yield from open_image(
        *(SlightImage, tmp_path, compiler, monkeypatch), root=engine_module, binds=servers_module
    )
