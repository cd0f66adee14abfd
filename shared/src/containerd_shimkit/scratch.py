"""Directories of the container for what an engine writes: files that guests are given."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from containerd_shimkit.errors import ManifestError

PLACES: Final = ("/tmp", "/dev/shm")  # the second for containers with a read-only rootfs


class NoScratchError(ManifestError):
    """There is no place for such a directory; the message goes after "needs"."""


def make_scratch(prefix: str) -> Path:
    """Return a new directory, whose name begins with ``prefix``. Raises NoScratchError."""
    places = [place for place in PLACES if os.access(place, os.W_OK | os.X_OK)]
    if not places:
        raise NoScratchError(
            f"a writable directory for copies: none of {', '.join(PLACES)} is; "
            "mount an emptyDir at /tmp"
        )
    return Path(tempfile.mkdtemp(prefix=prefix, dir=places[0]))
