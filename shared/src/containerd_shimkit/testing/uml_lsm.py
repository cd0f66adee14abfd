"""Tests on another kernel: Debian's user-mode-linux, which is a program.

It has what the machine's own may lack: AppArmor, SELinux, cgroup version 2 with controllers. It
sees the machine's files, read-only. What a test writes is in memory: ``/mnt`` there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PROGRAM: Final = "linux.uml"
_MEMORY: Final = "1G"
_END: Final = re.compile(r"^pytest ended with (\d+)\r?$", re.M)
_INIT: Final = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /mnt
mkdir /dev/shm
mount -t tmpfs tmpfs /dev/shm
[ ! -d /sys/kernel/security ] || mount -t securityfs securityfs /sys/kernel/security
[ ! -d /sys/fs/selinux ] || mount -t selinuxfs selinuxfs /sys/fs/selinux
ip link set lo up
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/mnt TMPDIR=/mnt LANG=C.UTF-8
export PYTHONDONTWRITEBYTECODE=1
cd {directory}
{python} -m pytest -p no:cacheprovider --color=no --basetemp=/mnt/pytest {arguments}
echo "pytest ended with $?"
echo o >/proc/sysrq-trigger
sleep 60
"""


def missing_packages() -> str:
    """Return what has to be installed, by Debian's names; empty if nothing is missing."""
    needed = {PROGRAM: "user-mode-linux", "apparmor_parser": "apparmor", "secilc": "secilc"}
    path = "/usr/bin:/usr/sbin"
    return " ".join(p for name, p in needed.items() if shutil.which(name, path=path) is None)


def run_pytest(
    repository: Path, scratch: Path, arguments: Sequence[str], *, lsm: str, seconds: float
) -> tuple[int, str]:
    """Boot, run pytest as root, halt; return its exit code and what the console showed.

    scratch: a directory for the script.  lsm: the security modules, in order.
    AssertionError if it does not come to its end in time.
    """
    script = scratch / "init"
    words = {"directory": repository, "python": sys.executable, "arguments": " ".join(arguments)}
    script.write_text(_INIT.format(**words))
    script.chmod(0o755)
    command = [
        *(PROGRAM, f"mem={_MEMORY}", "loglevel=1", f"init={script}", f"lsm={lsm}"),
        *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"),
        *("con=null", "con0=null,fd:1", "con1=null"),
    ]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": "/usr/bin:/usr/sbin", "HOME": str(scratch), "TMPDIR": "/dev/shm"},
        start_new_session=True,  # its processes are a dozen of the machine's
    ) as process:
        try:
            output = process.communicate(timeout=seconds)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = process.communicate()[0].decode(errors="replace")
    ended = _END.search(output)
    assert ended is not None, output
    return int(ended[1]), output
