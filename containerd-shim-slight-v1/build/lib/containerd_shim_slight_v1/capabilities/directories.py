"""Directories with names that guests choose, in ``$TMPDIR``, by default ``/tmp``.

Names come from guests, the directories from an image, and this process may write what a guest must
not: its own memory, by ``/proc``. So no link is followed on any way, and a name is a single
component.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from containerd_shimkit.linux.paths import make_in_root

_DEFAULT_DIRECTORY: Final = "/tmp"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: what an image has under a file's name may be a FIFO.
READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Directories:
    """Where an app's directories are."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """env: of the container."""
        self._directory = env.get("TMPDIR") or _DEFAULT_DIRECTORY

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """Yield a descriptor of a directory, made if it is not there. Raises OSError."""
        base = self._open_base()
        try:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=base)
            directory = os.open(name, _DIRECTORY, dir_fd=base)
        finally:
            os.close(base)
        try:
            yield directory
        finally:
            os.close(directory)

    def _open_base(self) -> int:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return make_in_root(root, self._directory, directory=True, links=False)
        finally:
            os.close(root)


def name_fault(name: str) -> str | None:
    """Return why there can be no directory of this name, None if there can."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        return f"{name!r} cannot be the name of a directory"
    return None


def reason(exc: OSError) -> str:
    """Return a message that tells links from other faults."""
    if exc.errno == errno.ELOOP:
        return "a symbolic link is on the way, which is not followed"
    return exc.strerror or str(exc)
