"""A machine of one's own for a command: Debian's User-Mode-Linux, a kernel that is a process.

It has cgroup version 2, and systemd as process 1 where that is asked for, whatever the host has.
The host's files are there as they are; what is written to them stays in the machine's memory.

By hand, with ``--systemd`` for that, in the directory of a working copy::

    python -m containerd_shimkit.testing.uml COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO

from containerd_shimkit.testing.containerd import SYSTEM_PATH

KERNEL = "linux.uml"
_PACKAGES = {KERNEL: "user-mode-linux", "insmod": "kmod", "ip": "iproute2"}
_SYSTEMD_PACKAGES = {"/lib/systemd/systemd": "systemd", "dbus-daemon": "dbus"}
_INIT = Path(__file__).with_name("uml-init.sh")
_INSIDE = Path("/run/uml")
_COMMAND = """\
cd {project}
env -i {variables} {command} >/dev/tty1 2>&1 </dev/null
echo $? >/run/uml/exit-code
"""


class UmlError(Exception):
    """The machine did not boot, or did not end in time; the message ends with its console."""


@dataclass(frozen=True)
class Report:
    """How pytest fared in a machine."""

    exit_code: int
    output: str
    passed: int
    skipped: list[str]
    """``test: reason`` of each."""


class Uml:
    """A machine that runs one command and ends with it.

    ``directory``, of the host, is ``/run/uml`` inside: what the command leaves there comes out.
    """

    def __init__(
        self,
        directory: Path,
        project: Path,
        *,
        systemd: bool = False,
        memory: str = "2G",
        kernel: Sequence[str] = (),
    ) -> None:
        """project: where the command runs; nothing else of the host's /tmp and /run is seen.

        kernel: more of its parameters, as in ``lsm=apparmor``.
        """
        self.directory = directory
        self.project = project
        self._systemd = systemd
        self._memory = memory
        self._kernel = tuple(kernel)

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
        exit_code = self.directory / "exit-code"
        exit_code.unlink(missing_ok=True)
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
            return int(exit_code.read_text())
        except (FileNotFoundError, ValueError):
            raise self._error("ended without an exit code of the command") from None

    def run_pytest(
        self,
        arguments: Sequence[str],
        *,
        seconds: float,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> Report:
        """Run pytest with this Python inside. Raises UmlError, with pytest's output, as ``run``."""
        xml = self.directory / "report.xml"
        log = self.directory / "output"
        command = [sys.executable, "-m", "pytest", "--color=no", "--tb=short"]
        command += ["-p", "no:cacheprovider", f"--junitxml={_INSIDE / xml.name}", *arguments]
        try:
            with log.open("wb") as output:
                code = self.run(command, output, seconds=seconds, env=env)
        except UmlError as exc:
            exc.add_note(log.read_text(errors="replace"))
            raise
        passed, skipped = _read_report(xml) if xml.exists() else (0, [])
        return Report(code, log.read_text(errors="replace"), passed, skipped)

    def _command_line(self, console: int) -> list[str]:
        return [
            # The kernel is many processes of the host: all of a pid namespace end with its first.
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
            # After a panic the kernel aborts, which process 1 of a pid namespace cannot.
            *("sh", "-c", '"$@"; exit $?', "sh"),
            *(KERNEL, f"mem={self._memory}", f"uml_dir={self.directory}", *self._kernel),
            *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"),
            *("con=null", f"con0=null,fd:{console}", "con1=null,fd:1"),
            *("init=/bin/sh", "--", str(_INIT)),
            *("systemd" if self._systemd else "plain", str(self.directory), str(self.project)),
        ]

    def _error(self, reason: str) -> UmlError:
        console = self.console.read_text(errors="replace").splitlines()
        return UmlError("\n".join([f"the machine {reason}", *console[-40:]]))


def unfit_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return why Debian's kernel cannot run here, None if nothing is known against it.

    It saves a process's registers in a buffer that those of AMX do not fit into, and panics at its
    first program: "put_fp_registers", arch/x86/um/os-Linux/registers.c of Linux 6.1.
    """
    if "amx_tile" in cpuinfo.read_text().split():
        return "User-Mode-Linux cannot boot on a processor with AMX (amx_tile): run it on another"
    return None


def missing_packages(*, systemd: bool = False) -> list[str]:
    """Return what Debian has to bring before a machine can boot."""
    needed = _PACKAGES | (_SYSTEMD_PACKAGES if systemd else {})
    return [p for name, p in needed.items() if shutil.which(name, path=SYSTEM_PATH) is None]


def _read_report(path: Path) -> tuple[int, list[str]]:
    """Return how many tests passed, and who was skipped for what, from pytest's junit XML."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    skipped = [
        f"{case.get('classname')}::{case.get('name')}: {skip.get('message')}"
        for case in cases
        for skip in case.iter("skipped")
    ]
    return sum(1 for case in cases if not list(case)), skipped


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
