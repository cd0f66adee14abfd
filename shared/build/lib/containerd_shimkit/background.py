"""Leaving the caller: what a process does that goes on after its command has ended."""

from __future__ import annotations

import os
import sys


def release_standard_streams() -> None:
    """Point descriptors 0, 1 and 2 at /dev/null: containerd reads them until nobody holds them."""
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)


def fork_into_background() -> None:
    """Let this process end with success; return in its child, in a session of its own."""
    sys.stdout.flush()
    if os.fork():
        os._exit(0)
    os.setsid()
    release_standard_streams()
