"""Wws apps run in this process: real guests, the real engine, a directory as the image."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from containerd_shim_wws_v1 import engine as engine_module
from containerd_shim_wws_v1.engine import WwsEngine
from containerd_shimkit.testing.in_process import InProcessImage, compiler, open_image
from containerd_shimkit.wasm.module import Compile

__all__ = ["compiler"]  # a fixture

GUESTS = Path(__file__).parent / "guests"


class WwsImage(InProcessImage):
    """The files of a project."""

    engine = WwsEngine
    environment: ClassVar[Mapping[str, str]] = {
        "WWS_HTTP_LISTEN_ADDR": "127.0.0.1:0",
        "WWS_MAX_INSTANCE_COUNT": "50",
    }

    def worker(self, path: str = "probe.wasm", guest: str = "probe", config: str = "") -> None:
        """Put a guest of the tests into the project, and its configuration beside it."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(GUESTS / f"{guest}.wasm", target)
        if config:
            target.with_suffix(".toml").write_text(config)

    def file(self, path: str, content: str | bytes = "") -> None:
        """Write any other file of the project."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def image(tmp_path: Path, compiler: Compile, monkeypatch: pytest.MonkeyPatch) -> Iterator[WwsImage]:
    """An empty image; see ``WwsImage.worker``."""
    yield from open_image(
        *(WwsImage, tmp_path, compiler, monkeypatch), root=engine_module, binds=engine_module
    )
