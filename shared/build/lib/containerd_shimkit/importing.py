"""The end of imports: what a container's first process needs is imported before it has its root.

Python's files lie where they lay on the node, and an image may have others at that very place. The
interpreter looks for modules by itself: a codec by its name, say, when a host name is encoded.
"""

from __future__ import annotations

import linecache
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter
from typing import Any


def end_imports() -> None:
    """Have nothing found in files any more; only what is part of the interpreter is found."""
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter]
    sys.path.clear()
    sys.path_importer_cache.clear()
    # A traceback in the log would show lines of the image's files, and wait for a FIFO.
    linecache.updatecache = _no_lines


def _no_lines(filename: str, module_globals: dict[str, Any] | None = None) -> list[str]:
    return []
