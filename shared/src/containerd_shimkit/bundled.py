"""What a shim does first that runs from its own unpacked files.

The launcher (``shared/launcher``) executes a loader that starts Python, and passes on two
descriptors: as long as one process has them, nobody removes the files.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import sys
from pathlib import Path
from typing import Final

from containerd_shimkit.runtime import set_state_directory

_PR_SET_MM: Final = 35  # linux/prctl.h
_PR_SET_MM_ARG_START: Final = 8
_ARG_START: Final = 47 - 2  # proc(5), /proc/pid/stat: field 48, counted after the name


def enter(home: str) -> str:
    """Take the launcher's own arguments from ``sys.argv``; return the build's id.

    home: ``ROOT/spin-BUILD/files``, where the shim lies.
    """
    set_state_directory(str(Path(home).parents[1]))
    locks, build_id = sys.argv[1:3]
    del sys.argv[1:3]
    for lock in locks.split(","):
        os.set_inheritable(int(lock), False)  # forks keep it, programs do not get it
    _keep_from_programs(sys.executable)
    ctypes.util.find_library = _find_library
    _hide_loader()
    return build_id


def _keep_from_programs(path: str) -> None:
    """Have the descriptors of a file closed on exec: libffi leaves one open, of Python itself."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(entry.readlink()) == path:
                os.set_inheritable(int(entry.name), False)


def _find_library(name: str) -> str | None:
    """Find a shared library in the bundle, by the name its loader finds it by.

    Python's own runs ``ldconfig`` and compilers, and finds the node's libraries.
    """
    found = sorted(path.name for path in Path(sys.prefix, "lib").glob(f"lib{name}.so.*"))
    return found[0] if found else None


def _hide_loader() -> None:
    """Let the command line begin with Python, for setproctitle: it writes where Python's begins.

    Without CAP_SYS_RESOURCE, ``ps`` goes on to show the loader before the title.
    """
    raw = Path("/proc/self/cmdline").read_bytes()
    ours = raw.split(b"\0")[:-1][: -len(sys.orig_argv)]
    stat = Path("/proc/self/stat").read_text(errors="replace")
    start = int(stat[stat.rindex(")") + 2 :].split()[_ARG_START])
    address = start + sum(len(word) + 1 for word in ours)
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    prctl(_PR_SET_MM, _PR_SET_MM_ARG_START, address, 0, 0)
