"""Hooks of the OCI runtime spec: programs of the node that run at fixed points of a container.

    prestart, createRuntime   by the shim, when the mounts are made, before pivot_root
    createContainer           by the init, after those: the host's paths, the container's namespaces
    startContainer            by the init, before it serves: paths, user and rights of the container
    poststart                 by the shim, when the app serves
    poststop                  by the shim, when the container is deleted; without it by ``delete``

A hook gets the container's state as JSON on its standard input, the variables that its entry lists
and no others, and a session of its own, whose processes are killed when the time is over. A
failure of one of the first four fails the container; of the others it is logged. Input and output
are files in memory, so that nobody waits for a pipe that a child of the hook keeps open.
Source: OCI runtime spec, config.md "POSIX-platform Hooks" and runtime.md "Lifecycle".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from containerd_shimkit.errors import BundleError, SandboxError
from containerd_shimkit.linux.syscalls import memfd_create, pidfd_open, step
from containerd_shimkit.oci.bundle import Bundle
from containerd_shimkit.oci.spec import Hook, parse_hooks
from containerd_shimkit.reaper import Reaper
from containerd_shimkit.spawn import spawn

CREATING, CREATED, RUNNING, STOPPED = "creating", "created", "running", "stopped"

_OWED_FILE: Final = "poststop.json"
_MAX_OUTPUT_BYTES: Final = 1024  # of a failed hook's output, from its end

log = logging.getLogger(__name__)


def state_of(bundle: Bundle, task_id: str, status: str, pid: int = 0) -> bytes:
    """Return the container's state as a hook reads it. Source: runtime.md, "State"."""
    state = {
        "ociVersion": bundle.spec.oci_version,
        "id": task_id,
        "status": status,
        "pid": pid,
        "bundle": str(bundle.path),
        "annotations": dict(bundle.spec.annotations),
    }
    if not pid:
        del state["pid"]
    return json.dumps(state).encode()


class _Run:
    """One hook that runs."""

    def __init__(self, kind: str, hook: Hook, state: bytes) -> None:
        """Raises SandboxError if it cannot be executed."""
        self._name = f'run {kind} hook "{hook.path}"'
        with step(self._name):
            state_file = memfd_create("state")
            self._output = memfd_create("output")
            try:
                os.write(state_file, state)
                os.lseek(state_file, 0, os.SEEK_SET)
                self.pid = spawn(
                    hook.args or (hook.path,),
                    dict(entry.split("=", 1) for entry in hook.env),
                    (state_file, self._output, self._output),
                    program=hook.path,
                    new_group=True,
                )
            except BaseException:
                os.close(self._output)
                raise
            finally:
                os.close(state_file)

    def kill(self) -> None:
        """End the hook and what it has started; its leader is not reaped yet."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        os.close(self._output)

    def finish(self, status: int, seconds: float | None = None) -> None:
        """Raise SandboxError unless it went well. seconds: after which it was killed."""
        output = self._read_output()
        self.close()
        if seconds is not None:
            raise SandboxError(self._name, f"not done in {seconds:.3g} s{output}")
        if status != 0:
            raise SandboxError(self._name, f"exit status {status}{output}")

    def _read_output(self) -> str:
        size = os.fstat(self._output).st_size
        data = os.pread(self._output, _MAX_OUTPUT_BYTES, max(0, size - _MAX_OUTPUT_BYTES))
        text = data.decode(errors="replace").strip()
        return f": {text}" if text else ""


def run_hooks(kind: str, hooks: Iterable[Hook], state: bytes) -> None:
    """Run one after the other and wait for each. Raises SandboxError at the first that fails."""
    for hook in hooks:
        run = _Run(kind, hook, state)
        late = hook.timeout is not None and not _ends_within(run.pid, hook.timeout)
        if late:
            run.kill()
        status = _shell_status(os.waitpid(run.pid, 0)[1])
        run.finish(status, hook.timeout if late else None)


def run_start_container(bundle: Bundle, task_id: str) -> None:
    """Run those of startContainer, in the container and as its user. Raises SandboxError."""
    if hooks := bundle.spec.hooks.get("startContainer"):
        run_hooks("startContainer", hooks, state_of(bundle, task_id, CREATED, os.getpid()))


def _ends_within(pid: int, seconds: float) -> bool:
    process = pidfd_open(pid)
    try:
        return bool(select.select([process], [], [], seconds)[0])
    finally:
        os.close(process)


def _shell_status(wait_status: int) -> int:
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


async def _run_hooks(kind: str, hooks: Iterable[Hook], state: bytes, reaper: Reaper) -> None:
    """The same within the shim's loop."""
    for hook in hooks:
        run = _Run(kind, hook, state)
        exited = reaper.watch(run.pid)
        late = False
        try:
            await asyncio.wait_for(asyncio.shield(exited), hook.timeout)
        except TimeoutError:
            late = True
            run.kill()
        except BaseException:
            run.kill()
            run.close()
            raise
        run.finish((await exited).status, hook.timeout if late else None)


