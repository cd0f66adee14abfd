"""What a shim does first that runs from its own unpacked files.

The launcher (``shared/launcher``) executes a loader that starts Python, and passes on two
descriptors: as long as one process has them, nobody removes the files.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import struct
import sys
from pathlib import Path
from typing import Final

from containerd_shimkit.forked import keep_in_children
from containerd_shimkit.runtime import set_state_directory

_PR_SET_MM: Final = 35  # linux/prctl.h
_PR_SET_MM_ARG_START: Final = 8
_PR_SET_MM_MAP: Final = 14


def enter(home: str) -> str:
    """Take the launcher's own arguments from ``sys.argv``; return the build's id.

    home: ``ROOT/spin-BUILD/files``, where the shim lies.
    """
    set_state_directory(str(Path(home).parents[1]))
    locks, build_id = sys.argv[1:3]
    del sys.argv[1:3]
    for lock in locks.split(","):
        os.set_inheritable(int(lock), False)  # forks keep it, programs do not get it
    _keep_for_callbacks(sys.executable)
    ctypes.util.find_library = _find_library
    _hide_loader()
    return build_id


def _keep_for_callbacks(path: str) -> None:
    """Have forks keep, and programs not get, the descriptor of Python itself that libffi has open.

    For every hundred ctypes callbacks it maps a page of it. Once closed, there would be no more
    callbacks, or worse: the number may be that of another file by then.
    """
    program = Path(path).stat()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(int(entry.name)), program):
                os.set_inheritable(int(entry.name), False)
                keep_in_children(int(entry.name))


def _find_library(name: str) -> str | None:
    """Find a shared library in the bundle, by the name its loader finds it by.

    Python's own runs ``ldconfig`` and compilers, and finds the node's libraries.
    """
    found = sorted(path.name for path in Path(sys.prefix, "lib").glob(f"lib{name}.so.*"))
    return found[0] if found else None


def _hide_loader() -> None:
    """Let the command line begin with Python, for setproctitle: it writes where Python's begins.

    Where the kernel refuses, ``ps`` goes on to show the loader before the title.
    """
    raw = Path("/proc/self/cmdline").read_bytes()
    ours = raw.split(b"\0")[:-1][: -len(sys.orig_argv)]
    stat = Path("/proc/self/stat").read_text(errors="replace")
    fields = ["", "", "", *stat[stat.rindex(")") + 2 :].split()]  # by their numbers in proc(5)
    start = int(fields[48]) + sum(len(word) + 1 for word in ours)
    libc = ctypes.CDLL(None)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    libc.sbrk.restype = ctypes.c_ulong
    if libc.prctl(_PR_SET_MM, _PR_SET_MM_ARG_START, start, 0, 0) == 0:
        return
    # Without CAP_SYS_RESOURCE all has to be said, on kernels that can be checkpointed: struct
    # prctl_mm_map, all as it is but for the start of the arguments. No auxv, no file.
    code, data, heap = fields[26:28], fields[45:47], fields[47]
    numbers = [*code, *data, heap, libc.sbrk(0), fields[28], start, *fields[49:52]]
    layout = struct.pack("<11QQIi", *map(int, numbers), 0, 0, -1)
    buffer = ctypes.create_string_buffer(layout, len(layout))
    libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.addressof(buffer), len(layout), 0)
