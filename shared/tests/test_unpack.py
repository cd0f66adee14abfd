"""How a built shim unpacks itself: by many at once, killed, damaged, elsewhere, beside an older."""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from containerd_shimkit.bootstrap import is_listening
from containerd_shimkit.testing import BundleBuilder
from containerd_shimkit.testing.commands import SECONDS, ShimCommand, shim_command

pytestmark = pytest.mark.xdist_group("zygote")  # where the binary is built

KILLS = 12


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory to unpack to, not there yet."""
    with tempfile.TemporaryDirectory(prefix="cw-root-") as directory:
        yield Path(directory, "root")


def run(binary: Path, root: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command that needs what is unpacked, and nothing else."""
    return subprocess.run([binary, "-info"], env=environment(root), capture_output=True, timeout=60)


def environment(root: Path) -> dict[str, str]:
    return {"PATH": os.defpath, "CONTAINERD_WASM_SHIMS_ROOT": str(root)}


def names(root: Path) -> list[str]:
    """Return what is in the root, digests left out."""
    return sorted(re.sub("[0-9a-f]{16}", "ID", path.name) for path in root.iterdir())


WHOLE = [".lock", "runtime-ID", "spin-ID"]


def test_first_runs_at_once_unpack_once(spin_binary: Path, root: Path) -> None:
    with ThreadPoolExecutor(10) as pool:
        done = list(pool.map(lambda _: run(spin_binary, root), range(10)))
    assert {(d.returncode, d.stderr) for d in done} == {(0, b"")}
    assert names(root) == WHOLE


def test_nobody_else_may_look_into_it(spin_binary: Path, root: Path) -> None:
    assert run(spin_binary, root).returncode == 0
    assert [path.stat().st_mode & 0o777 for path in (root, *root.glob("*-*"))] == [0o700] * 3


def test_second_run_writes_nothing(spin_binary: Path, root: Path) -> None:
    def inodes() -> list[tuple[str, int, int]]:
        return sorted((str(p), p.lstat().st_ino, p.lstat().st_ctime_ns) for p in root.rglob("*"))

    assert run(spin_binary, root).returncode == 0
    before = inodes()
    assert run(spin_binary, root).returncode == 0
    assert inodes() == before


def test_killed_at_any_moment(spin_binary: Path, root: Path) -> None:
    """The next one finds it whole or does it again, and leaves nothing of it."""
    for _ in range(KILLS):
        with subprocess.Popen(
            [spin_binary, "-info"], env=environment(root), stdout=subprocess.DEVNULL
        ) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(random.uniform(0.0, 0.4))
            process.kill()
        if random.random() < 0.5:  # the others go on with what is there
            done = run(spin_binary, root)
            assert (done.returncode, done.stderr) == (0, b"")
            assert names(root) == WHOLE
            shutil.rmtree(random.choice(list(root.glob("*-*"))))
    assert run(spin_binary, root).returncode == 0
    assert names(root) == WHOLE


# Damage


def library(root: Path) -> Path:
    [path] = root.glob("runtime-*/files/lib/python3.*")
    return path


def flip(root: Path) -> None:
    """A byte changes, and the file's own time is put back."""
    path = library(root) / "argparse.pyc"
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def truncate(root: Path) -> None:
    os.truncate(library(root) / "argparse.pyc", 1000)


def remove(root: Path) -> None:
    (library(root) / "argparse.pyc").unlink()


def add(root: Path) -> None:
    """It would be imported before the module itself."""
    (library(root) / "argparse.py").write_text("raise SystemExit('hijacked')")
    (library(root) / "argparse.pyc").unlink()


def add_package(root: Path) -> None:
    """A directory is found before a module."""
    (library(root) / "argparse").mkdir()
    (library(root) / "argparse" / "__init__.py").write_text("raise SystemExit('hijacked')")


def swap(root: Path) -> None:
    path = library(root) / "argparse.pyc"
    path.rename(path.with_name("kept"))
    path.symlink_to("kept")


