"""What both versions of cgroups have in common: the interface, paths, files and statistics."""

from __future__ import annotations

import errno
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from containerd_shimkit.errors import BundleError, SandboxError
from containerd_shimkit.linux.syscalls import step

ROOT = "/sys/fs/cgroup"
Resources = Mapping[str, Any]  # linux.resources of the OCI spec, or an Update's


class CpuStats(NamedTuple):
    """Times in nanoseconds."""

    usage_ns: int = 0
    user_ns: int = 0
    system_ns: int = 0
    per_cpu_ns: tuple[int, ...] = ()
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0


class MemoryCounter(NamedTuple):
    """Sizes in bytes; limit 2**64 - 1 means none (version 1 rounds it down to a page)."""

    usage: int = 0
    limit: int = 0
    max_usage: int = 0
    failcnt: int = 0


class IoStats(NamedTuple):
    """What was done on one device."""

    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


class CgroupStats(NamedTuple):
    """The counters of one cgroup. What the kernel does not have is 0 or empty."""

    version: int
    cpu: CpuStats
    memory: MemoryCounter
    swap: MemoryCounter
    """Version 1 counts memory and swap together here, version 2 swap alone."""
    kernel: MemoryCounter
    kernel_tcp: MemoryCounter
    memory_stat: dict[str, int]
    """memory.stat as it is."""
    memory_events: dict[str, int]
    """memory.events, or memory.oom_control in version 1."""
    pids_current: int
    pids_limit: int
    """0 means none."""
    io: tuple[IoStats, ...]


class Cgroup(ABC):
    """One container's cgroup, in every hierarchy it has a part in."""

    version: int
    join_file = "cgroup.procs"
    needs_systemd = False
    """Whether ``apply`` and ``delete`` ask systemd, and may so have to wait."""

    def __init__(self, path: str, directories: Mapping[str, Path]) -> None:
        self.path = path
        """As the kernel knows it, from the root of the hierarchy; absolute."""
        self.directories = dict(directories)
        """The directory in each hierarchy, by its name; "" for version 2."""
        self._hold = -1  # a descriptor that keeps it while it has no process of the container

    @abstractmethod
    def create(self) -> None:
        """Make the directories. Raises SandboxError if processes are in them already."""

    @abstractmethod
    def apply(self, resources: Resources) -> list[str]:
        """Set the limits that ``resources`` names and no others; a warning for each left out.

        For a new container and for Update alike. Raises SandboxError, or BundleError for values
        that no kernel takes.
        """

    @abstractmethod
    def freeze(self, timeout: float = 2.0) -> None: ...

    @abstractmethod
    def thaw(self, timeout: float = 2.0) -> None: ...

    @abstractmethod
    def stats(self) -> CgroupStats: ...

    @abstractmethod
    def oom_kills(self) -> int:
        """Return how often the kernel killed a process of this cgroup for want of memory."""

    @abstractmethod
    def open_oom_events(self) -> int:
        """Return a descriptor that is readable when ``oom_kills`` may have grown, or soon will.

        Raises SandboxError where the kernel has no such thing.
        """

    @property
    @abstractmethod
    def main(self) -> Path:
        """The directory that is asked which processes there are."""

    def exists(self) -> bool:
        return self.main.is_dir()

    def procs_fds(self) -> list[int]:
        """Open every hierarchy for ``join``, by a process that will not see the files any more."""
        fds: list[int] = []
        try:
            for directory in self.directories.values():
                with step(f'open cgroup "{directory}"'):
                    path = directory / self.join_file
                    if not path.exists():  # version 2, on a hybrid host
                        path = directory / "cgroup.procs"
                    fds.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def let_go(self) -> None:
        """Keep the cgroup no longer: a process has joined it, or none will."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1

    def add(self, pid: int) -> None:
        """Move a process (0: this one) into the cgroup."""
        for directory in self.directories.values():
            with step(f'add process {pid} to cgroup "{directory}"'):
                write_file(directory / "cgroup.procs", str(pid))

    def pids(self) -> list[int]:
        """Return the processes in the cgroup and below it; none if it is gone."""
        found: list[int] = []
        for directory in _tree(self.main):
            found += read_numbers(directory / "cgroup.procs")
        return found

    def kill_all(self) -> None:
        """Send SIGKILL to every process in the cgroup, new ones included; does not wait.

        Frozen meanwhile, so that none forks away from under the list.
        """
        # Without the freezer, a few rounds find every fork that is not a bomb's.
        with suppress(SandboxError, OSError):
            self.freeze(timeout=0.1)
        for _ in range(5):
            pids = self.pids()
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if set(self.pids()) <= set(pids):
                break
        with suppress(SandboxError, OSError):
            self.thaw(timeout=0.1)

    def try_delete(self) -> bool:
        """Remove the directories, children first, without waiting; True when none is left."""
        gone = True
        for top in self.directories.values():
            for directory in reversed(list(_tree(top))):
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    continue
                except OSError as exc:
                    if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                        raise
                    gone = False
        return gone

    def delete(self, timeout: float = 1.0) -> None:
        """Remove the directories; idempotent. A process that was killed takes a moment to leave.

        Blocks for up to ``timeout`` seconds. Raises SandboxError when something is still inside.
        """
        with step(f'delete cgroup "{self.path}"'):
            deadline, pause = time.monotonic() + timeout, 0.001
            while not self.try_delete():
                if time.monotonic() >= deadline:
                    cause = f"still in use after {timeout} s by processes {self.pids()}"
                    raise SandboxError(f'delete cgroup "{self.path}"', cause)
                time.sleep(pause)
                pause = min(pause * 2, 0.05)

    def mounts(self) -> dict[str, str]:
        """Return what ``Rootfs.mount_all`` shows the container, by the hierarchy's name."""
        return {name: str(directory) for name, directory in self.directories.items()}

    def _check_empty(self) -> None:
        if pids := self.pids():
            cause = f"processes {pids[:5]} are in it already"
            raise SandboxError(f'create cgroup "{self.path}"', cause)


