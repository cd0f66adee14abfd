"""From an image's files to its slightfile and to the app's module.

Both have their names and lie at the image's root, as upstream's shim has it; the command that the
image or the pod gives is for the guest, as its arguments.

Source: containerd-wasm-shims 0.6 containerd-shim-slight-v1/src/main.rs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from containerd_shim_slight_v1.app import LinkedApp
from containerd_shim_slight_v1.settings import Settings
from containerd_shim_slight_v1.slightfile.model import SlightFile
from containerd_shim_slight_v1.slightfile.reader import check_configs, parse_slightfile
from containerd_shimkit.engine import RuntimeContext
from containerd_shimkit.errors import MissingFileError
from containerd_shimkit.text.image_files import read_text
from containerd_shimkit.wasm.engine import EngineSettings, create_engine
from containerd_shimkit.wasm.module import load_compiled, open_wasm
from containerd_shimkit.wasm.preview1 import WasiTemplate

SLIGHTFILE: Final = "slightfile.toml"
MODULE: Final = "app.wasm"


def load_slightfile(root: Path) -> SlightFile:
    """Return the slightfile of the image at ``root``. Raises ManifestError, MissingFileError."""
    text = read_text(root / SLIGHTFILE, f"/{SLIGHTFILE}")
    if text is None:
        raise MissingFileError(
            f"/{SLIGHTFILE}: no such file in the image: a Slight image holds it beside {MODULE}"
        )
    slightfile = parse_slightfile(text, f"/{SLIGHTFILE}")
    check_configs(slightfile)
    return slightfile


def load_app(root: Path, context: RuntimeContext, settings: Settings) -> LinkedApp:
    """Return the module of the image at ``root``, compiled and linked. Raises ShimError."""
    name = f"/{MODULE}"
    wasm = open_wasm(root / MODULE, name)
    try:
        compiled = context.compile(wasm, name)
    finally:
        os.close(wasm)
    try:
        # One more: the guest that sets the app up takes no place of a request.
        engine = create_engine(EngineSettings(max_instances=settings.max_requests + 1))
        return LinkedApp.link(
            engine,
            load_compiled(engine, compiled, name),
            WasiTemplate(
                arguments=context.args or (MODULE,), directories=_as_seen(context.directories)
            ),
            name=name,
            max_memory_bytes=settings.max_memory_bytes,
            stdout=context.stdout,
            stderr=context.stderr,
        )
    finally:
        os.close(compiled)


def _as_seen(directories: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the directories by the names of upstream, whose guests are given the image as ``.``.

    C libraries for WASI take ``/`` and ``.`` for the same; Go's does not.
    """
    return [(path, "." if seen == "/" else seen) for path, seen in directories]
