"""The directories that a guest may be given: the image's, and those that volumes are mounted on.

A guest that is given ``/`` as a process sees it is given ``/proc`` as well, by which it could read
this process. So the image's own files are a mount of their own, the *image mount*, made when the
container is entered: nothing that is mounted in the container is mounted in it, and it can only be
read. No path leads to it; it is reached as ``/proc/self/fd/N``.

Volumes are reached in the same way, by what is at their places when the container starts. Later a
place may lead elsewhere: who shares the volume that another one is mounted in can move that place
away, and put a link to ``/proc/self`` there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.mounts import MountSpec, clone_readonly, parse_options
from containerd_shimkit.linux.paths import fd_path
from containerd_shimkit.linux.syscalls import filesystem_type

_KERNELS: Final = ("/proc", "/dev", "/sys")


def open_image_mount() -> int | None:
    """Return a descriptor of the image mount; to be called when ``/`` is the container's.

    None where the kernel has none: before Linux 5.12, or below a mount that must stay covered.
    """
    try:
        return clone_readonly("/", k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV)
    except OSError:
        return None


def guest_directories(
    image_mount: int | None, mounts: Iterable[MountSpec]
) -> tuple[tuple[str, str], ...]:
    """Return (path, path the guest sees) for the image, ``/``, and for each volume.

    image_mount: see ``open_image_mount``. mounts: of the container. What its user may not read is
    left out, and a volume that is a single file; so is everything if there is no ``/proc``.
    Descriptors of the volumes stay open.
    """
    found = []
    if image_mount is not None and _is_reached(image_mount):
        found.append((fd_path(image_mount), "/"))
    for mount in mounts:
        place = os.path.normpath(mount.destination)
        binds = parse_options(mount.options).flags & k.MS_BIND
        if binds and not _is_kernels(place) and (volume := _open_volume(place)) is not None:
            found.append((fd_path(volume), place))
    return tuple(found)


def _open_volume(place: str) -> int | None:
    """Return a descriptor of the directory, None if guests cannot be given it."""
    try:
        volume = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    path = fd_path(volume)
    if _is_reached(volume) and os.access(path, os.R_OK | os.X_OK) and not _is_proc(path):
        return volume
    os.close(volume)
    return None


def _is_reached(descriptor: int) -> bool:
    """Whether its path leads there: ``/proc`` is the image's, unless one is mounted."""
    path = fd_path(descriptor)
    try:
        return filesystem_type(path.rpartition("/")[0]) == k.PROC_SUPER_MAGIC and os.path.samestat(
            Path(path).stat(), os.fstat(descriptor)
        )
    except OSError:
        return False


def _is_kernels(place: str) -> bool:
    return place == "/" or any(f"{place}/".startswith(f"{top}/") for top in _KERNELS)


def _is_proc(path: str) -> bool:
    try:
        return filesystem_type(path) == k.PROC_SUPER_MAGIC
    except OSError:
        return True