def join(procs_fds: Sequence[int]) -> None:
    """Move this process, of one thread, into the cgroup of these ``procs_fds``; close them.

    "0" is whoever writes, whatever its number is in which pid namespace. cgroups(7)
    """
    with step("join the cgroup"):
        for fd in procs_fds:
            os.write(fd, b"0")
    for fd in procs_fds:
        os.close(fd)


def plain_path(cgroups_path: str, task_id: str) -> str:
    """Return ``linux.cgroupsPath`` as a path without "..", absolute or relative as it was given.

    Empty becomes ``/TASK_ID``, as runc does. The systemd form "slice:prefix:name" becomes the path
    systemd would use: the slices in the slice's name, then ``prefix-name.scope``.
    """
    path = cgroups_path or f"/{task_id}"
    if "\0" in path or ".." in path.split("/"):
        raise BundleError(f'cgroupsPath "{path}": ".." and NUL are not allowed')
    if (found := systemd_unit(path)) is not None:
        slice_name, unit = found
        path = "/" + "/".join([*_slice_parents(slice_name), unit])
    clean = "/".join(part for part in path.split("/") if part not in ("", "."))
    if not clean:
        raise BundleError(f'cgroupsPath "{path}": the root cgroup is not a container\'s')
    return f"/{clean}" if path.startswith("/") else clean


def systemd_unit(cgroups_path: str) -> tuple[str, str] | None:
    """Return slice and unit of the systemd form "slice:prefix:name", None for another path.

    Raises BundleError if it has that form and names no unit. Source: runc docs/systemd.md.
    """
    parts = cgroups_path.split(":")
    if len(parts) != 3:
        return None
    slice_name, prefix, name = parts
    if not name or "/" in cgroups_path:
        raise BundleError(f'cgroupsPath "{cgroups_path}": not of the form slice:prefix:name')
    unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope"
    return slice_name or "system.slice", unit


def _slice_parents(slice_name: str) -> list[str]:
    """Return ``a.slice``, ``a-b.slice`` for ``a-b.slice``. Source: systemd.slice(5)."""
    stem = slice_name.removesuffix(".slice")
    if stem == "-":
        return []
    names = stem.split("-")
    if not stem or not all(names) or stem == slice_name:
        raise BundleError(f'cgroupsPath: "{slice_name}" is not the name of a slice')
    return ["-".join(names[: count + 1]) + ".slice" for count in range(len(names))]


def own_cgroups(proc_cgroup: str = "/proc/self/cgroup") -> dict[str, str]:
    """Return this process's path by hierarchy ("" is version 2). Source: cgroups(7)."""
    paths = {}
    for line in Path(proc_cgroup).read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths[controllers] = path
    return paths


def not_applied(resources: Resources, known: Mapping[str, frozenset[str]], why: str) -> list[str]:
    """Return a sentence for each limit that is set and not in ``known``, by its section."""
    names: list[str] = []
    for section, value in resources.items():
        if section not in known:
            names += [section] if value else []
        elif known[section]:
            names += [f"{section}.{k}" for k in value or () if value[k] and k not in known[section]]
    return [f"linux.resources.{name} is not applied: {why}" for name in names]


# Files


def write_file(path: Path, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_TRUNC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def set_value(path: Path, value: object) -> None:
    """Write a limit; the error names file and value."""
    with step(f'write "{value}" to "{path}"'):
        write_file(path, str(value))


def read_text(path: Path) -> str:
    """Return the file, "" if the kernel does not have it or the cgroup is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        chunks = []
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks).decode()
    except OSError as exc:
        if exc.errno in (errno.ENODEV, errno.EOPNOTSUPP):  # removed meanwhile; a v2 threaded one
            return ""
        raise
    finally:
        os.close(fd)


def read_numbers(path: Path) -> list[int]:
    return [int(line) for line in read_text(path).split()]


def read_number(path: Path, unlimited: int = 0) -> int:
    """Return the number in the file; ``unlimited`` for "max", 0 if there is none."""
    text = read_text(path).strip()
    return unlimited if text == "max" else int(text or 0)


def read_table(path: Path) -> dict[str, int]:
    """Return a file of lines "name number"."""
    pairs = (line.split() for line in read_text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def wait_for(condition: Callable[[], bool], timeout: float) -> bool:
    """Poll ``condition``, first without a pause; say whether it came true in time."""
    deadline, pause = time.monotonic() + timeout, 0.0005
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
    return True


def _tree(top: Path) -> Iterator[Path]:
    """Yield the cgroup and those below it, parents first."""
    try:
        with os.scandir(top) as entries:
            children = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return
    yield top
    for name in children:
        yield from _tree(top / name)
