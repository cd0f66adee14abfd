"""Static files: what lies in ``public``.

A path is a file, or a directory with an ``index.html``. What begins with a dot is not served,
``.well-known`` aside. Links are followed as if ``public`` were the root.

Source: wasm-workers-server 1.7 crates/server/src/handlers/assets.rs, lib.rs; actix-files 0.6.
"""

from __future__ import annotations

import errno
import mimetypes
import os
import stat
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote

from containerd_shim_wws_v1.project.files import ProjectFiles
from containerd_shimkit.linux.paths import open_in_root

DIRECTORY: Final = "public"
NOT_FOUND: Final = "404.html"

_MAX_PATH: Final = 3 * 4096  # PATH_MAX, each byte encoded
_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_TOP: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Python's own; a machine's files are not asked, which here are the image's.
_TYPES: Final = mimetypes.MimeTypes()
_MORE_TYPES: Final = {
    ".avif": "image/avif",
    ".ico": "image/x-icon",
    ".js": "text/javascript",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".otf": "font/otf",
    ".ttf": "font/ttf",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".yaml": "application/yaml",
}
_TEXTS: Final = ("text/", "application/json", "image/svg+xml")


@dataclass(frozen=True, slots=True)
class Asset:
    """An open file; whoever gets it closes it."""

    descriptor: int
    size: int
    content_type: str
    etag: str
    modified: str
    """As HTTP writes dates."""

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.descriptor)


class Assets:
    """The static files of a project."""

    def __init__(self, files: ProjectFiles) -> None:
        self._fd: int | None
        try:
            self._fd = open_in_root(files.fd, DIRECTORY, _TOP)
        except OSError:
            self._fd = None

    @property
    def exist(self) -> bool:
        """Whether there is the directory."""
        return self._fd is not None

    def close(self) -> None:
        """Let go of the directory."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def find(self, path: str) -> Asset | None:
        """Return the file for a URL's path, None if there is none. path: encoded, no prefix."""
        if self._fd is None or len(path) > _MAX_PATH:
            return None
        names = [unquote(part, errors="surrogateescape") for part in path.split("/") if part]
        if any(map(_is_refused, names)):
            return None
        name = "/".join(names)
        asset = self._open(name) if names else None
        return asset or self._open(f"{name}/index.html" if names else "index.html")

    def not_found(self) -> Asset | None:
        """Return the page for what is not there."""
        return self._open(NOT_FOUND) if self._fd is not None else None

    def _open(self, name: str) -> Asset | None:
        assert self._fd is not None, "there are none"
        try:
            descriptor = open_in_root(self._fd, name, _FILE)
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                raise
            return None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            return None
        etag = f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"'
        modified = formatdate(int(status.st_mtime), usegmt=True)
        return Asset(descriptor, status.st_size, content_type(name), etag, modified)


def content_type(name: str) -> str:
    """Return the type that a file's name says."""
    suffix = PurePosixPath(name).suffix.lower()
    kind = _MORE_TYPES.get(suffix) or _TYPES.types_map[True].get(suffix)
    if kind is None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith(_TEXTS) else kind


def _is_refused(name: str) -> bool:
    return "/" in name or "\0" in name or (name.startswith(".") and name != ".well-known")
