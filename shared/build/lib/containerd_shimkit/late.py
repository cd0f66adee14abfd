"""Importing modules in a container, whose image has none of ours.

When a container is entered every path is the image's, and nothing is found in files any more
(``importing``). An engine with ``imports_late`` may import all the same while it prepares its app,
from *trees*: read-only mounts of the directories that modules come from, made before. No path of
the container leads there, nothing leads out of them, and links in them are not followed. They are
reached as ``/proc/self/fd/N/...``; when the app is prepared they are closed.

What a module's file is linked to is loaded from the trees as well, or the import fails.

The numbers of closed trees stay taken, by what is no directory. Libraries remember paths of their
files: these shall lead nowhere, and not to what a guest has open.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Final

from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.libraries import LibraryError, load_needed
from containerd_shimkit.linux.mounts import clone_readonly
from containerd_shimkit.linux.paths import fd_path
from containerd_shimkit.linux.syscalls import filesystem_type, reason

_PROC: Final = ("/proc", "/proc/self/fd")


class ModuleTrees:
    """The directories of ``sys.path``, for a process that is about to lose sight of them."""

    def __init__(self) -> None:
        """Open them. Whatever stands in the way is kept as ``problem``."""
        self.problem = ""
        """Why nothing can be imported from here; empty otherwise."""
        self._mounts: dict[str, int] = {}
        """Directories, none inside another, and their descriptors."""
        self._modules = [entry for entry in sys.path if entry[:1] == "/" != entry]
        self._libraries = f"{sys.prefix}/lib"
        self._plug = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            for directory in _outermost([*self._modules, self._libraries]):
                self._mounts[directory] = clone_readonly(
                    directory, k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOSYMFOLLOW
                )
        except OSError as exc:
            self.problem = reason(exc)

    def modules(self) -> list[str]:
        """Return what ``sys.path`` has to be for this process."""
        return self.places_of(self._modules)

    def libraries(self) -> list[str]:
        """Return where shared libraries are that no module has for itself."""
        return self.places_of([self._libraries])

    def places_of(self, paths: Iterable[str]) -> list[str]:
        """Return where files of the trees are reached; what is in no tree is left out."""
        return [place for path in paths if (place := self._place_of(path)) is not None]

    def _place_of(self, path: str) -> str | None:
        if self.holds(path):
            return path
        for directory, fd in self._mounts.items():
            if f"{path}/".startswith(f"{directory}/"):
                return fd_path(fd) + path[len(directory) :]
        return None

    def holds(self, place: str) -> bool:
        """Whether a path as the process reaches it is one of a tree."""
        return any(f"{place}/".startswith(f"{fd_path(fd)}/") for fd in self._mounts.values())

    def find_proc(self) -> None:
        """See whether the trees can be reached: /proc is the image's, unless one is mounted."""
        try:
            real = all(filesystem_type(path) == k.PROC_SUPER_MAGIC for path in _PROC)
            reached = real and all(
                os.path.samestat(Path(fd_path(fd)).stat(), os.fstat(fd))
                for fd in self._mounts.values()
            )
        except OSError:
            reached = False
        if not reached and not self.problem:
            self.problem = "the container has no /proc"

    def close(self) -> None:
        """Close the trees, and keep their numbers from being used again."""
        for fd in self._mounts.values():
            try:
                os.dup2(self._plug, fd, inheritable=False)
            except OSError:  # beyond the container's limit of descriptors: nothing gets it again
                os.close(fd)
        os.close(self._plug)
        self._mounts.clear()


def _outermost(entries: Sequence[str]) -> list[str]:
    """Return the directories among ``entries`` without those inside another."""
    found: list[str] = []
    for entry in sorted(set(entries), key=lambda entry: entry.split("/")):
        inside = any(entry.startswith(f"{directory}/") for directory in found)
        if not inside and Path(entry).is_dir():
            found.append(entry)
    return found


@contextmanager
def importable(trees: ModuleTrees) -> Iterator[None]:
    """Let modules be imported from ``trees``, which are closed at the end.

    Where that is not possible, an import raises ImportError with the reason.
    """
    trees.find_proc()
    finder = _Finder(trees)
    sys.path[:] = trees.modules()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        # What a library has added stays: it may make modules of its own.
        sys.meta_path.remove(finder)
        sys.path.clear()
        sys.path_importer_cache.clear()
        trees.close()


class _Finder:
    """Finds modules in the trees, those of packages that were imported before as well."""

    # For importlib.metadata, which looks into sys.path.
    find_distributions = staticmethod(PathFinder.find_distributions)

    def __init__(self, trees: ModuleTrees) -> None:
        self._trees = trees

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self._trees.problem:
            raise ImportError(f'cannot import "{name}": {self._trees.problem}', name=name)
        if path is not None:
            path = self._trees.places_of(path)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, ExtensionFileLoader):
            self._load_libraries(name, spec.loader.path)
        return spec

    def _load_libraries(self, name: str, file: str) -> None:
        try:
            load_needed(file, self._trees.libraries(), self._trees.holds)
        except LibraryError as exc:
            raise ImportError(f'cannot import "{name}": {exc}', name=name) from None
