"""Reading the small text files of an image that say how its app is run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from containerd_shimkit.errors import ManifestError

MAX_BYTES: Final = 1 << 20  # all of them are written by hand, or as long as what is


def read_text(path: Path, name: str) -> str | None:
    """Return what a file holds, None if it is not there.

    name: what messages call it.  Raises ManifestError if it cannot be read, is larger than
    MAX_BYTES or no UTF-8.
    """
    try:
        # O_NONBLOCK: what has this name in an image may be a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ManifestError(f"{name}: cannot be read: {exc.strerror}") from exc
    if len(data) > MAX_BYTES:
        raise ManifestError(f"{name}: larger than {MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise ManifestError(f"{name}: not UTF-8: byte {exc.start}") from exc
