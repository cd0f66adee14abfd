"""Which directories a guest is given."""

from __future__ import annotations

import os
from pathlib import Path

from containerd_shimkit.guest_files import guest_directories
from containerd_shimkit.linux.paths import fd_path
from containerd_shimkit.oci.spec import Mount


def bind(destination: Path | str) -> Mount:
    return Mount(str(destination), "bind", "/somewhere", ("rbind", "ro"))


def test_image_is_the_root(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_PATH)
    try:
        assert guest_directories(descriptor, []) == ((fd_path(descriptor), "/"),)
    finally:
        os.close(descriptor)


def test_volumes_are_seen_where_they_are_mounted(tmp_path: Path) -> None:
    """And stay what they are, whatever is put in their place."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_text("of the volume")
    ((path, seen),) = guest_directories(None, [bind(f"{tmp_path}/./volume/")])
    try:
        assert seen == str(volume)
        volume.rename(tmp_path / "gone")
        volume.symlink_to("/proc/self")
        assert (Path(path) / "file").read_text() == "of the volume"
    finally:
        os.close(int(path.rpartition("/")[2]))


def test_what_leads_to_proc_is_no_volume(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc/self")
    assert guest_directories(None, [bind(tmp_path / "link")]) == ()


def test_no_file_and_nothing_of_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    mounts = [bind(place) for place in (tmp_path / "file", tmp_path / "none", "/proc", "/dev/shm")]
    mounts += [bind("/sys/fs/cgroup"), bind("/"), bind("/proc/self/task")]
    mounts.append(Mount(str(tmp_path), "tmpfs", "tmpfs", ("nosuid",)))
    assert guest_directories(None, mounts) == ()
