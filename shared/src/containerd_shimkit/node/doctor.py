"""The ``doctor`` command: whether a node is ready for the shim, and what to do if it is not."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from containerd_shimkit.errors import ShimError
from containerd_shimkit.linux.seccomp import seccomp_available
from containerd_shimkit.node.config_text import address_of, runtimes_of
from containerd_shimkit.node.configuring import Configuration
from containerd_shimkit.node.daemons import Daemon, find_daemons, reason_of_silence
from containerd_shimkit.node.places import Place, find_place, ordinary_place
from containerd_shimkit.runtime import ShimKind, cache_directory, run_directory, state_directory

_MIN_KERNEL: Final = (5, 10)
_LATE_KERNEL: Final = (5, 14)
_MIN_FREE_BYTES: Final = 200 << 20


class State(Enum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    state: State
    what: str
    advice: str = ""


def define_doctor_command(parser: argparse.ArgumentParser, kind: ShimKind) -> None:
    """Give ``parser`` the arguments that ``run_doctor_command`` takes."""
    parser.description = f"Look whether this node is ready for {kind.name} apps; changes nothing."
    parser.add_argument("-handler", "--handler", default=kind.name, metavar="NAME")


def run_doctor_command(options: argparse.Namespace, kind: ShimKind) -> int:
    """Print what is found; return 1 if anything is in the way."""
    findings = list(examine(kind, options.handler))
    for finding in findings:
        sys.stdout.write(f"{finding.state.value:<8} {finding.what}\n")
        if finding.advice:
            sys.stdout.write(f"{'':<8} -> {finding.advice}\n")
    return 1 if any(finding.state is State.FAILED for finding in findings) else 0


def examine(kind: ShimKind, handler: str, processes: Path = Path("/proc")) -> Iterator[Finding]:
    """Yield what each check finds."""
    yield _kernel(os.uname().release)
    yield _cgroups()
    yield _seccomp()
    for directory, executable in ((state_directory(), True), (cache_directory(), False)):
        yield _directory(Path(directory), executable=executable)
    yield _directory(Path(run_directory()), executable=False)
    daemons = list(find_daemons(processes))
    # Beside Kubernetes' own there may be one that Docker uses.
    read = find_place().read
    daemons = [daemon for daemon in daemons if daemon.config == read] or daemons
    if not daemons:
        yield Finding(
            State.FAILED, "containerd does not run", "systemctl status containerd says why"
        )
    for daemon in daemons:
        yield _answers(daemon)
        yield _program(kind, daemon)
        yield from _registered(kind, handler, daemon)
        yield _runc(daemon)


def _kernel(release: str) -> Finding:
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    what = f"kernel {release}"
    if version < _MIN_KERNEL:
        return Finding(State.FAILED, what, "it lacks what the shim asks of it: take 5.10 or newer")
    if version < _LATE_KERNEL:
        return Finding(
            State.WARNING, what, "before 5.14 Slight and wws cannot load what only some apps need"
        )
    return Finding(State.OK, what)


def _cgroups() -> Finding:
    mounts = Path("/proc/mounts").read_text(errors="replace")
    kinds = {line.split()[2] for line in mounts.splitlines()}
    if "cgroup2" in kinds and "cgroup" not in kinds:
        return Finding(State.OK, "cgroup version 2")
    if "cgroup" in kinds:
        return Finding(State.OK, "cgroup version 1")
    return Finding(State.FAILED, "no cgroups are mounted", "limits of pods need them")


def _seccomp() -> Finding:
    if seccomp_available():
        return Finding(State.OK, "libseccomp")
    return Finding(
        State.WARNING,
        "no libseccomp: seccomp profiles of pods are not applied",
        "the binaries have their own; with a shim from source: apt-get install libseccomp2",
    )


def _directory(directory: Path, *, executable: bool) -> Finding:
    """Look at the nearest directory that is there: the rest is made when it is needed."""
    existing = next(path for path in (directory, *directory.parents) if path.is_dir())
    if not os.access(existing, os.W_OK):
        return Finding(
            State.FAILED, f"{directory} cannot be written", "run this as root, as containerd is"
        )
    found = os.statvfs(existing)
    if executable and found.f_flag & os.ST_NOEXEC:
        return Finding(
            State.FAILED,
            f"{directory} is mounted noexec: the shim's programs are unpacked there",
            "set CONTAINERD_WASM_SHIMS_ROOT in containerd's environment to another directory",
        )
    free = found.f_bavail * found.f_frsize
    if free < _MIN_FREE_BYTES:
        return Finding(
            State.WARNING, f"{directory} has {free >> 20} MiB left", "200 MiB are a good start"
        )
    return Finding(State.OK, f"{directory} can be written")


def _answers(daemon: Daemon) -> Finding:
    address = daemon.address
    if not address:
        try:
            address = address_of(Configuration(_place_of(daemon), daemon.program, 2).effective())
        except ShimError as exc:
            return Finding(
                State.FAILED, f"{daemon.config}: {exc}", "containerd config dump shows it"
            )
    reason = reason_of_silence(address)
    if reason is None:
        return Finding(State.OK, f"containerd ({daemon.pid}) runs pods for who asks on {address}")
    return Finding(
        State.FAILED,
        f"containerd ({daemon.pid}) runs no pods: {reason}",
        "its log says why: journalctl -u containerd, or of k3s, rke2, k0s, microk8s",
    )


def _program(kind: ShimKind, daemon: Daemon) -> Finding:
    found = shutil.which(kind.binary, path=daemon.path)
    if found is None:
        return Finding(
            State.FAILED,
            f"containerd ({daemon.pid}) finds no {kind.binary}",
            f"copy it to one of {daemon.path}",
        )
    if Path(found).stat().st_mode & stat.S_IWOTH:
        return Finding(State.FAILED, f"{found} can be changed by anybody", f"chmod 755 {found}")
    return Finding(State.OK, f"containerd ({daemon.pid}) finds {found}")


def _registered(kind: ShimKind, handler: str, daemon: Daemon) -> Iterator[Finding]:
    place = _place_of(daemon)
    advice = f"{kind.binary} config --write --restart"
    try:
        configuration = Configuration(place, daemon.program, 2)
        runtime = runtimes_of(configuration.effective()).get(handler)
        systemd = configuration.systemd_cgroup()
    except ShimError as exc:
        yield Finding(State.FAILED, f"{daemon.config}: {exc}", "containerd config dump shows it")
        return
    if runtime is None:
        yield Finding(State.FAILED, f'{daemon.config} has no runtime "{handler}"', advice)
        return
    if runtime.type != kind.runtime:
        yield Finding(
            State.FAILED,
            f'{daemon.config}: runtime "{handler}" is {runtime.type}, not {kind.runtime}',
            "choose another name with --handler, and name it in the RuntimeClass",
        )
        return
    yield Finding(State.OK, f'{daemon.config}: runtime "{handler}" is {kind.runtime}')
    if runtime.systemd_cgroup != systemd:
        ours, others = (
            ("systemd", "cgroupfs") if runtime.systemd_cgroup else ("cgroupfs", "systemd")
        )
        yield Finding(
            State.WARNING,
            f'runtime "{handler}" has the cgroup driver {ours}, the node has {others}',
            f"{kind.binary} config --remove, then {advice}",
        )
    if daemon.is_older_than(daemon.config):
        yield Finding(
            State.FAILED,
            f"{daemon.config} is newer than containerd ({daemon.pid}), which has not read it",
            f"{' '.join(place.restart)}",
        )


def _place_of(daemon: Daemon) -> Place:
    """Return what belongs to a daemon's file: the distribution's, if that is what it reads."""
    place = find_place()
    return place if place.read == daemon.config else ordinary_place(daemon.config)


def _runc(daemon: Daemon) -> Finding:
    for name in ("runc", "crun"):
        if (found := shutil.which(name, path=daemon.path)) is not None:
            return Finding(State.OK, f"{found} runs ordinary containers beside guests")
    return Finding(
        State.WARNING, "no runc on containerd's PATH: pods with sidecars fail", "install runc"
    )
