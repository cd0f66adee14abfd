"""Which files of the image a component sees, and at which paths.

A component's ``files`` name globs, directories and single files below the app's directory. A
directory that the guest shall see whole is mounted as it is; everything else becomes a list of
single files, for a tree to be made of. Nothing is opened or copied here.

A symlink counts as what it leads to, if that is inside the app's directory; otherwise it is left
out. So is what the kernel says of processes and devices, where the app's directory is ``/``: by it
a guest could read the process that it runs in. Of two entries that give a file the same path the
later one wins.

Sources: Spin 1.5 crates/loader/src/local/assets.rs; design.md on paths of a hostile image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from containerd_shim_spin_v1.files.globs import glob_fault, path_matcher, split_glob
from containerd_shim_spin_v1.manifest.model import (
    Component,
    FileContent,
    FileEntry,
    FileGlob,
    FilePlacement,
)
from containerd_shimkit.errors import ManifestError

MAX_ENTRIES = 100_000
"""Directory entries looked at for one component; a whole root filesystem is an oversight."""

GlobParts: TypeAlias = tuple[str | re.Pattern[str], ...]
_EVERYTHING: GlobParts = split_glob("**/*")
_KERNELS = tuple(Path(path) for path in ("/proc", "/sys", "/dev"))


@dataclass(frozen=True, slots=True)
class FilePlan:
    """What to give to a component; the guest may write to none of it."""

    direct: tuple[tuple[Path, str], ...] = ()
    """Directories to mount as they are: resolved host path, guest path.

    Where the app's directory is ``/``, that may be one: see ``guest_files`` for what it means.
    """
    copies: tuple[tuple[Path, str], ...] = ()
    """Single files, sorted by guest path: resolved host path, guest path."""
    unmatched: tuple[str, ...] = ()
    """Glob patterns that found no file. Spin says nothing of these; a warning helps."""


def entry_fault(entry: FileEntry) -> str | None:
    """Return what is wrong with an entry of ``files`` as it is written, or None."""
    if isinstance(entry, FileGlob):
        return glob_fault(entry.pattern)
    if isinstance(entry, FilePlacement):
        if not entry.source or entry.source.startswith("/"):
            return "source must be relative to the app's directory"
        if "\0" in entry.source:
            return "must not contain a NUL"
    if not entry.destination.startswith("/"):
        return "destination must be absolute"
    if ".." in entry.destination.split("/"):
        return "destination must not contain `..`"
    if "\0" in entry.destination:
        return "must not contain a NUL"
    return None


def plan_files(component: Component, root: Path) -> FilePlan:
    """Return what ``component`` sees of the app whose manifest lies in ``root``.

    Raises ManifestError that names the entry: one that breaks a rule, a source that is not there,
    is no directory or leads out of ``root``, two entries that want one path for a file and for a
    directory, more than MAX_ENTRIES entries walked.
    """
    return _Planner(component, root).plan()


@dataclass(frozen=True, slots=True)
class _Placed:
    """One placement, checked."""

    source: Path
    """As it is written, below the root: what ``exclude_files`` are compared with."""
    resolved: Path
    guest: str
    may_be_direct: bool


class _Planner:
    def __init__(self, component: Component, root: Path) -> None:
        self._component = component
        self._walk = _Walk(root.resolve())
        self._excluded = [path_matcher(pattern) for pattern in self._exclusions()]

    def _exclusions(self) -> tuple[str, ...]:
        for pattern in self._component.exclude_files:
            if (fault := glob_fault(pattern)) is not None:
                where = self._component.where or f'component "{self._component.id}"'
                raise ManifestError(f"{where}: exclude_files entry `{pattern}`: {fault}")
        return self._component.exclude_files

    def plan(self) -> FilePlan:
        entries = self._component.files
        items = []
        for entry in entries:
            with self._naming(entry):
                items.append(self._item(entry))
        direct = self._choose_direct(items)
        copies: dict[str, Path] = {}
        for entry, item in zip(entries, items, strict=True):
            if isinstance(item, dict):
                copies.update(item)
            elif item not in direct:
                with self._naming(entry):
                    copies.update(self._included(item.guest, item.source, _EVERYTHING))
        self._check_kinds(copies, direct)
        unmatched = (
            entry.pattern
            for entry, item in zip(entries, items, strict=True)
            if isinstance(entry, FileGlob) and not item
        )
        return FilePlan(
            direct=tuple((placed.resolved, placed.guest) for placed in direct),
            copies=tuple((copies[guest], guest) for guest in sorted(copies)),
            unmatched=tuple(unmatched),
        )

    def _item(self, entry: FileEntry) -> dict[str, Path] | _Placed:
        if (fault := entry_fault(entry)) is not None:
            raise ManifestError(fault)
        if isinstance(entry, FileGlob):
            return self._included("/", self._walk.root, split_glob(entry.pattern))
        if isinstance(entry, FileContent):
            raise ManifestError(
                "its content is in the locked app or a layer of an artifact, not in the image's "
                "files, which is not served yet"
            )
        return self._placed(entry)

    @contextmanager
    def _naming(self, entry: FileEntry) -> Iterator[None]:
        where = entry.where or f'component "{self._component.id}": files entry {_described(entry)}'
        try:
            yield
        except ManifestError as exc:
            raise ManifestError(f"{where}: {exc}") from None
        except OSError as exc:
            raise ManifestError(f"{where}: cannot read {exc.filename}: {exc.strerror}") from exc

    def _placed(self, entry: FilePlacement) -> dict[str, Path] | _Placed:
        root = self._walk.root
        try:
            resolved = (root / entry.source).resolve(strict=True)
        except (OSError, RuntimeError):
            raise ManifestError(f"source `{entry.source}` not found in {root}") from None
        if not resolved.is_relative_to(root):
            raise ManifestError(f"source `{entry.source}` leads out of {root}")
        if _is_kernels(resolved):
            raise ManifestError(f"source `{entry.source}` is the kernel's, not the image's")
        guest = "/" + "/".join(
            part for part in entry.destination.split("/") if part not in ("", ".")
        )
        if resolved.is_file() and guest != "/":  # exclude_files are not asked about it
            return {guest: resolved}
        if not resolved.is_dir():
            raise ManifestError(f"source `{entry.source}` is not a directory")
        # After a link `..` is not what it looks like.
        source = resolved if ".." in entry.source.split("/") else root / entry.source
        return _Placed(source, resolved, guest, self._nothing_excluded_below(source))

    def _nothing_excluded_below(self, directory: Path) -> bool:
        return not self._excluded or not any(
            self._is_excluded(lexical) or self._is_excluded(resolved)
            for lexical, resolved in self._walk.find(directory, _EVERYTHING)
        )

    def _included(self, guest: str, start: Path, parts: GlobParts) -> dict[str, Path]:
        files = {}
        for lexical, resolved in self._walk.find(start, parts):
            if self._is_excluded(lexical) or self._is_excluded(resolved):
                continue
            files[str(PurePosixPath(guest, lexical.relative_to(start)))] = resolved
        return files

    def _is_excluded(self, file: Path) -> bool:
        if not self._excluded or not file.is_relative_to(self._walk.root):
            return False
        path = str(file.relative_to(self._walk.root))
        return any(matches(path) for matches in self._excluded)

    def _choose_direct(self, items: list[dict[str, Path] | _Placed]) -> list[_Placed]:
        """Return the placements that share no path with anything else."""
        copied = {guest for item in items if isinstance(item, dict) for guest in item}
        placed = [item for item in items if isinstance(item, _Placed)]
        direct = [item for item in placed if item.may_be_direct]
        while True:
            others = [item.guest for item in placed if item not in direct]
            kept = [
                item
                for item in direct
                if not any(_is_below(guest, item.guest) for guest in copied)
                and not any(
                    _is_below(guest, item.guest) or _is_below(item.guest, guest)
                    for guest in (*others, *(other.guest for other in direct if other is not item))
                )
            ]
            if kept == direct:
                return direct
            direct = kept

    def _check_kinds(self, copies: dict[str, Path], direct: list[_Placed]) -> None:
        for guest in (*copies, *(placed.guest for placed in direct)):
            for parent in PurePosixPath(guest).parents:
                if str(parent) in copies:
                    where = self._component.where or f'component "{self._component.id}"'
                    raise ManifestError(
                        f"{where}: files: `{parent}` would be both a file and the directory of "
                        f"`{guest}`"
                    )


class _Kind(Enum):
    FILE = auto()
    DIRECTORY = auto()
    LINK = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class _Step:
    """A directory to look into, and the part of the pattern its entries have to match."""

    directory: Path
    resolved: Path
    index: int
    above: tuple[Path, ...]
    """Where each directory on the way leads."""


class _Walk:
    """Finds files below a root, and counts what it has to look at."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._count = 0
        self._listings: dict[Path, list[tuple[str, _Kind]]] = {}

    def find(self, start: Path, parts: GlobParts) -> Iterator[tuple[Path, Path]]:
        """Yield each regular file that ``parts`` find from ``start``: its path, where it leads."""
        seen: set[tuple[Path, int]] = set()
        found: set[Path] = set()
        resolved = start.resolve()
        todo = [_Step(start, resolved, 0, (resolved,))] if parts else []
        while todo:
            step = todo.pop()
            if (step.directory, step.index) in seen:
                continue
            seen.add((step.directory, step.index))
            recursive = parts[step.index] == "**"
            last = step.index == len(parts) - 1
            if recursive and last:  # finds directories only
                continue
            if recursive:
                todo.append(replace(step, index=step.index + 1))
            for name, kind in self._candidates(step.directory, parts[step.index]):
                path, leads_to = step.directory / name, step.resolved / name
                if kind is _Kind.LINK:
                    leads_to, kind = self._follow(path)
                    if leads_to in step.above:  # a link to where it lies: a walk without end
                        continue
                if _is_kernels(leads_to):
                    continue
                if kind is _Kind.DIRECTORY and not last:
                    index = step.index if recursive else step.index + 1
                    todo.append(_Step(path, leads_to, index, (*step.above, leads_to)))
                elif kind is _Kind.FILE and last and path not in found:
                    found.add(path)
                    yield path, leads_to

    def _candidates(self, directory: Path, part: str | re.Pattern[str]) -> list[tuple[str, _Kind]]:
        if isinstance(part, re.Pattern):
            return [entry for entry in self._list(directory) if part.fullmatch(entry[0])]
        if part == "**":
            return self._list(directory)
        self._add_one()
        return [(part, _Kind.LINK)]  # it may be one, or not be there

    def _list(self, directory: Path) -> list[tuple[str, _Kind]]:
        """Return what is in ``directory``; each is read once."""
        if directory not in self._listings:
            listing = []
            with os.scandir(directory) as entries:
                for entry in entries:
                    self._add_one()
                    listing.append((entry.name, _kind_of(entry)))
            self._listings[directory] = listing
        return self._listings[directory]

    def _add_one(self) -> None:
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise ManifestError(f"more than {MAX_ENTRIES} files and directories to look at")

    def _follow(self, path: Path) -> tuple[Path, _Kind]:
        """Return where ``path`` leads and what is there; what is out of the root is OTHER."""
        try:
            resolved = path.resolve(strict=True)
        except (OSError, RuntimeError):  # dangling, or a circle of links
            return path, _Kind.OTHER
        if not resolved.is_relative_to(self.root):
            return path, _Kind.OTHER
        if resolved.is_dir():
            return resolved, _Kind.DIRECTORY
        return resolved, _Kind.FILE if resolved.is_file() else _Kind.OTHER


def _is_kernels(path: Path) -> bool:
    return any(path.is_relative_to(directory) for directory in _KERNELS)


def _kind_of(entry: os.DirEntry[str]) -> _Kind:
    if entry.is_symlink():
        return _Kind.LINK
    if entry.is_dir(follow_symlinks=False):
        return _Kind.DIRECTORY
    return _Kind.FILE if entry.is_file(follow_symlinks=False) else _Kind.OTHER


def _is_below(path: str, directory: str) -> bool:
    return PurePosixPath(path).is_relative_to(directory)


def _described(entry: FileEntry) -> str:
    if isinstance(entry, FileGlob):
        return f"`{entry.pattern}`"
    if isinstance(entry, FileContent):
        return f"`{entry.destination}`"
    return f"`{entry.source}` at `{entry.destination}`"
