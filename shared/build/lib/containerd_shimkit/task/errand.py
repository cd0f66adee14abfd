"""Blocking work of a shim, such as asking systemd: done by a forked child, and awaited."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

from containerd_shimkit.control import Control
from containerd_shimkit.errors import ShimError, Status
from containerd_shimkit.forked import close_all_but, reset_signals, run_and_exit
from containerd_shimkit.linux.syscalls import set_pdeathsig
from containerd_shimkit.reaper import Reaper

_MAX_PACKET: Final = 64 << 10


class ReportedError(ShimError):
    """What a forked child reported, with the status it gave."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = Status(status)  # type: ignore[misc]  # the reporter's class decided it


async def run_errand(reaper: Reaper, errand: Callable[[], list[str] | None]) -> list[str]:
    """Return the warnings that ``errand`` returns, which bounds the time it takes itself.

    Nothing else that it changes in memory is seen here. Raises ShimError with its reason.
    """
    shim_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with shim_end:
        shim_end.setblocking(False)
        with child_end:
            ended = reaper.watch(_fork(errand, child_end))
        data = await asyncio.get_running_loop().sock_recv(shim_end, _MAX_PACKET)
        exit_ = await ended
    if not data:
        raise ShimError(f"a process of the shim ended with {exit_.status} before it said why")
    message: dict[str, Any] = json.loads(data)
    if message["event"] == "failed":
        raise ReportedError(message["message"], message["status"])
    warnings: list[str] = message["warnings"]
    return warnings


def _fork(errand: Callable[[], list[str] | None], child_end: socket.socket) -> int:
    pid = os.fork()
    if pid == 0:
        run_and_exit(lambda control: _run(errand, control), child_end)
    return pid


def _run(errand: Callable[[], list[str] | None], control: Control) -> int:
    reset_signals()
    close_all_but(control.connection.fileno())
    set_pdeathsig(signal.SIGKILL)
    control.report("done", warnings=errand() or [])
    return 0
