"""AppArmor profiles and SELinux labels: of this process, and of the mounts made for it.

A runtime asks for them at its exec. The init never executes anything, so it changes itself: for
AppArmor ``changeprofile NAME``, for SELinux the label, written to its own files in /proc. These are
opened before pivot_root, while /proc is the host's, and written once the process has become what it
is to be, as the profile may forbid all that. What is asked for and not to be had is an error, as in
runc. Sources: proc(5), aa_change_profile(2), setcon(3), runc's libcontainer.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from containerd_shimkit.errors import SandboxError
from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.syscalls import filesystem_type, step


class ProcessLabels:
    """What this process becomes by ``apply``, for good."""

    def __init__(self, changes: list[tuple[str, int, bytes]]) -> None:
        self._changes = changes

    @classmethod
    def open(
        cls,
        apparmor_profile: str,
        selinux_label: str,
        *,
        attributes: str = "/proc/self/attr",
        sysfs: str = "/sys",
    ) -> ProcessLabels:
        """Open the files that are to be written. Raises SandboxError."""
        labels = cls([])
        try:
            if apparmor_profile:
                name = f'apply AppArmor profile "{apparmor_profile}"'
                if not apparmor_enabled(sysfs):
                    raise SandboxError(name, "the kernel has no AppArmor, or it is switched off")
                names = ("apparmor/current", "current")  # the first one since Linux 5.8
                labels._open(name, attributes, names, f"changeprofile {apparmor_profile}")
            if selinux_label:
                name = f'apply SELinux label "{selinux_label}"'
                _require_selinux(name, sysfs)
                labels._open(name, attributes, ("current",), selinux_label)
        except BaseException:
            labels.close()
            raise
        return labels

    def _open(self, name: str, attributes: str, names: tuple[str, ...], text: str) -> None:
        with step(name):
            found = next((n for n in names if Path(attributes, n).exists()), names[-1])
            fd = os.open(f"{attributes}/{found}", os.O_WRONLY | os.O_CLOEXEC)
        self._changes.append((name, fd, text.encode()))

    def apply(self) -> None:
        """Change this process, of one thread; nothing is open afterwards. Raises SandboxError."""
        for name, fd, text in self._changes:
            with step(name):
                try:
                    os.write(fd, text)
                except FileNotFoundError as exc:
                    raise SandboxError(name, "no profile of that name is loaded") from exc
                except OSError as exc:
                    if exc.errno == errno.EINVAL:
                        raise SandboxError(name, "the kernel's policy has none like it") from exc
                    raise
        self.close()

    def close(self) -> None:
        for _, fd, _ in self._changes:
            os.close(fd)
        self._changes = []


def apparmor_enabled(sysfs: str = "/sys") -> bool:
    """Whether the kernel has AppArmor and it is switched on."""
    try:
        return Path(sysfs, "module/apparmor/parameters/enabled").read_text().startswith("Y")
    except OSError:
        return False


def selinux_enabled(sysfs: str = "/sys") -> bool:
    """Whether the kernel has SELinux and it is switched on."""
    try:
        return filesystem_type(f"{sysfs}/fs/selinux") == k.SELINUX_MAGIC
    except OSError:
        return False


def check_mount_label(label: str, sysfs: str = "/sys") -> None:
    """Raise SandboxError for a label that no mount can have, whatever the mounts are."""
    if label:
        _require_selinux(f'label the mounts "{label}"', sysfs)


def _require_selinux(name: str, sysfs: str) -> None:
    if not selinux_enabled(sysfs):
        raise SandboxError(name, "the kernel has no SELinux, or it is switched off")


def with_context(data: str, label: str) -> str:
    """Return mount options with the label as ``context``, quoted: it may have commas."""
    if not label:
        return data
    context = f'context="{label}"'
    return f"{data},{context}" if data else context
