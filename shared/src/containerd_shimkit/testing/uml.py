"""A machine of one's own for a command: Debian's User-Mode-Linux, a kernel that is a process.

It has cgroup version 2, and systemd as process 1 where that is asked for, whatever the host has.
The host's files are there as they are; what is written to them stays in the machine's memory.

By hand, with ``--systemd`` for that, in the directory of a working copy::

    python -m containerd_shimkit.testing.uml COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO

from containerd_shimkit.testing.containerd import SYSTEM_PATH

KERNEL = "linux.uml"
_INIT = Path(__file__).with_name("uml-init.sh")
_COMMAND = """\
cd {project}
env -i {variables} {command} >/dev/tty1 2>&1 </dev/null
echo $? >/run/uml/exit-code
"""


class UmlError(Exception):
    """The machine did not boot, or did not end in time; the message ends with its console."""


class Uml:
    """One machine, which runs one command and ends with it.

    ``directory`` is a directory of the host, writable inside as ``/run/uml``: what the command
    leaves there comes out of the machine.
    """

    def __init__(
        self, directory: Path, project: Path, *, systemd: bool = False, memory: str = "2G"
    ) -> None:
        """project: where the command runs; nothing else of the host's /tmp and /run is seen."""
        self.directory = directory
        self.project = project
        self._systemd = systemd
        self._memory = memory

    @property
    def console(self) -> Path:
        """What the kernel and process 1 have said."""
        return self.directory / "console"

    def run(
        self,
        command: Sequence[str],
        output: IO[bytes],
        *,
        seconds: float,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> int:
        """Boot, run the command with stdout and stderr to ``output``; return its exit code.

        Raises UmlError if there is no exit code within ``seconds``, the boot among them.
        """
        variables = {"PATH": SYSTEM_PATH, "HOME": "/root", "LANG": "C.UTF-8", **env}
        script = _COMMAND.format(
            project=shlex.quote(str(self.project)),
            variables=shlex.join(f"{key}={value}" for key, value in variables.items()),
            command=shlex.join(command),
        )
        (self.directory / "command").write_text(script)
        with self.console.open("wb") as console:
            process = subprocess.Popen(
                self._command_line(console.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=console,
                pass_fds=[console.fileno()],
                start_new_session=True,
            )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self._error(f"did not end in {seconds:g} s") from None
        finally:
            process.kill()
            process.wait()
        try:
            return int((self.directory / "exit-code").read_text())
        except (FileNotFoundError, ValueError):
            raise self._error("ended without an exit code of the command") from None

    def _command_line(self, console: int) -> list[str]:
        return [
            # The kernel is many processes of the host: all of a pid namespace end with its first.
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
            # After a panic the kernel aborts, which process 1 of a pid namespace cannot.
            *("sh", "-c", '"$@"; exit $?', "sh"),
            *(KERNEL, f"mem={self._memory}", f"uml_dir={self.directory}"),
            *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"),
            *("con=null", f"con0=null,fd:{console}", "con1=null,fd:1"),
            *("init=/bin/sh", "--", str(_INIT)),
            *("systemd" if self._systemd else "plain", str(self.directory), str(self.project)),
        ]

    def _error(self, reason: str) -> UmlError:
        console = self.console.read_text(errors="replace").splitlines()
        return UmlError("\n".join([f"the machine {reason}", *console[-40:]]))


def main() -> int:
    """Run a command by hand."""
    parser = argparse.ArgumentParser(prog="uml", description="Run a command in a machine.")
    parser.add_argument("--systemd", action="store_true", help="boot systemd as process 1")
    parser.add_argument("--seconds", type=float, default=600, help="the deadline (600)")
    parser.add_argument("--directory", type=Path, help="keep the machine's /run/uml, its console")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cw-uml-") as temporary:
        directory = (arguments.directory or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        machine = Uml(directory, Path.cwd(), systemd=arguments.systemd)
        try:
            return machine.run(arguments.command, sys.stdout.buffer, seconds=arguments.seconds)
        except UmlError as exc:
            print(exc, file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
