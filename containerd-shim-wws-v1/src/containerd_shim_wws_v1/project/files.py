"""The files of a project, reached from its directory and nowhere else.

A link is followed as if the project's directory were ``/``: so none leads out of it.

Source of what is a worker: wasm-workers-server 1.7 crates/router/src/files.rs.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from containerd_shim_wws_v1.project.globs import PathGlob
from containerd_shimkit.errors import ManifestError, MissingFileError
from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.paths import open_in_root
from containerd_shimkit.linux.syscalls import filesystem_type

MAX_ENTRIES: Final = 200_000
MAX_TEXT_BYTES: Final = 4 << 20

_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_KERNEL_FILES: Final = frozenset(
    {k.PROC_SUPER_MAGIC, k.SYSFS_MAGIC, k.CGROUP_SUPER_MAGIC, k.CGROUP2_SUPER_MAGIC}
)
_IGNORED: Final = tuple(map(PathGlob, ("**/public/**", "**/.wws/**", "**/_*/**")))
_MOUNTS: Final = frozenset({"dev", "proc", "sys"})
"""What a container has at ``/`` that is no part of a project, if something is mounted there."""


class ProjectFiles:
    """A project's directory, held open."""

    def __init__(self, root: Path) -> None:
        """Raises MissingFileError."""
        self.path = root
        try:
            self.fd = os.open(root, _DIRECTORY)
        except OSError as exc:
            raise MissingFileError(f"{root}: cannot be opened: {exc.strerror}") from exc
        self._device = os.fstat(self.fd).st_dev

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self.fd)

    def find_workers(self, extensions: Collection[str], ignore: Iterable[PathGlob]) -> list[str]:
        """Return the paths of all workers, in order.

        extensions: of files that are workers, without dot.  Raises ManifestError.
        """
        ignored = (*_IGNORED, *ignore)
        found: list[str] = []
        left = MAX_ENTRIES
        todo = [""]
        while todo:
            directory = todo.pop()
            for entry in self._entries(directory):
                left -= 1
                if left < 0:
                    raise ManifestError(
                        f"the project has more than {MAX_ENTRIES} files: "
                        "WWS_IGNORE names those that are none of it"
                    )
                path = f"{directory}/{entry.name}" if directory else entry.name
                if any(glob.matches(path) for glob in ignored) or not _is_text(path):
                    continue
                # Links to directories are not followed, as upstream.
                if entry.is_dir(follow_symlinks=False):
                    if not self._is_mount(path):
                        todo.append(path)
                elif extension_of(entry.name) in extensions:
                    found.append(path)
        return sorted(found)

    def _entries(self, directory: str) -> list[os.DirEntry[str]]:
        try:
            descriptor = open_in_root(self.fd, directory or ".", _DIRECTORY)
        except OSError:
            return []  # the container's user may not read it, or it is gone
        try:
            with os.scandir(descriptor) as entries:
                return list(entries)
        finally:
            os.close(descriptor)

    def _is_mount(self, path: str) -> bool:
        return path in _MOUNTS and self._device_of(path) != self._device

    def open(self, path: str, flags: int = _FILE) -> int:
        """Return a descriptor of a regular file. Raises OSError; ELOOP for what is none."""
        descriptor = open_in_root(self.fd, path, flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no regular file", path)
        return descriptor

    def open_wasm(self, path: str) -> int:
        """Return a descriptor of a module. Raises MissingFileError."""
        try:
            return self.open(path)
        except OSError as exc:
            raise MissingFileError(f"{shown(path)}: cannot be opened: {exc.strerror}") from exc

    def open_directory(self, path: str, where: str) -> int:
        """Return a descriptor of a directory, for a worker that may use it.

        where: who asks, for messages.  Raises ManifestError.
        """
        try:
            descriptor = open_in_root(self.fd, path, _DIRECTORY)
        except OSError as exc:
            raise ManifestError(f"{where}: {shown(path)}: {exc.strerror}") from exc
        # Those of the process itself are among them: whoever may write to these is no guest.
        if self._is_kernels(descriptor):
            os.close(descriptor)
            raise ManifestError(f"{where}: {shown(path)}: these are files of the kernel")
        return descriptor

    def _is_kernels(self, descriptor: int) -> bool:
        if filesystem_type(descriptor) in _KERNEL_FILES:
            return True
        device = os.fstat(descriptor).st_dev
        return device != self._device and device in map(self._device_of, _MOUNTS)

    def _device_of(self, path: str) -> int | None:
        try:
            return os.stat(path, dir_fd=self.fd, follow_symlinks=False).st_dev
        except OSError:
            return None

    def has(self, path: str) -> bool:
        """Whether there is a regular file."""
        try:
            os.close(self.open(path))
        except OSError:
            return False
        return True

    def read_text(self, path: str) -> str | None:
        """Return what a file holds, None if it is not there. Raises ManifestError."""
        try:
            with open(self.open(path), "rb") as file:
                data = file.read(MAX_TEXT_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise ManifestError(f"{shown(path)}: cannot be read: {exc.strerror}") from exc
        if len(data) > MAX_TEXT_BYTES:
            raise ManifestError(f"{shown(path)}: larger than {MAX_TEXT_BYTES} bytes")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as exc:
            raise ManifestError(f"{shown(path)}: not UTF-8: byte {exc.start}") from exc


def shown(path: str) -> str:
    """Return a path of the project as messages have it."""
    return f"/{path.lstrip('/')}"


def extension_of(name: str) -> str:
    """Return what comes after the last dot, empty without one; a dot in front is none."""
    return name.rpartition(".")[2] if "." in name[1:] else ""


def without_extension(path: str) -> str:
    """Return a path without the last dot of its name and what comes after."""
    directory, slash, name = path.rpartition("/")
    return directory + slash + (name.rpartition(".")[0] if "." in name[1:] else name)


def _is_text(path: str) -> bool:
    """Whether a path is UTF-8: no URL leads to another."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