class ContainerHooks:
    """The hooks of one container that are the shim's to run."""

    def __init__(self, bundle: Bundle, task_id: str, reaper: Reaper) -> None:
        self._bundle = bundle
        self._task_id = task_id
        self._reaper = reaper
        self._hooks = bundle.spec.hooks

    async def create_runtime(self, pid: int) -> None:
        """Run prestart and createRuntime; from now on poststop is owed. Raises SandboxError."""
        self._owe_poststop()
        state = state_of(self._bundle, self._task_id, CREATING, pid)
        for kind in ("prestart", "createRuntime"):
            await _run_hooks(kind, self._hooks.get(kind, ()), state, self._reaper)

    async def poststart(self, pid: int) -> None:
        """Run each, whatever comes of the others."""
        if hooks := self._hooks.get("poststart"):
            state = state_of(self._bundle, self._task_id, RUNNING, pid)
            await self._run_each("poststart", hooks, state)

    async def poststop(self) -> None:
        """Run each that nobody has run yet."""
        if "poststop" in self._hooks and (owed := _take_owed(self._bundle.path)) is not None:
            await self._run_each("poststop", *owed)

    async def _run_each(self, kind: str, hooks: Iterable[Hook], state: bytes) -> None:
        for hook in hooks:
            try:
                await _run_hooks(kind, (hook,), state, self._reaper)
            except SandboxError as exc:
                log.warning("%s", exc)

    def _owe_poststop(self) -> None:
        """Write the hooks down for ``delete``, which may find nothing else of the bundle."""
        if hooks := self._hooks.get("poststop"):
            state = json.loads(state_of(self._bundle, self._task_id, STOPPED))
            owed = {"hooks": {"poststop": [asdict(hook) for hook in hooks]}, "state": state}
            temporary = self._bundle.path / f".{_OWED_FILE}.{os.getpid()}"
            with step("write down the poststop hooks"):
                temporary.write_text(json.dumps(owed))
                temporary.rename(self._bundle.path / _OWED_FILE)


def run_owed_poststop(bundle: Path, seconds: float) -> list[str]:
    """Run the poststop hooks that the bundle's shim has not run; return a sentence a failure.

    seconds: the most that all may take, whatever their own limits are.
    """
    failures = []
    hooks, state = _take_owed(bundle) or ((), b"")
    deadline = time.monotonic() + seconds
    for hook in hooks:
        left = max(0.0, deadline - time.monotonic())
        limit = left if hook.timeout is None else min(hook.timeout, left)
        try:
            run_hooks("poststop", [replace(hook, timeout=limit)], state)
        except SandboxError as exc:
            failures.append(str(exc))
    return failures


def _take_owed(bundle: Path) -> tuple[tuple[Hook, ...], bytes] | None:
    """Return hooks and state of what is owed: to one caller, however many ask at once."""
    try:
        data = (bundle / _OWED_FILE).read_text()
        (bundle / _OWED_FILE).unlink()
        owed = json.loads(data)
        return parse_hooks(owed["hooks"])["poststop"], json.dumps(owed["state"]).encode()
    except (OSError, ValueError, LookupError, TypeError, BundleError):
        return None
