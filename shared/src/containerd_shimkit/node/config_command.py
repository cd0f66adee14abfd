"""The ``config`` command: the lines by which the node's containerd knows the shim."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from containerd_shimkit.node.config_text import CRI_PLUGINS, Runtime, ours_in
from containerd_shimkit.node.configuring import (
    Change,
    Configuration,
    find_containerd,
    restart,
    write,
)
from containerd_shimkit.node.daemons import find_daemons
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
        *("-restart", "--restart"),
        action="store_true",
        help="restart containerd if anything changed, or if it has not read yet what did before",
    )
    parser.add_argument(
        *("-with", "--with"),
        dest="others",
        action="append",
        default=[],
        metavar="SHIM",
        help="another of these shims, in the same change: spin, slight, wws; may be repeated",
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
    handlers = list(dict.fromkeys([options.handler, *options.others]))
    if options.remove:
        return _remove(configuration, handlers, options)
    systemd = (
        options.cgroup_driver == "systemd"
        if options.cgroup_driver
        else configuration.systemd_cgroup()
    )
    runtimes = [
        Runtime(
            name, kind.runtime if name == options.handler else f"io.containerd.{name}.v1", systemd
        )
        for name in handlers
    ]
    if options.write:
        return _add(configuration, runtimes, options)
    sys.stdout.write(f"# {place.distribution}: {place.file}\n")
    for runtime in runtimes:
        sys.stdout.write(runtime.lines(configuration.version, in_k3s_template=place.is_template))
    return 0


def _place(options: argparse.Namespace) -> Place:
    if options.file is not None:
        return ordinary_place(options.file)
    return find_place(options.root)


def _add(
    configuration: Configuration, runtimes: Sequence[Runtime], options: argparse.Namespace
) -> int:
    change = configuration.adding(runtimes)
    if not change.is_none:
        configuration.check(change, runtimes)
    new = [r.handler for r in runtimes if r not in ours_in(change.before or "").values()]
    return _apply(configuration.place, change, new, "written", options)


def _remove(
    configuration: Configuration, handlers: Sequence[str], options: argparse.Namespace
) -> int:
    change = configuration.removing(handlers)
    if not change.is_none:
        configuration.check(change)
    there = ours_in(change.before or "")
    old = [handler for handler in handlers if handler in there]
    return _apply(configuration.place, change, old, "taken out", options)


def _apply(
    place: Place, change: Change, handlers: Sequence[str], done: str, options: argparse.Namespace
) -> int:
    """Make a change, and say what was done."""
    if change.is_none:
        sys.stdout.write(f"{place.file}: nothing to change\n")
    else:
        write(change)
        for handler in handlers:
            sys.stdout.write(f"{place.file}: {handler} is {done}\n")
    unread = not change.is_none or _is_unread(place)
    if unread and options.restart:
        restart(place)
        sys.stdout.write(f"done: {' '.join(place.restart)}\n")
    elif unread:
        sys.stdout.write(f"containerd reads it when it is restarted: {' '.join(place.restart)}\n")
    return 0


def _is_unread(place: Place) -> bool:
    """Whether a containerd that runs is older than its configuration."""
    return any(
        daemon.is_older_than(file)
        for daemon in find_daemons()
        if daemon.config == place.read
        for file in {place.file, place.read}
    )
