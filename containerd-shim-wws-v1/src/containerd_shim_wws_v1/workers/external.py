"""What the runtimes of ``.wws.toml`` need: each worker's source in a directory, seen as ``/src``.

A runtime is a program of the project that reads the source there, ``index`` with the runtime's
first extension; a wrapper is a text whose ``{source}`` the source takes the place of, a polyfill
lies beside it. Guests may only read it: what one wrote there others would run.

Source: wasm-workers-server 1.7 crates/runtimes/src/modules/external.rs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from containerd_shim_wws_v1.project.files import MAX_TEXT_BYTES, ProjectFiles, shown
from containerd_shim_wws_v1.project.runtimes import Runtime
from containerd_shimkit.errors import ManifestError, MissingFileError
from containerd_shimkit.scratch import NoScratchError, make_scratch

SOURCES: Final = "/src"
"""Where a guest sees its source."""

_PLACEHOLDER: Final = "{source}"
_MAX_WRAPPED: Final = 2 * MAX_TEXT_BYTES  # source and wrapper; a wrapper may name it many times


class ExternalSources:
    """The directories of an app."""

    def __init__(self, files: ProjectFiles) -> None:
        self._files = files
        self._directory: Path | None = None

    def place(self, file: str, runtime: Runtime) -> str:
        """Return a new directory with the source of a worker. Raises ManifestError."""
        source = self._read(file)
        if runtime.wrapper is not None:
            wrapper = self._read(runtime.path(runtime.wrapper))
            size = len(wrapper) + wrapper.count(_PLACEHOLDER) * len(source)
            if size > _MAX_WRAPPED:
                raise ManifestError(
                    f"{shown(file)}: has {size} characters in the wrapper of {runtime.name}, "
                    f"more than {_MAX_WRAPPED}"
                )
            source = wrapper.replace(_PLACEHOLDER, source)
        texts = {f"index.{runtime.extensions[0]}": source}
        if runtime.polyfill is not None:
            texts[runtime.polyfill] = self._read(runtime.path(runtime.polyfill))
        try:
            if self._directory is None:
                self._directory = make_scratch("wws-sources-")
            directory = tempfile.mkdtemp(dir=self._directory)
            for name, text in texts.items():
                Path(directory, name).write_bytes(text.encode())
        except NoScratchError as exc:
            raise ManifestError(f"{shown(file)}: {runtime.name} needs {exc}") from None
        except OSError as exc:
            place = exc.filename or self._directory
            raise ManifestError(
                f"{shown(file)}: cannot be copied to {place}: {os.strerror(exc.errno or 0)}"
            ) from exc
        return directory

    def remove(self) -> None:
        """Remove the directories."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _read(self, file: str) -> str:
        text = self._files.read_text(file)
        if text is None:
            raise MissingFileError(f"{shown(file)}: no such file in the image")
        return text
