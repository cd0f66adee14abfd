"""Parts that end in the middle: containerd, a shim, an engine, the zygote, the cache."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from containerd_shimkit.testing.apps import (
    App,
    Node,
    end_process,
    eventually,
    free_address,
    wait_for_end,
)
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD
from containerd_shimkit.testing.leftovers import find_processes

pytestmark = [pytest.mark.root, pytest.mark.containerd]


def serves(app: App) -> bool:
    return app.get("/status?code=204").status == 204


# containerd


@pytest.mark.parametrize("end", ["terminate", "kill"])
@ON_EACH_CONTAINERD
def test_app_serves_while_containerd_is_down_and_after(
    own_node: Node, own_image: str, end: str
) -> None:
    app = own_node.run(own_image)
    getattr(own_node.daemon, end)()
    assert serves(app)
    own_node.daemon.start()
    assert serves(app)
    assert app.status == "RUNNING"
    assert own_node.daemon.ctr("task", "metrics", app.id).stdout
    assert app.stop() == 0


@ON_EACH_CONTAINERD
def test_exit_while_containerd_is_down_is_seen_after(own_node: Node, own_image: str) -> None:
    app = own_node.run(own_image)
    own_node.daemon.terminate()
    end_process(app.pid, signal.SIGTERM)
    own_node.daemon.start()
    eventually(lambda: app.status == "STOPPED", "it is stopped")
    assert app.delete() == 0


@ON_EACH_CONTAINERD
def test_shim_killed_while_containerd_is_down(own_node: Node, own_image: str) -> None:
    app = own_node.run(own_image)
    shim = app.shim_pid
    own_node.daemon.terminate()
    end_process(shim, signal.SIGKILL)
    app.wait_for_process()
    own_node.daemon.start()
    own_node.delete_task(app.id, "-f")
    assert serves(own_node.run(own_image))


@ON_EACH_CONTAINERD
def test_new_container_after_a_restart(own_node: Node, own_image: str) -> None:
    own_node.daemon.restart()
    app = own_node.run(own_image)
    assert serves(app)
    assert app.stop() == 0


# The shim and the engine


@ON_EACH_CONTAINERD
def test_shim_killed(node: Node, probe: App) -> None:
    """The app ends with it, containerd sees that, and delete removes all."""
    end_process(probe.shim_pid, signal.SIGKILL)
    probe.wait_for_process()

    def is_stopped() -> bool:
        tasks = node.daemon.ctr("task", "ls").stdout
        return probe.id not in tasks or "STOPPED" in tasks

    eventually(is_stopped, "containerd knows")
    assert node.delete_task(probe.id) in (137, None)


def test_shim_killed_with_a_request_in_flight(node: Node, probe: App) -> None:
    connection = probe.connect()
    connection.request("GET", "/sleep?ms=60000")
    assert serves(probe)
    end_process(probe.shim_pid, signal.SIGKILL)
    probe.wait_for_process(15)
    connection.close()


def test_shim_killed_while_paused(node: Node, probe: App) -> None:
    node.daemon.ctr("task", "pause", probe.id)
    end_process(probe.shim_pid, signal.SIGKILL)
    probe.wait_for_process()


def test_shim_ignores_sigterm(node: Node, probe: App) -> None:
    """A shim ends when containerd shuts it down, and not before its containers."""
    os.kill(probe.shim_pid, signal.SIGTERM)
    os.kill(probe.shim_pid, signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGINT):
        sentence = f"signal {number:d} ignored: a shim ends when containerd shuts it down"
        eventually(partial(logged, node, sentence), sentence)
    assert serves(probe)
    assert probe.status == "RUNNING"
    assert probe.stop() == 0


def logged(node: Node, sentence: str) -> bool:
    return sentence in node.daemon.log()


@ON_EACH_CONTAINERD
def test_engine_killed(probe: App) -> None:
    end_process(probe.pid, signal.SIGKILL)
    probe.wait()
    assert probe.delete() == 137


@ON_EACH_CONTAINERD
def test_one_shim_killed_leaves_the_others_alone(node: Node, probe: App, probe_image: str) -> None:
    other = node.run(probe_image)
    end_process(probe.shim_pid, signal.SIGKILL)
    probe.wait_for_process()
    assert serves(other)
    assert other.stop() == 0


# The zygote


def test_zygote_killed_between_starts(own_node: Node, own_image: str) -> None:
    first = own_node.run(own_image)
    (zygote,) = own_node.zygotes()
    end_process(zygote.pid, signal.SIGKILL)
    second = own_node.run(own_image)
    assert serves(first)
    assert serves(second)
    assert first.stop() == 0
    assert second.stop() == 0
    (replacement,) = own_node.zygotes()
    assert replacement.pid != zygote.pid


def test_zygote_terminated(own_node: Node, own_image: str) -> None:
    """What it has forked goes on."""
    app = own_node.run(own_image)
    (zygote,) = own_node.zygotes()
    end_process(zygote.pid, signal.SIGTERM)
    assert serves(app)
    assert app.stop() == 0
    assert serves(own_node.run(own_image))


def test_zygote_that_hangs_does_not_stop_a_start(own_node: Node, own_image: str) -> None:
    """The command does the work itself; the next start has a new zygote, the old one ends."""
    (hung,) = own_node.zygotes()
    os.kill(hung.pid, signal.SIGSTOP)
    hung_fd = os.pidfd_open(hung.pid)
    try:
        first = own_node.run(own_image)
        assert serves(first)
        assert first.stop() == 0
        second = own_node.run(own_image)
        assert serves(second)
        assert second.stop() == 0
        assert len(own_node.zygotes()) == 2
    finally:
        os.kill(hung.pid, signal.SIGCONT)
    wait_for_end(hung_fd)
    os.close(hung_fd)
    shims = find_processes([f"-namespace {own_node.daemon.namespace} "])
    assert [str(shim) for shim in shims] == []


def test_zygote_that_hangs_does_not_stop_a_cleanup(own_node: Node, own_image: str) -> None:
    """A shim was killed: what containerd executes then has 5 s for everything."""
    app = own_node.run(own_image)
    shim = app.shim_pid
    (hung,) = own_node.zygotes()
    os.kill(hung.pid, signal.SIGSTOP)
    try:
        end_process(shim, signal.SIGKILL)
        app.wait_for_process()
        eventually(lambda: not app.bundle.exists(), "the bundle is removed")
        assert "timed out" not in own_node.daemon.log()
        assert "context deadline exceeded" not in own_node.daemon.log()
    finally:
        end_process(hung.pid, signal.SIGKILL)


def test_starts_at_once_make_one_zygote(own_node: Node, own_image: str) -> None:
    (old,) = own_node.zygotes()
    end_process(old.pid, signal.SIGKILL)
    with ThreadPoolExecutor(6) as pool:
        apps = list(pool.map(lambda _: own_node.run(own_image), range(6)))
    assert all(serves(app) for app in apps)
    assert len(own_node.zygotes()) == 1
    for app in apps:
        assert app.stop() == 0


def test_zygote_directory_removed(own_node: Node, own_image: str) -> None:
    """/run may be cleaned by others: the next start makes everything anew."""
    (old,) = own_node.zygotes()
    for path in own_node.daemon.shims_runtime_dir.iterdir():
        path.unlink()
    app = own_node.run(own_image)
    assert serves(app)
    assert app.stop() == 0
    assert [z.pid for z in own_node.zygotes() if z.pid != old.pid]
    with suppress(ProcessLookupError):  # without its socket it ends by itself, when it looks
        end_process(old.pid, signal.SIGTERM)


def test_without_a_zygote(own_node: Node, own_image: str) -> None:
    """A directory that cannot be made is no reason not to start."""
    (zygote,) = own_node.zygotes()
    end_process(zygote.pid, signal.SIGKILL)
    run = own_node.daemon.shims_runtime_dir
    for path in run.iterdir():
        path.unlink()
    run.rmdir()
    run.write_text("in the way")
    try:
        app = own_node.run(own_image)
        assert serves(app)
        assert app.stop() == 0
        assert own_node.zygotes() == []
    finally:
        run.unlink()
        run.mkdir(mode=0o700)


# Again and again


def test_20_containers_leave_nothing(soak: Callable[[int], None]) -> None:
    """The short form of ``make soak``."""
    soak(20)


# The cache of compiled modules


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_cache_is_compiled_again(
    cold_node: Node, cold_image: str, cache: Path, damage: str
) -> None:
    entries = sorted(cache.glob("*.cwasm"))
    assert entries
    originals = {}
    for entry in entries:
        data = entry.read_bytes()
        originals[entry] = data
        middle = len(data) // 2
        damaged = {
            "flip": data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :],
            "truncate": data[:middle],
            "empty": b"",
        }[damage]
        entry.unlink()
        entry.write_bytes(damaged)
    app = cold_node.run(cold_image)
    assert serves(app)
    assert app.stop() == 0
    assert sorted(cache.glob("*.cwasm")) == entries
    assert all(len(entry.read_bytes()) == len(data) for entry, data in originals.items())


def test_cache_that_cannot_be_written(cold_node: Node, cold_image: str, cache: Path) -> None:
    """A file is where its directory should be: compiled for this container alone."""
    for entry in cache.iterdir():
        entry.unlink()
    cache.rmdir()
    cache.write_text("in the way")
    try:
        app = cold_node.run(cold_image)
        assert serves(app)
        assert app.stop() == 0
    finally:
        cache.unlink()
        cache.mkdir(mode=0o700)


def test_cache_on_a_read_only_disk(cold_node: Node, cold_image: str, cache: Path) -> None:
    for entry in cache.iterdir():
        entry.unlink()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "none", cache], check=True)
    try:
        app = cold_node.run(cold_image)
        assert serves(app)
        assert app.stop() == 0
    finally:
        subprocess.run(["umount", cache], check=True)
    assert list(cache.iterdir()) == []


def test_port_is_free_again_after_the_end(node: Node, probe_image: str) -> None:
    address = free_address()
    for number in ("SIGTERM", "SIGKILL", "SIGTERM"):
        app = node.run(probe_image, address=address)
        assert serves(app)
        assert app.stop(number) == (137 if number == "SIGKILL" else 0)
