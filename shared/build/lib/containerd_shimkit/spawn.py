"""Executing a program with given descriptors and nothing else of ours."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Final

# A program expects the default; what a process ignores its children ignore too.
_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)


def spawn(
    command: Sequence[str],
    environment: Mapping[str, str],
    descriptors: Sequence[int],
    *,
    first: int = 0,
    program: str = "",
    new_group: bool = False,
) -> int:
    """Execute ``command`` and return its pid; the caller waits for it.

    descriptors: ours, which become ``first``, ``first + 1``, … in the program. The standard ones
    below ``first`` are inherited, all others closed. program: the file, if it is not what the
    command calls it. new_group: make it the leader of a process group.
    Raises OSError if it cannot be executed.
    """
    # Copied beyond the targets first, so that no dup2 overwrites what a later one reads.
    end = first + len(descriptors)
    copies = [_duplicate_from(descriptor, end) for descriptor in descriptors]
    actions = [
        (os.POSIX_SPAWN_DUP2, copy, number) for number, copy in enumerate(copies, start=first)
    ]
    # A session would do, too, but a Python built with an older C library has no setsid here.
    group: dict[str, Any] = {"setpgroup": 0} if new_group else {}
    try:
        return os.posix_spawnp(
            program or command[0],
            list(command),
            environment,
            file_actions=actions,
            setsigdef=_IGNORED_BY_PYTHON,
            **group,
        )
    finally:
        for copy in copies:
            os.close(copy)


def _duplicate_from(descriptor: int, least: int) -> int:
    """Return a copy with a number of at least ``least``, closed on exec."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, least)
