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
from containerd_shimkit.linux.paths import closing
from containerd_shimkit.linux.program import is_program
from containerd_shimkit.oci.spec import Process

_AWAITED = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def run(request: SandboxRequest, control: Control) -> int:
    """Execute the program, or wait to be told to end and return the exit code.

    Raises SandboxError if a hook fails.
    """
    control.report("prepared")
    if not control.wait_for_start():
        return ExitCode.INTERNAL
    run_start_container(request.bundle, request.task_id)
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)  # none is lost from here on
    control.report("ready")
    _execute(request.bundle.spec.process)
    return _wait()


def _execute(process: Process) -> None:
    """Become the image's program; return if it has none, or none for this machine."""
    with closing(os.open("/", os.O_PATH | os.O_CLOEXEC)) as root:
        if not is_program(root, process.args[0], process.environment, process.cwd):
            return
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, inherited by programs
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
    with contextlib.suppress(OSError):
        os.execvpe(process.args[0], process.args, process.environment)
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)


def _wait() -> int:
    """Wait for SIGTERM or SIGINT.

    Where the pod shares its process ids, orphans of its containers come here and are reaped.
    """
    while signal.sigwait(_AWAITED) == signal.SIGCHLD:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    return ExitCode.OK
