"""The system calls that not every Python has a function for."""

from __future__ import annotations

import fcntl
import os
import select
import signal
from pathlib import Path

import pytest

from containerd_shimkit.linux.constants import P_PIDFD
from containerd_shimkit.linux.syscalls import memfd_create, pidfd_open, pidfd_send_signal


def test_pidfd_of_a_child() -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(1)
    pidfd = pidfd_open(child)
    try:
        assert fcntl.fcntl(pidfd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        pidfd_send_signal(pidfd, 0)
        assert not select.select([pidfd], [], [], 0)[0]
        pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], 5)[0]
        result = os.waitid(P_PIDFD, pidfd, os.WEXITED)
        assert result is not None
        assert result.si_status == signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            pidfd_send_signal(pidfd, 0)
    finally:
        os.close(pidfd)


def test_pidfd_of_nobody() -> None:
    with pytest.raises(OSError, match="Invalid argument") as caught:
        pidfd_open(-1)
    assert caught.value.__notes__ == ["pidfd_open()"]


def test_memfd() -> None:
    with os.fdopen(memfd_create("some name"), "r+b") as file:
        assert "memfd:some name" in str(Path(f"/proc/self/fd/{file.fileno()}").readlink())
        assert fcntl.fcntl(file, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        file.write(b"contents")
        file.seek(0)
        assert file.read() == b"contents"
