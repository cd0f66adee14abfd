"""Spin apps served in this process: real guests, the real engine, a directory as the image."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from spin_load.servers import Servers, running_servers

from containerd_shim_spin_v1 import engine as engine_module
from containerd_shim_spin_v1.engine import SpinEngine
from containerd_shimkit.testing.in_process import InProcessImage, compiler, open_image
from containerd_shimkit.wasm.module import Compile

__all__ = ["compiler"]  # a fixture

GUESTS = Path(__file__).parent / "guests"
HEAD = 'spin_manifest_version = "1"\nname = "test"\nversion = "1.2.3"\n'


class SpinImage(InProcessImage):
    """The files of a Spin app."""

    engine = SpinEngine
    environment: ClassVar[Mapping[str, str]] = {
        "SPIN_HTTP_LISTEN_ADDR": "127.0.0.1:0",
        "SPIN_MAX_INSTANCE_COUNT": "50",
    }

    def __init__(self, directory: Path, compiler: Compile) -> None:
        super().__init__(directory, compiler)
        self._manifest = HEAD + 'trigger = { type = "http", base = "/" }\n'
        self._write()

    def base(self, base: str) -> None:
        """Set the app's base path."""
        self._manifest = self._manifest.replace('base = "/"', f'base = "{base}"')
        self._write()

    def component(
        self, guest: str, route: str, *, id_: str | None = None, more: str = "", trigger: str = ""
    ) -> None:
        """Add a component. more, trigger: lines of TOML for it and for its trigger."""
        shutil.copyfile(GUESTS / f"{guest}.wasm", self.root / f"{guest}.wasm")
        self._manifest += (
            f'[[component]]\nid = "{id_ or guest}"\nsource = "{guest}.wasm"\n{more}\n'
            f'[component.trigger]\nroute = "{route}"\n{trigger}\n'
        )
        self._write()

    def manifest(self, text: str) -> None:
        """Replace the manifest."""
        self._manifest = text
        self._write()

    def _write(self) -> None:
        (self.root / "spin.toml").write_text(self._manifest)


@pytest.fixture
def image(
    tmp_path: Path, compiler: Compile, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SpinImage]:
    yield from open_image(
        *(SpinImage, tmp_path, compiler, monkeypatch), root=engine_module, binds=engine_module
    )


@pytest.fixture
def probe(image: SpinImage) -> SpinImage:
    """An app whose component does what the path says."""
    image.component("probe", "/...")
    return image


@pytest.fixture(scope="session")
def traffic_servers() -> Iterator[Servers]:
    """What the app of ``load/spin_load`` calls."""
    with running_servers() as running:
        yield running
