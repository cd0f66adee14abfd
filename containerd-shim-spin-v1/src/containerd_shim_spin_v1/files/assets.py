"""Making a component's files visible to it: directories as they are, single files as copies.

A guest can be given directories only. Where it may see single files of one, these are copied into
a directory of their own, once for each container.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from containerd_shim_spin_v1.files.plan import FilePlan
from containerd_shimkit.errors import ManifestError
from containerd_shimkit.scratch import NoScratchError, make_scratch

_ROOT: Final = Path("/")


class Assets:
    """The copies made for an app."""

    def __init__(self, directories: Iterable[tuple[str, str]] = ()) -> None:
        """directories: see ``RuntimeContext``; what a guest sees of ``/``."""
        self._root = tuple(directories)
        self._directory: Path | None = None

    def place(self, component_id: str, plan: FilePlan) -> list[tuple[str, str]]:
        """Return the directories for a component: (path, path the guest sees).

        Raises ManifestError if there is no place for copies, or not enough of it.
        """
        directories: list[tuple[str, str]] = []
        for path, guest in plan.direct:
            directories += self._root_at(guest) if path == _ROOT else [(str(path), guest)]
        if plan.copies:
            try:
                copies = self._copy(component_id, plan)
            except OSError as exc:
                raise ManifestError(
                    f"component {component_id!r}: files cannot be copied to "
                    f"{exc.filename or self._directory}: {exc.strerror}"
                ) from exc
            directories.append((str(copies), "/"))
        return directories

    def _root_at(self, guest: str) -> list[tuple[str, str]]:
        if not any(seen == "/" for _, seen in self._root):
            raise ManifestError(
                "`files` can name the whole image only where the container has /proc, from Linux "
                "5.12 on: name directories of it"
            )
        return [(path, f"{guest}/{seen}".replace("//", "/")) for path, seen in self._root]

    def _copy(self, component_id: str, plan: FilePlan) -> Path:
        if self._directory is None:
            self._directory = _make_directory()
        top = Path(tempfile.mkdtemp(dir=self._directory))
        for source, guest in plan.copies:
            target = top / guest.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        return top

    def remove(self) -> None:
        """Remove the copies."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def _make_directory() -> Path:
    try:
        return make_scratch("spin-assets-")
    except NoScratchError as exc:
        raise ManifestError(f"`files` needs {exc}, or name whole directories") from None