def open_to_all(root: Path) -> None:
    (library(root) / "argparse.pyc").chmod(0o666)


def shim_too(root: Path) -> None:
    [path] = root.glob("spin-*/files/containerd_shimkit/cli.pyc")
    path.write_bytes(b"")


def cut_manifest(root: Path) -> None:
    [path] = root.glob("runtime-*/manifest")
    os.truncate(path, path.stat().st_size // 2)


def manifest_is_a_fifo(root: Path) -> None:
    [path] = root.glob("runtime-*/manifest")
    path.unlink()
    os.mkfifo(path)


def no_lock(root: Path) -> None:
    for path in root.glob("*-*/lock"):
        path.unlink()


def no_directory(root: Path) -> None:
    [path] = root.glob("runtime-*")
    shutil.rmtree(path)
    path.write_text("a file")


def a_link(root: Path) -> None:
    [path] = root.glob("spin-*")
    path.rename(root / "elsewhere")
    path.symlink_to("elsewhere")


DAMAGE: list[Callable[[Path], None]] = [
    *(flip, truncate, remove, add, add_package, swap, open_to_all, shim_too),
    *(cut_manifest, manifest_is_a_fifo, no_lock, no_directory, a_link),
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda function: function.__name__)
def test_damage_is_undone(spin_binary: Path, root: Path, damage: Callable[[Path], None]) -> None:
    first = run(spin_binary, root)
    damage(root)
    second = run(spin_binary, root)
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, b"")
    if (root / "elsewhere").exists():
        shutil.rmtree(root / "elsewhere")
    assert names(root) == WHOLE
    assert list(root.rglob("*.py")) == []
    # and what was put in place is taken for whole
    before = {path: path.stat().st_ino for path in root.glob("*-*")}
    assert run(spin_binary, root).returncode == 0
    assert {path: path.stat().st_ino for path in root.glob("*-*")} == before


# Other places

FALLBACK = """\
set -e
mkdir -p /mnt
mount -t tmpfs none /mnt
: >/mnt/shim
mount --bind "$1" /mnt/shim
mount -t tmpfs none /run
mount -t tmpfs none /tmp
mount -t tmpfs none /var/lib
{setup}
cd /
/mnt/shim -info >/dev/null || echo "exit $?"
for directory in /var/lib/containerd-wasm-shims /run/containerd-wasm-shims \\
    /tmp/containerd-wasm-shims-0; do
    for tree in $directory/spin-*/files; do [ -d "$tree" ] && echo "$directory"; done
done
true
"""
READ_ONLY = "mount -o remount,ro /var/lib\n"
NO_RUN = READ_ONLY + "mount -o remount,noexec /run\n"
FOREIGN = NO_RUN + "mkdir /tmp/containerd-wasm-shims-0\n"


@pytest.mark.root
@pytest.mark.parametrize(
    ("setup", "place"),
    [
        pytest.param("", "/var/lib/containerd-wasm-shims", id="usual"),
        pytest.param(READ_ONLY, "/run/containerd-wasm-shims", id="read-only"),
        pytest.param("mount -o remount,size=20m /var/lib", "/run/containerd-wasm-shims", id="full"),
        pytest.param(NO_RUN, "/tmp/containerd-wasm-shims-0", id="run-noexec"),
        pytest.param(
            "export CONTAINERD_WASM_SHIMS_ROOT=/proc/nowhere",
            "/run/containerd-wasm-shims",
            id="chosen-one-is-none",
        ),
        pytest.param(
            "mkdir -m 777 /var/lib/containerd-wasm-shims; chmod 777 /var/lib/containerd-wasm-shims",
            "/run/containerd-wasm-shims",
            id="open-to-all",
        ),
        pytest.param(
            "mkdir /var/lib/x; ln -s x /var/lib/containerd-wasm-shims",
            "/run/containerd-wasm-shims",
            id="link",
        ),
    ],
)
def test_place(spin_binary: Path, setup: str, place: str) -> None:
    done = in_own_mounts(spin_binary, setup)
    assert (done.stdout, done.stderr) == (f"{place}\n", "")


