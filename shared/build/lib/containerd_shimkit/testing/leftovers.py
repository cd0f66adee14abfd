"""What is on this machine, before and after: a test that leaves something behind shall fail.

``scope`` is a list of strings, one of which occurs in the path, command line or environment of
whatever belongs to the test: the directories and the namespace of its containerd. Tests that run
beside it on the same machine are then not mistaken for leftovers. Without a scope, processes and
sockets count when they carry the name of a shim; mounts and cgroups all count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

SHIM_NAMES = ("containerd-shim-spin-v1", "containerd-shim-slight-v1", "containerd-shim-wws-v1")


@dataclass(frozen=True)
class Process:
    """A process as ``/proc`` shows it."""

    pid: int
    parent: int
    start_time: int
    """Clock ticks since boot: with the pid it names one process for good."""
    command: str
    environment: str = field(repr=False)

    def mentions(self, words: Iterable[str]) -> bool:
        return any(word in self.command or word in self.environment for word in words)

    def __str__(self) -> str:
        return f"{self.pid} (child of {self.parent}) {self.command}"


@dataclass(frozen=True)
class Machine:
    """The things a container may leave behind, each as a readable line."""

    processes: frozenset[str] = frozenset()
    mounts: frozenset[str] = frozenset()
    cgroups: frozenset[str] = frozenset()
    sockets: frozenset[str] = frozenset()
    netns: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()


def snapshot_machine(scope: Sequence[str] = (), directories: Iterable[Path] = ()) -> Machine:
    """Return what is there now; ``directories`` are those whose files count."""
    cgroups = map(str, cgroup_directories())
    return Machine(
        processes=frozenset(map(str, find_processes(scope or SHIM_NAMES))),
        mounts=frozenset(m for m in mount_points() if not scope or _mentions(m, scope)),
        cgroups=frozenset(c for c in cgroups if not scope or _mentions(c, scope)),
        sockets=frozenset(s for s in unix_sockets() if _mentions(s, scope or SHIM_NAMES)),
        netns=frozenset() if scope else frozenset(_names(Path("/run/netns"))),
        files=frozenset(str(f) for d in directories for f in d.rglob("*")),
    )


def assert_nothing_left(before: Machine, after: Machine) -> None:
    """Raise AssertionError with the list of what is there after, but was not before."""
    report = [
        f"{kind.name}:\n" + "".join(f"  + {line}\n" for line in sorted(left))
        for kind in fields(Machine)
        if (left := getattr(after, kind.name) - getattr(before, kind.name))
    ]
    if report:
        raise AssertionError("left behind\n" + "".join(report))


def find_processes(words: Sequence[str]) -> list[Process]:
    """Return the processes that mention one of ``words``, and their descendants.

    This process and its ancestors are never among them, however their command lines read.
    """
    everything = _all_processes()
    spared = _ancestors(os.getpid(), everything)
    found = {p.pid for p in everything.values() if p.mentions(words)} - spared
    children: dict[int, list[int]] = {}
    for process in everything.values():
        children.setdefault(process.parent, []).append(process.pid)
    queue = list(found)
    while queue:
        for pid in children.get(queue.pop(), ()):
            if pid not in found and pid not in spared:
                found.add(pid)
                queue.append(pid)
    return [everything[pid] for pid in sorted(found)]


def mount_points() -> list[str]:
    """Return ``path type source`` for each mount of this namespace, in the order they were made."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        # proc(5): ids, device, root, mount point, options, optional fields, "-", type, source
        left, _, right = line.partition(" - ")
        kind, source, *_ = right.split(" ")
        mounts.append(f"{_unescape(left.split(' ')[4])} {kind} {_unescape(source)}")
    return mounts


def cgroup_directories() -> list[Path]:
    """Return every cgroup below every hierarchy, version 1 and 2, parents before children."""
    roots = [Path(m.split(" ")[0]) for m in mount_points() if m.split(" ")[1].startswith("cgroup")]
    return [
        Path(path, name) for root in roots for path, names, _ in os.walk(root) for name in names
    ]


def unix_sockets() -> list[str]:
    """Return the paths of all unix sockets of this network namespace."""
    lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]
    return [columns[7] for line in lines if len(columns := line.split(None, 7)) == 8]


def open_files(pid: int) -> int:
    """Return how many descriptors the process has open."""
    return len(_names(Path(f"/proc/{pid}/fd")))


def _all_processes() -> dict[int, Process]:
    processes = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="surrogateescape")
            command = (entry / "cmdline").read_bytes()
            # Of a process that dies in this moment, or of another user, the environment is secret.
            environment = _read_or_empty(entry / "environ")
        except OSError:
            continue
        # proc(5): the name stands in parentheses and may hold any character
        name = stat[stat.index("(") : stat.rindex(")") + 1]
        columns = stat[stat.rindex(")") + 2 :].split()
        if columns[1] == "2":  # kthreadd's children
            continue
        pid = int(entry.name)
        processes[pid] = Process(
            pid=pid,
            parent=int(columns[1]),
            start_time=int(columns[19]),
            command=_printable(command) or f"{name} {columns[0]}",
            environment=_printable(environment),
        )
    return processes


def _ancestors(pid: int, processes: dict[int, Process]) -> set[int]:
    line = {pid}
    while pid in processes and (pid := processes[pid].parent) not in line:
        line.add(pid)
    return line


def _read_or_empty(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _printable(raw: bytes) -> str:
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _mentions(text: str, words: Iterable[str]) -> bool:
    return any(word in text for word in words)


def _names(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []
