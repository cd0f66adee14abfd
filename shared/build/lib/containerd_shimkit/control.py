"""What a shim tells a container's first processes, and what they report back.

The request comes with the fork. The reports are JSON objects, one a packet: ``pid``, ``created``,
``prepared``, ``ready``, ``failed`` with the reason, or ``ordinary`` for a container that is not for
an engine; the shim's one answer is ``start``. With hooks in the spec there is one more of each:
``hooks``, when the shim's are to run, and ``continue``.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from containerd_shimkit.errors import ExitCode, ShimError
from containerd_shimkit.linux.mounts import RootfsMount
from containerd_shimkit.linux.syscalls import set_pdeathsig
from containerd_shimkit.oci.bundle import Bundle
from containerd_shimkit.runtime import ShimKind
from containerd_shimkit.stdio import StdioNames


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """Everything about a container that its first process has to know."""

    kind: ShimKind
    namespace: str
    task_id: str
    bundle: Bundle
    rootfs: Sequence[RootfsMount]
    stdio: StdioNames
    terminal: bool = False


class Control:
    """The sandbox's end of the socket pair to the shim."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def report(self, event: str, **fields: Any) -> None:
        """Tell the shim; a shim that is gone is noticed elsewhere."""
        with contextlib.suppress(OSError):
            self.connection.send(json.dumps({"event": event, **fields}).encode())

    def report_failure(self, exc: BaseException) -> int:
        """Tell the shim why this process ends; return its exit code."""
        code: int = ExitCode.INTERNAL
        status = ShimError.status
        if isinstance(exc, ShimError):
            code, status = exc.exit_code, exc.status
        message = str(exc) or repr(exc)
        self.report("failed", message=message[:8192], exit_code=code, status=status)
        return code

    def shim_is_gone(self) -> bool:
        """Whether the shim has closed its end, as it does when it dies."""
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def wait_for_start(self) -> bool:
        """Return True when the shim says start, False when it is gone.

        From then on this process dies with the shim. Not before: its first parent was the stage,
        which has ended by now.
        """
        told = self._wait_for(b"start")
        set_pdeathsig(signal.SIGKILL)
        # Gone before that call, then: in a pid namespace getppid() is 0 anyway.
        return told and not self.shim_is_gone()

    def let_shim_run_hooks(self) -> bool:
        """Return True when the shim has run its hooks, False when it is gone."""
        self.report("hooks")
        return self._wait_for(b"continue")

    def _wait_for(self, word: bytes) -> bool:
        with contextlib.suppress(OSError):
            return self.connection.recv(64) == word
        return False
