"""The containerds that run on this node.

Those in containers are not the node's: Docker in Docker, kind. They have a root of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.empty_pb2 import Empty

from containerd_shimkit.errors import ShimError, Status
from containerd_shimkit.rpc.grpc import GrpcClient, GrpcError

_PROCESSES: Final = Path("/proc")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Daemon:
    """A containerd that runs."""

    pid: int
    program: Path
    config: Path
    address: str
    """Its socket, if its arguments name it."""
    path: str
    """The PATH on which it finds shims."""
    started: float
    """Seconds since 1970."""

    def is_older_than(self, file: Path) -> bool:
        """Whether a file was changed after the daemon had started."""
        try:
            return file.stat().st_mtime > self.started + 1
        except OSError:
            return False


def find_daemons(processes: Path = _PROCESSES) -> Iterator[Daemon]:
    """Yield each containerd that has the root of this process. processes: ``/proc``."""
    boot = next(
        (
            float(line.split()[1])
            for line in (processes / "stat").read_text().splitlines()
            if line.startswith("btime ")
        ),
        0.0,
    )
    root = Path("/")
    for directory in sorted(processes.glob("[0-9]*")):
        try:
            if (directory / "comm").read_text().strip() != "containerd":
                continue
            arguments = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
            environment = (directory / "environ").read_bytes().decode(errors="replace").split("\0")
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            program = (directory / "exe").readlink()
            if not (directory / "root").samefile(root):
                continue
        except OSError:  # it has ended, or is somebody else's
            continue
        variables = dict(entry.partition("=")[::2] for entry in environment)
        yield Daemon(
            pid=int(directory.name),
            program=program,
            config=Path(
                _argument(arguments, "-c", "-config", "--config") or "/etc/containerd/config.toml"
            ),
            address=_argument(arguments, "-a", "-address", "--address"),
            path=variables.get("PATH", _PATH),
            started=boot + int(fields[19]) / os.sysconf("SC_CLK_TCK"),
        )


def _argument(arguments: list[str], *names: str) -> str:
    for number, argument in enumerate(arguments[:-1]):
        name, equals, value = argument.partition("=")
        if name in names:
            return value if equals else arguments[number + 1]
    return ""


def reason_of_silence(address: str) -> str | None:
    """Return why a containerd runs no pods for a kubelet; None if it does."""
    try:
        for service in ("containerd.services.version.v1.Version", "runtime.v1.RuntimeService"):
            with GrpcClient(address, seconds=_SECONDS) as client:
                client.unary(service, "Version", Empty(), Empty)
    except GrpcError as exc:
        if exc.code == Status.UNIMPLEMENTED:
            return "it runs, but its CRI plugin does not"
        return str(exc)
    except ShimError as exc:
        return str(exc)
    return None
