"""The ``config`` command: the lines by which the node's containerd knows the shim."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from containerd_shimkit.node.config_text import CRI_PLUGINS, Runtime
from containerd_shimkit.node.configuring import (
    Configuration,
    find_containerd,
    restart,
    write,
)
from containerd_shimkit.node.places import Place, find_place, ordinary_place
from containerd_shimkit.runtime import ShimKind

_DRIVERS: Final = ("cgroupfs", "systemd")


def define_config_command(parser: argparse.ArgumentParser, kind: ShimKind) -> None:
    """Give ``parser`` the arguments that ``run_config_command`` takes."""
    parser.description = (
        f"Print what containerd's configuration needs for {kind.name} apps; or write it there, "
        "wherever this node's Kubernetes has it: kubeadm, AKS, EKS, GKE, k3s, RKE2, MicroK8s, k0s."
    )
    act = parser.add_mutually_exclusive_group()
    act.add_argument("-write", "--write", action="store_true", help="write it, if it is not there")
    act.add_argument("-remove", "--remove", action="store_true", help="take out what --write wrote")
    parser.add_argument(
        "-restart", "--restart", action="store_true", help="restart containerd if anything changed"
    )
    parser.add_argument(
        "-handler",
        "--handler",
        default=kind.name,
        metavar="NAME",
        help=f"what a RuntimeClass calls it (default: {kind.name})",
    )
    parser.add_argument(
        "-file", "--file", type=Path, metavar="FILE", help="containerd's configuration"
    )
    parser.add_argument(
        "-config-version",
        "--config-version",
        type=int,
        choices=tuple(CRI_PLUGINS),
        metavar="N",
        help="of a file that does not say it: 2 for containerd 1.x, 3 for 2.x",
    )
    parser.add_argument(
        "-cgroup-driver",
        "--cgroup-driver",
        choices=_DRIVERS,
        help="who makes cgroups (default: as for runc, or as kubelet says)",
    )
    parser.add_argument(
        "-containerd", "--containerd", type=Path, metavar="FILE", help="containerd's program"
    )
    parser.add_argument(
        "-root", "--root", type=Path, default=Path("/"), metavar="DIRECTORY", help=argparse.SUPPRESS
    )


def run_config_command(options: argparse.Namespace, kind: ShimKind) -> int:
    """Do it and return the exit code. Raises ConfigError."""
    place = _place(options)
    program = options.containerd or find_containerd(place)
    configuration = Configuration(place, program, options.config_version)
    if options.remove:
        return _apply(configuration, None, options)
    runtime = Runtime(
        options.handler,
        kind.runtime,
        systemd_cgroup=options.cgroup_driver == "systemd"
        if options.cgroup_driver
        else configuration.systemd_cgroup(),
    )
    if options.write:
        return _apply(configuration, runtime, options)
    sys.stdout.write(f"# {place.distribution}: {place.file}\n")
    sys.stdout.write(runtime.lines(configuration.version))
    return 0


def _place(options: argparse.Namespace) -> Place:
    if options.file is not None:
        return ordinary_place(options.file)
    return find_place(options.root)


def _apply(
    configuration: Configuration, runtime: Runtime | None, options: argparse.Namespace
) -> int:
    """Add or remove a runtime, and say what was done."""
    place = configuration.place
    if runtime is None:
        change = configuration.removing(options.handler)
    else:
        change = configuration.adding(runtime)
    if change.is_none:
        sys.stdout.write(f"{place.file}: nothing to change\n")
        return 0
    configuration.check(change, runtime)
    write(change)
    done = "written" if runtime is not None else "taken out"
    sys.stdout.write(f"{place.file}: {options.handler} is {done}\n")
    if options.restart:
        restart(place)
        sys.stdout.write(f"done: {' '.join(place.restart)}\n")
    else:
        sys.stdout.write(f"containerd reads it when it is restarted: {' '.join(place.restart)}\n")
    return 0