@pytest.mark.root
def test_hostile_directory_is_not_used(spin_binary: Path) -> None:
    """Somebody was on /tmp first, and there is no other place: it says so."""
    done = in_own_mounts(spin_binary, FOREIGN + "chown 65534 /tmp/containerd-wasm-shims-0")
    assert done.stdout == "exit 1\n"
    assert done.stderr == (
        "/mnt/shim: cannot unpack: /var/lib/containerd-wasm-shims: Read-only file system; "
        "/run/containerd-wasm-shims: nothing there can be executed (noexec); "
        "/tmp/containerd-wasm-shims-0: it belongs to another user; "
        "set CONTAINERD_WASM_SHIMS_ROOT to another place\n"
    )


def in_own_mounts(binary: Path, setup: str) -> subprocess.CompletedProcess[str]:
    script = FALLBACK.format(setup=setup)
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", binary],
        capture_output=True,
        text=True,
        env={"PATH": f"{os.defpath}:/usr/sbin:/sbin"},
        timeout=60,
    )


# Upgrade


def bundle_of(command: ShimCommand, task_id: str) -> Path:
    return BundleBuilder(
        command.directory / task_id, task_id=task_id, namespace=command.namespace
    ).write()


def packages(root: Path) -> set[str]:
    return {path.name for path in root.glob("spin-*")}


@pytest.mark.root
def test_upgrade_leaves_old_pods_alone(
    spin_binary: Path, newer_binary: Path, namespace: str
) -> None:
    with shim_command(spin_binary, namespace) as command:
        root = command.directory / "root"
        assert command.start(bundle_of(command, "old"), "old").returncode == 0
        [old_zygote], [old_shim] = command.zygotes(), command.shims()
        old = packages(root)

        command.binary = newer_binary
        assert command.start(bundle_of(command, "new"), "new").returncode == 0
        [new_zygote] = [z for z in command.zygotes() if z.pid != old_zygote.pid]
        [new_shim] = [s for s in command.shims() if s.pid != old_shim.pid]
        assert new_shim.parent == new_zygote.pid
        assert len(packages(root)) == 2, "what the old pod runs from stays"
        assert is_listening(command.socket("old"))

        # The zygote alone ends, as it does when it is replaced: the shim holds its files too.
        kill(old_zygote.pid)
        [new] = packages(root) - old
        restart(command, root / new, new_zygote.pid)
        assert old <= packages(root)
        assert is_listening(command.socket("old"))

        # With the last process its files go, when the next version comes.
        kill(old_shim.pid)
        [zygote] = command.zygotes()
        restart(command, root / new, zygote.pid)
        assert packages(root) == {new}
        assert names(root) == WHOLE


def restart(command: ShimCommand, tree: Path, zygote: int) -> None:
    """Have the new version come for the first time once more."""
    kill(zygote)
    shutil.rmtree(tree)
    name = f"again{zygote}"
    assert command.start(bundle_of(command, name), name).returncode == 0


def kill(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], SECONDS)[0], "still alive"
    finally:
        os.close(pidfd)


@pytest.mark.root
def test_damage_below_running_pods(spin_binary: Path, namespace: str) -> None:
    """A pod starts, from new files, and those that run hold these as well."""
    with shim_command(spin_binary, namespace) as command:
        root = command.directory / "root"
        assert command.start(bundle_of(command, "a"), "a").returncode == 0
        [zygote] = command.zygotes()
        lock = {path.parent.name: path.stat().st_ino for path in root.glob("*-*/lock")}
        kill(zygote.pid)
        flip(root)
        assert command.start(bundle_of(command, "b"), "b").returncode == 0
        assert is_listening(command.socket("a"))
        assert {path.parent.name: path.stat().st_ino for path in root.glob("*-*/lock")} == lock
