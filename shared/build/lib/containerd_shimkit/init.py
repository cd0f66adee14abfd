"""The last part of a container's first process: prepare the app, wait for Start, serve.

Everything here runs isolated, as the container's user.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import uvloop

from containerd_shimkit.control import Control, SandboxRequest
from containerd_shimkit.engine import Engine, RuntimeContext
from containerd_shimkit.errors import EngineError, ExitCode, ShimError
from containerd_shimkit.guest_files import guest_directories
from containerd_shimkit.hooks import run_start_container
from containerd_shimkit.late import ModuleTrees, importable
from containerd_shimkit.linux.seccomp import NOT_APPLIED, seccomp_available
from containerd_shimkit.output import OutputHandler, OutputWriter
from containerd_shimkit.wasm.compiler import request_compiled
from containerd_shimkit.workers import Workers, usable_processors

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
"""Each stops the app: requests in flight may end. A second one ends the process at once."""

TERMINATION_LOG: Final = "/dev/termination-log"  # terminationMessagePath's default
_MAX_TERMINATION_BYTES: Final = 4096  # what kubelet reads

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedFiles:
    """Descriptors of what an engine could not open."""

    ca_bundle: int | None
    """See ``RuntimeContext``."""
    image_mount: int | None
    """See ``guest_files``."""


def run(
    request: SandboxRequest,
    control: Control,
    engine: Engine,
    compiler: socket.socket,
    files: OpenedFiles,
    trees: ModuleTrees | None,
) -> int:
    """Serve the app, and leave with its exit code; return the code of one that never served.

    trees: what the engine may import from.
    """
    stdout, stderr = OutputWriter(1), OutputWriter(2)
    _log_to(stderr)
    if request.bundle.spec.linux.seccomp and not seccomp_available():
        log.warning("%s", NOT_APPLIED)  # where a user of Kubernetes can see it
    os.environ.clear()  # it was containerd's
    context = _context(request, compiler, files, stdout, stderr)
    app: Any = None
    failure: ShimError | None = None
    try:
        with contextlib.nullcontext() if trees is None else importable(trees):
            app = engine.prepare(context)
    except ImportError as exc:
        failure = EngineError(str(exc))
    except ShimError as exc:
        failure = exc  # Create succeeds; Start fails with the reason, and Wait has the exit code
    compiler.close()
    control.report("prepared")
    if not control.wait_for_start():
        return ExitCode.INTERNAL
    if failure is None:
        try:
            run_start_container(request.bundle, request.task_id)
        except ShimError as exc:
            failure = exc
    if failure is None:
        try:
            count = engine.listen(app)
        except ShimError as exc:
            failure = exc
    if failure is not None:
        return _fail(request, control, stderr, failure)
    # The app is there to stay; the collector need not look at it again while requests are served.
    gc.collect()
    gc.freeze()
    process = _Process(request, control, engine, app, stderr)
    workers = Workers(count, process.work) if count > 1 else None
    if workers is not None and workers.pids:
        with asyncio.Runner() as runner:
            code = runner.run(process.supervise(workers))
    else:
        code = process.serve()
    engine.close(app)
    # Here, and not by returning, which would take the engine apart first: the kernel does that
    # better, and on User-Mode-Linux wasmtime was seen to abort over it.
    os._exit(code)


def _log_to(stderr: OutputWriter) -> None:
    root = logging.getLogger()
    root.handlers[:] = [OutputHandler(stderr)]
    root.setLevel(logging.INFO)


def _context(
    request: SandboxRequest,
    compiler: socket.socket,
    files: OpenedFiles,
    stdout: OutputWriter,
    stderr: OutputWriter,
) -> RuntimeContext:
    spec = request.bundle.spec
    memory = (spec.linux.resources.get("memory") or {}).get("limit")
    return RuntimeContext(
        task_id=request.task_id,
        args=tuple(spec.process.args),
        env=spec.process.environment,
        hostname=spec.hostname or "",
        memory_limit_bytes=memory if memory and memory > 0 else None,
        processors=usable_processors(spec.linux.resources, len(os.sched_getaffinity(0))),
        compile=lambda wasm, name: request_compiled(compiler, wasm, name),
        ca_bundle=files.ca_bundle,
        directories=guest_directories(files.image_mount, spec.mounts),
        stdout=stdout,
        stderr=stderr,
    )


@dataclass(frozen=True, slots=True)
class _Process:
    """What a process that serves, or that looks after those that do, has in its hands."""

    request: SandboxRequest
    control: Control
    engine: Engine
    app: Any
    stderr: OutputWriter

    def serve(self) -> int:
        """Serve in the container's first process."""

        def end() -> None:
            os._exit(ExitCode.OK)

        return self._run_engine(partial(self.control.report, "ready"), end)

    def work(self, ready: Callable[[], None]) -> int:
        """Serve in a worker. Its supervisor is told of a second signal, too, and acts upon it."""
        return self._run_engine(ready, lambda: None)

    def _run_engine(self, ready: Callable[[], None], end: Callable[[], None]) -> int:
        async def run() -> int:
            return await self.engine.serve(self.app, ready, self._stop_event(end))

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._guarded(run()))

    async def supervise(self, workers: Workers) -> int:
        """Look after the workers in the container's first process."""

        def end() -> None:
            workers.kill()
            os._exit(ExitCode.OK)

        ready = partial(self.control.report, "ready")
        return await self._guarded(workers.run(ready, self._stop_event(end)))

    async def _guarded(self, running: Coroutine[Any, Any, int]) -> int:
        try:
            return await running
        except ShimError as exc:
            return _fail(self.request, self.control, self.stderr, exc)
        except Exception as exc:
            log.exception("the engine failed")
            return _fail(self.request, self.control, self.stderr, exc)

    def _stop_event(self, end: Callable[[], None]) -> asyncio.Event:
        """Return what is set by the first signal to stop, and by the end of the shim.

        end: called for every further signal.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def handle_stop() -> None:
            if stop.is_set():
                end()
            stop.set()

        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, handle_stop)
        self.control.connection.setblocking(False)
        loop.add_reader(self.control.connection.fileno(), _end_without_shim, self.control, stop)
        return stop


def _end_without_shim(control: Control, stop: asyncio.Event) -> None:
    """The shim says nothing after Start; that its end is readable means that it is gone."""
    asyncio.get_running_loop().remove_reader(control.connection.fileno())
    stop.set()


def _fail(request: SandboxRequest, control: Control, stderr: OutputWriter, exc: Exception) -> int:
    """Say why the container ends, in every place where somebody may look; return its exit code."""
    reason = str(exc).encode(errors="replace")
    stderr.write(reason + b"\n")
    # Kubernetes mounts a file there and shows its contents as the container's message.
    if any(mount.destination == TERMINATION_LOG for mount in request.bundle.spec.mounts):
        with contextlib.suppress(OSError):
            log_file = os.open(TERMINATION_LOG, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            os.write(log_file, reason[:_MAX_TERMINATION_BYTES])
            os.close(log_file)
    return control.report_failure(exc)
