"""Is a container an ordinary Linux one? Decided by what its command is in its own rootfs."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from containerd_shimkit.linux.paths import closing, open_in_root

_MAGIC = (b"\x7fELF", b"#!")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def is_program(root_fd: int, command: str, env: Mapping[str, str], cwd: str = "/") -> bool:
    """Whether ``command`` leads to an executable ELF file or script inside the root.

    Looked up as execvp(3) does: a name without ``/`` along PATH, a relative path from ``cwd``.
    """
    if not command:
        return False
    if "/" in command:
        return _is_program_file(root_fd, f"{cwd}/{command}" if command[0] != "/" else command)
    directories = (env.get("PATH") or DEFAULT_PATH).split(":")
    paths = (f"{d}/{command}" if d.startswith("/") else f"{cwd}/{d}/{command}" for d in directories)
    return any(_is_program_file(root_fd, path) for path in paths)


def _is_program_file(root_fd: int, path: str) -> bool:
    try:
        # Not O_PATH, since it is read; O_NONBLOCK, since an image may have a FIFO there.
        fd = open_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with closing(fd):
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) or not mode & 0o111:
            return False
        return os.pread(fd, 4, 0).startswith(_MAGIC)
