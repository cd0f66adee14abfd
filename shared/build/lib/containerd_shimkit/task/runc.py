"""The node's OCI runtime, ``runc`` or ``crun``, as ordinary containers of a pod are run with.

Its commands are short-lived children; the processes it leaves behind become the shim's, which is
a subreaper.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from containerd_shimkit.errors import NotFoundError, ShimError, UnavailableError
from containerd_shimkit.linux.program import DEFAULT_PATH
from containerd_shimkit.reaper import Reaper
from containerd_shimkit.spawn import spawn

DEFAULT_ROOT: Final = Path("/run/containerd/runc")
"""Where containerd's own shim has runc keep its state; a directory for each namespace."""

_BINARIES: Final = ("runc", "crun")
# Source: containerd pkg/process/utils.go, checkKillError.
_ENDED: Final = ("not running", "already finished", "no such process", "does not exist")
_MAX_LOG_BYTES: Final = 1 << 20
_PATH: Final = DEFAULT_PATH


@dataclass(frozen=True, slots=True)
class StandardStreams:
    """Descriptors that become 0, 1 and 2 of a process."""

    stdin: int
    stdout: int
    stderr: int


class RuncError(ShimError):
    """A command failed; the message is the runtime's own."""


class Runc:
    """Runs commands of one runtime for the containers of one namespace."""

    def __init__(
        self,
        reaper: Reaper,
        namespace: str,
        *,
        binary: str = "",
        root: str = "",
        systemd_cgroup: bool = False,
    ) -> None:
        """binary, root: from containerd's runtime options, empty for the usual ones.

        systemd_cgroup: have systemd make the cgroups, and read cgroupsPath as slice:prefix:name.
        Raises UnavailableError if the node has no such program.
        """
        self._reaper = reaper
        self._binary = _find(binary)
        self._root = Path(root or DEFAULT_ROOT) / namespace
        self._options = ("--systemd-cgroup",) if systemd_cgroup else ()

    @property
    def command(self) -> tuple[str, ...]:
        """The program and the options that every command of it gets."""
        return (str(self._binary), "--root", str(self._root), *self._options)

    async def create(
        self,
        task_id: str,
        bundle: Path,
        streams: StandardStreams | None,
        console_socket: Path | None = None,
    ) -> int:
        """Create a container; return the pid of its init. Raises RuncError."""
        pid_file = bundle / "init.pid"
        arguments = ["create", "--bundle", str(bundle), "--pid-file", str(pid_file)]
        if console_socket is not None:
            arguments += ["--console-socket", str(console_socket)]
        await self._run(bundle, [*arguments, task_id], streams)
        return int(pid_file.read_text())

    async def start(self, task_id: str, bundle: Path) -> None:
        """Let the init of a created container execute its program. Raises RuncError."""
        await self._run(bundle, ["start", task_id])

    async def exec(
        self,
        task_id: str,
        bundle: Path,
        process: Path,
        streams: StandardStreams | None,
        console_socket: Path | None = None,
    ) -> int:
        """Start another process in a container; return its pid. ``process``: file with its spec."""
        pid_file = process.with_suffix(".pid")
        arguments = ["exec", "--detach", "--process", str(process), "--pid-file", str(pid_file)]
        if console_socket is not None:
            arguments += ["--console-socket", str(console_socket)]
        await self._run(bundle, [*arguments, task_id], streams)
        return int(pid_file.read_text())

    async def kill(
        self, task_id: str, bundle: Path, number: int, *, everything: bool = False
    ) -> None:
        """Send a signal to the init, or to every process of the container."""
        arguments = ["kill", "--all"] if everything else ["kill"]
        try:
            await self._run(bundle, [*arguments, task_id, str(number)])
        except RuncError as exc:
            if any(text in str(exc).lower() for text in _ENDED):
                raise NotFoundError("process already finished") from exc
            raise

    async def delete(self, task_id: str, bundle: Path) -> None:
        """Remove a container with all its processes; fine if it is not there."""
        await self._run(bundle, ["delete", "--force", task_id])

    async def _run(
        self, bundle: Path, arguments: list[str], streams: StandardStreams | None = None
    ) -> None:
        log = bundle / "runc.json"
        log.unlink(missing_ok=True)
        command = [*self.command, "--log", str(log), "--log-format", "json", *arguments]
        with open(os.devnull, "r+b", buffering=0) as null:
            streams = streams or StandardStreams(*[null.fileno()] * 3)
            descriptors = (streams.stdin, streams.stdout, streams.stderr)
            pid = spawn(command, {"PATH": _PATH}, descriptors)
        exit_ = await self._reaper.watch(pid)
        if exit_.status != 0:
            raise RuncError(_last_error(log) or f"{self._binary.name} ended with {exit_.status}")


def _find(binary: str) -> Path:
    names = (binary,) if binary else _BINARIES
    for name in names:
        for directory in ("/", *_PATH.split(":")) if name.startswith("/") else _PATH.split(":"):
            path = Path(directory, name)
            if path.is_file() and os.access(path, os.X_OK):
                return path
    raise UnavailableError(
        f"an ordinary Linux container needs {' or '.join(names)} on the node, and there is none"
    )


def _last_error(log: Path) -> str:
    """Return the message of the last error in a log of JSON lines."""
    try:
        with open(log, "rb") as file:
            lines = file.read(_MAX_LOG_BYTES).splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
            return str(entry.get("msg", ""))
    return ""
