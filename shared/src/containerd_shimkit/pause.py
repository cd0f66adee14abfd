"""The pause container: the first process of a pod, which holds its namespaces and does nothing.

Isolated as every container of ours, so that a pod without ordinary containers needs no OCI runtime
on the node. The image's program weighs less than a Python process that sleeps, so it is executed
where there is one; a pod made by containerd's sandbox API has no image.
"""

from __future__ import annotations

import contextlib
import os
import signal

from containerd_shimkit.control import Control, SandboxRequest
from containerd_shimkit.errors import ExitCode
from containerd_shimkit.hooks import run_start_container

_AWAITED = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def run(request: SandboxRequest, control: Control) -> int:
    """Execute the program, or wait to be told to end and return the exit code.

    Raises SandboxError if a hook fails.
    """
    control.report("prepared")
    if not control.wait_for_start():
        return ExitCode.INTERNAL
    run_start_container(request.bundle, request.task_id)
    control.report("ready")
    for number in (
        signal.SIGPIPE,
        signal.SIGXFSZ,
    ):  # Python ignores them, and a program inherits it
        signal.signal(number, signal.SIG_DFL)
    process = request.bundle.spec.process
    with contextlib.suppress(OSError):
        os.execvpe(process.args[0], process.args, process.environment)
    return _wait()


def _wait() -> int:
    """Wait for SIGTERM or SIGINT.

    Where the pod shares its process ids, orphans of its containers come here and are reaped.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    while signal.sigwait(_AWAITED) == signal.SIGCHLD:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    return ExitCode.OK
