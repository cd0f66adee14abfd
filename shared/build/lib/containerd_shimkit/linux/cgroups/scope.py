"""Cgroups that systemd makes: one transient scope for each container.

    cgroupsPath "kubepods-pod1.slice:cri-containerd:abc"
    unit        cri-containerd-abc.scope in kubepods-pod1.slice

A scope needs a process at its birth, and systemd removes it when it has none. So ``create`` forks
a **placeholder**, which lives until every process that has a copy of the cgroup has called
``let_go``: the init does so when it has joined.

systemd is told of the limits it has properties for; the files are written all the same, with the
exact values, and in the hierarchies of version 1 that systemd leaves alone. The scope's
``Delegate`` allows it.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from containerd_shimkit.errors import BundleError, FailedPreconditionError, SandboxError
from containerd_shimkit.linux.cgroups.base import (
    ROOT,
    Cgroup,
    Resources,
    read_table,
    read_text,
    wait_for,
)
from containerd_shimkit.linux.cgroups.properties import resource_properties
from containerd_shimkit.linux.cgroups.v1 import CgroupV1
from containerd_shimkit.linux.cgroups.v2 import CgroupV2
from containerd_shimkit.linux.syscalls import close_range, step
from containerd_shimkit.linux.systemd import Property, Systemd, systemd_runs

START_SECONDS: Final = 30.0
"""For systemd to start a scope, as runc has it: a ``daemon-reload`` may take seconds."""
APPLY_SECONDS: Final = 10.0
_LEAST_SECONDS: Final = 0.1
_UNIFIED: Final = "unified"
# Source: systemd.unit(5), "String escaping for inclusion in unit names"; 255 bytes with the suffix.
_UNIT_NAME: Final = re.compile(r"[A-Za-z0-9:_.\\-]{1,249}\.scope", re.ASCII)


class SystemdScope(Cgroup):
    """What a scope of either version has; named before CgroupV1 or CgroupV2 among the bases."""

    unit = ""
    slice = ""
    needs_systemd = True
    _placeholder = 0

    def delete(self, timeout: float = 1.0) -> None:
        """Stop the scope, which goes by itself when it is empty; remove what is left.

        One with processes is not stopped: they are of another container that has the same path.
        """
        self.let_go()
        deadline = time.monotonic() + timeout
        if wait_for(lambda: not self.pids(), timeout):
            with Systemd(max(deadline - time.monotonic(), _LEAST_SECONDS)) as systemd:
                systemd.stop_unit(self.unit)
        super().delete(max(deadline - time.monotonic(), _LEAST_SECONDS))

    def oom_kills(self) -> int:
        """Return the cgroup's kills, or if it is gone those that its siblings had part in.

        systemd removes it as soon as it is empty, and the counter with it.
        """
        own, others = self._kill_counters
        kills = read_table(own).get("oom_kill")
        if kills is not None:
            return kills
        return max(0, read_table(others).get("oom_kill", 0) - self._kills_before)

    def _count_kills(self, own: Path, others: Path) -> None:
        """own: the file of this cgroup; others: one that counts its kills, too, and stays."""
        self._kill_counters = (own, others)
        self._kills_before = read_table(others).get("oom_kill", 0)

    def _start(self) -> None:
        """Have systemd make the cgroup, with the placeholder in it."""
        self._check_empty()
        self._placeholder, self._hold = _fork_placeholder()
        with Systemd(START_SECONDS) as systemd:
            systemd.start_transient_unit(self.unit, self._properties())
        if self._placeholder not in self.pids():
            own = Path(f"/proc/{self._placeholder}/cgroup").read_text().split()
            cause = f'systemd made it elsewhere: its process is in "{" ".join(own)}"'
            raise SandboxError(f'create cgroup "{self.path}"', cause)

    def _properties(self) -> list[Property]:
        """Return what runc gives a scope. Source: libcontainer/cgroups/systemd, ``Apply``."""
        io = "IOAccounting" if self.version == 2 else "BlockIOAccounting"
        accounting = ("CPUAccounting", "MemoryAccounting", "TasksAccounting", io)
        name = self.unit.removesuffix(".scope")
        return [
            ("Description", ("s", f"WebAssembly container {name}")),
            ("Slice", ("s", self.slice)),
            ("Delegate", ("b", True)),
            ("PIDs", ("au", [self._placeholder])),
            *((field, ("b", True)) for field in accounting),
            ("DefaultDependencies", ("b", False)),
            ("CollectMode", ("s", "inactive-or-failed")),
        ]

    def _check_empty(self) -> None:
        if pids := set(self.pids()) - {self._placeholder}:
            cause = f"processes {sorted(pids)[:5]} are in it already"
            raise SandboxError(f'create cgroup "{self.path}"', cause)

    def _tell(self, resources: Resources) -> None:
        """Set the properties of the unit that ``resources`` has values for."""
        with Systemd(APPLY_SECONDS) as systemd:
            properties = resource_properties(resources, self.version, systemd.version)
            if properties:
                systemd.set_properties(self.unit, properties)


class ScopeV1(SystemdScope, CgroupV1):
    """A scope on version 1, where systemd has some of the hierarchies only.

    On a hybrid host its own one is of version 2: there it sees whether the scope is empty.
    """

    @classmethod
    def open(cls, path: str, root: str = ROOT, proc_cgroup: str = "/proc/self/cgroup") -> Self:
        scope = super().open(path, root, proc_cgroup)
        top = Path(root, _UNIFIED)
        if (top / "cgroup.controllers").exists():
            scope.directories[_UNIFIED] = top / path.strip("/")
        own = scope._by_controller.get("memory", Path("/nonexistent")) / "memory.oom_control"
        scope._count_kills(own, Path("/proc/vmstat"))  # there is none of a slice: of the node
        return scope

    def mounts(self) -> dict[str, str]:
        return {name: path for name, path in super().mounts().items() if name != _UNIFIED}

    def create(self) -> None:
        self._start()
        super().create()

    def apply(self, resources: Resources) -> list[str]:
        with self._frozen():
            self._tell(resources)
            return super().apply(resources)

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        """Let no process run inside: systemd denies every device before it allows some again."""
        state = self._by_controller.get("freezer", Path("/nonexistent")) / "freezer.state"
        if read_text(state).strip() != "THAWED":
            yield  # no freezer, or paused already
            return
        self.freeze()
        try:
            yield
        finally:
            self.thaw()


class ScopeV2(SystemdScope, CgroupV2):
    """A scope on version 2."""

    @classmethod
    def open(cls, path: str, root: str = ROOT, proc_cgroup: str = "/proc/self/cgroup") -> Self:
        scope = super().open(path, root, proc_cgroup)
        own = scope.directory / "memory.events"
        scope._count_kills(own, scope.directory.parent / own.name)  # of all that is below the slice
        return scope

    def create(self) -> None:
        self._start()
        super().create()

    def apply(self, resources: Resources) -> list[str]:
        self._tell(resources)
        return super().apply(resources)


def open_scope(
    slice_name: str, unit: str, path: str, version: int, root: str, proc_cgroup: str
) -> Cgroup:
    """Return the cgroup of a scope. path: where systemd makes it, from the root of a hierarchy.

    Raises BundleError if it is no scope, FailedPreconditionError where systemd does not run.
    """
    if not _UNIT_NAME.fullmatch(unit):
        raise BundleError(f'cgroupsPath: "{unit}" is not the name of a scope')
    if not systemd_runs():
        raise FailedPreconditionError(
            f'cgroupsPath: systemd is to make "{unit}" in "{slice_name}", and does not run here'
        )
    kind = ScopeV2 if version == 2 else ScopeV1
    scope: SystemdScope = kind.open(path, root, proc_cgroup)
    scope.unit, scope.slice = unit, slice_name
    return scope


def _fork_placeholder() -> tuple[int, int]:
    """Return the pid of a process that does nothing, and a descriptor.

    It ends when the last copy of that descriptor is closed.
    """
    with step("fork a placeholder for the cgroup"):
        read, write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
    if pid == 0:
        try:
            os.dup2(read, 0)
            close_range(1)
            os.read(0, 1)
        finally:
            os._exit(0)
    os.close(read)
    return pid, write
