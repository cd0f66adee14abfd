"""Files of what single components print, besides the container's own output: ``log_dir``.

Spin's names, ``<component>_stdout.txt`` and ``<component>_stderr.txt``; what is there is kept.
Nothing bounds them: whoever names a directory has to look after it. Without ``log_dir`` there are
none, as it is the container's output that a node collects.

Source: Spin 3.6 crates/trigger/src/cli/stdio.rs.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Final, Literal, TypeAlias

from containerd_shimkit.errors import ManifestError
from containerd_shimkit.output import OutputWriter

_UNFIT: Final = re.compile(r'[\x00-\x1f\x7f-\x9f/\\?<>:*|"]')
_MAX_NAME: Final = 60  # characters, of up to 4 bytes; a file's name has up to 255

log = logging.getLogger(__name__)


class LoggedOutput:
    """A stream of the container, and a component's file."""

    def __init__(self, stream: OutputWriter, descriptor: int, name: str) -> None:
        """descriptor: open for appending; it lives as long as the process."""
        self._stream = stream
        self._descriptor = descriptor
        self._name = name
        self._failed = False

    def write(self, data: bytes) -> None:
        """Write to both. Never raises; a file that cannot be written is mentioned once."""
        self._stream.write(data)
        try:
            os.write(self._descriptor, data)
        except OSError as exc:
            if not self._failed:
                self._failed = True
                log.warning("%s: cannot be written: %s", self._name, exc.strerror)


Output: TypeAlias = OutputWriter | LoggedOutput
"""Where a component's output goes."""


class ComponentLogs:
    """Opens the files."""

    def __init__(self, root: Path, log_dir: str | None) -> None:
        """root: of the container's files.  log_dir: of the configuration; empty is none.

        Raises ManifestError if the directory cannot be made.
        """
        self._name = f"/{log_dir.lstrip('/')}" if log_dir else None
        self._directory = root / self._name.lstrip("/") if self._name else None
        if self._directory is not None:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise ManifestError(f"log_dir {self._name}: {exc.strerror}") from exc

    def output(
        self, component_id: str, kind: Literal["stdout", "stderr"], stream: OutputWriter
    ) -> Output:
        """Return where a component's output goes. Raises ManifestError for a file it cannot be."""
        if self._directory is None:
            return stream
        file = f"{_UNFIT.sub('', component_id)[:_MAX_NAME]}_{kind}.txt"
        # O_NONBLOCK: what has this name may be a FIFO.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self._directory / file, flags, 0o644)
        except OSError as exc:
            raise ManifestError(f"log_dir: {self._name}/{file}: {exc.strerror}") from exc
        return LoggedOutput(stream, descriptor, f"{self._name}/{file}")
