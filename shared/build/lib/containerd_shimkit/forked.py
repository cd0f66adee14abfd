"""What every forked child of a shim does first and last."""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Callable
from typing import Final, NoReturn

from containerd_shimkit.control import Control
from containerd_shimkit.errors import ExitCode
from containerd_shimkit.linux.syscalls import close_range

_FIRST_FREE: Final = 3  # after the standard streams

_kept: set[int] = set()


def run_and_exit(body: Callable[[Control], int], connection: socket.socket) -> NoReturn:
    """Run ``body`` in a forked child and leave by ``_exit``, whatever happens."""
    code: int = ExitCode.INTERNAL
    try:
        # Objects of the parent must not be finalised here: descriptors they own get new owners.
        gc.freeze()
        control = Control(connection)
        try:
            code = body(control)
        except BaseException as exc:
            code = control.report_failure(exc)
    finally:
        os._exit(code)


def reset_signals() -> None:
    """Undo what the shim's event loop set up."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def keep_in_children(descriptor: int) -> None:
    """Have ``close_all_but`` spare a descriptor that a library goes on to use by its number."""
    _kept.add(descriptor)


def close_all_but(*keep: int) -> None:
    """Close every descriptor from 3 up that is not in ``keep``."""
    low = _FIRST_FREE
    for descriptor in sorted(_kept.union(keep)):
        if descriptor > low:
            close_range(low, descriptor - 1)
        low = descriptor + 1
    close_range(low)
