"""A zygote, its directory and the cache are each broken a hundred times at random: pods start all
the same, and run the module of their own image.

What is random comes from a seed, which a failure names.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest
import wasmtime

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import Node, free_address
from containerd_shimkit.testing.leftovers import Process
from containerd_shimkit.wasm.cache import CompiledModuleCache, is_in_use

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.timeout(300)]

TIMES = 100
LANES = 4
"""Starts at once."""
START_SECONDS = 120.0
"""As long as kubelet waits: lanes kill each other's zygotes, and a new one takes seconds here."""

MANIFEST = """\
spin_manifest_version = "1"
name = "app"
version = "1.0.0"
trigger = { type = "http", base = "/" }
[[component]]
id = "app"
source = "app.wasm"
[component.trigger]
route = "/..."
"""


@dataclass(frozen=True)
class Image:
    """An app that says which one it is."""

    reference: str
    answer: str


@pytest.fixture
def images(cold_node: Node, pytestconfig: pytest.Config) -> list[Image]:
    """Two, which differ in nothing but their module."""
    directory = pytestconfig.rootpath / "images" / "spin"
    found = []
    for source, answer in (("hello/hello.wasm", "from Spin"), ("c-hello/c_hello.wasm", "from C")):
        files = [
            ImageFile("spin.toml", MANIFEST.encode()),
            ImageFile("app.wasm", (directory / source).read_bytes()),
        ]
        found.append(Image(cold_node.image(files), answer))
    return found


def check_start(node: Node, image: Image) -> None:
    """Start a pod, ask it, and remove it."""
    task_id, address = node.new_id(), free_address()
    command = node.run_command(image.reference, task_id, address, "-d", "--null-io")
    node.daemon.ctr(*command, timeout=START_SECONDS)
    connection = HTTPConnection(*address, timeout=20)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        answer = response.read().decode()
        assert response.status == 200
        assert image.answer in answer
    finally:
        connection.close()
        node.daemon.ctr("task", "rm", "-f", task_id, check=False)
        node.daemon.ctr("container", "rm", task_id)


@contextmanager
def seeded() -> Iterator[random.Random]:
    seed = secrets.randbits(32)
    try:
        yield random.Random(seed)
    except BaseException as exc:
        exc.add_note(f"seed {seed}")
        raise


def in_lanes(rng: random.Random, work: Callable[[random.Random], None]) -> None:
    """Do ``work`` a hundred times, several at once, each with its own random numbers."""
    with ThreadPoolExecutor(LANES) as pool:
        running = [
            pool.submit(work, random.Random(rng.getrandbits(32)))  # by number, not by time
            for _ in range(TIMES)
        ]
        for each in running:
            each.result()


# The zygote


def zygotes(node: Node) -> list[Process]:
    """Return the zygotes, not forks of them that are about to have names of their own."""
    found = node.zygotes()
    pids = {process.pid for process in found}
    return [process for process in found if process.parent not in pids]


def send(processes: list[Process], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def test_zygote_killed_or_stopped_at_any_moment(cold_node: Node, images: list[Image]) -> None:
    stopped: list[Process] = []

    def break_and_start(rng: random.Random) -> None:
        with ThreadPoolExecutor(1) as pool:
            start = pool.submit(check_start, cold_node, rng.choice(images))
            # Not a wait for anything: the moment of the signal is what varies.
            time.sleep(rng.random() * 0.15)
            found = zygotes(cold_node)
            if rng.random() < 0.9:
                send(found, signal.SIGKILL)
            else:  # it costs a start five seconds to see that it hangs
                stopped.extend(found)
                send(found, signal.SIGSTOP)
            start.result()

    try:
        with seeded() as rng:
            in_lanes(rng, break_and_start)
    finally:
        send(stopped, signal.SIGKILL)
    check_start(cold_node, images[0])
    assert zygotes(cold_node)


@contextmanager
def tmpfs(path: Path, options: str) -> Iterator[None]:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill_bytes(directory: Path, leave: int = 0) -> None:
    """Write until the disk has only ``leave`` bytes."""
    with suppress(OSError), (directory / "filler").open("ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    with suppress(OSError):
        size = (directory / "filler").stat().st_size
        os.truncate(directory / "filler", max(0, size - leave))


def fill_names(directory: Path) -> None:
    """Make files until there can be none more."""
    with suppress(OSError):
        while True:
            (directory / f"empty-{secrets.token_hex(8)}").touch()


def empty(directory: Path) -> None:
    for path in directory.iterdir():
        if not path.name.endswith((".sock", ".lock", ".cwasm")):
            path.unlink(missing_ok=True)


def test_full_directory_of_the_socket(cold_node: Node, images: list[Image]) -> None:
    """With a zygote in it and without: then every command does its work itself."""
    directory = cold_node.daemon.shims_runtime_dir
    send(zygotes(cold_node), signal.SIGKILL)
    with tmpfs(directory, "size=32k,nr_inodes=8"), seeded() as rng:

        def fill_and_start(rng: random.Random) -> None:
            what = rng.random()
            if what < 0.2:
                with suppress(OSError):
                    empty(directory)
            elif what < 0.4:
                fill_names(directory)
            elif what < 0.6:
                send(zygotes(cold_node), signal.SIGKILL)
            elif what < 0.7:
                for path in directory.glob("*.sock*"):
                    path.unlink(missing_ok=True)
                fill_names(directory)
            fill_bytes(directory)
            check_start(cold_node, rng.choice(images))

        in_lanes(rng, fill_and_start)
        send(zygotes(cold_node), signal.SIGKILL)
    check_start(cold_node, images[0])
    assert zygotes(cold_node)


# The cache


def test_full_disk_of_the_cache(cold_node: Node, images: list[Image], cache: Path) -> None:
    with tmpfs(cache, "size=512k,nr_inodes=12"), seeded() as rng:

        def fill_and_start(rng: random.Random) -> None:
            for path in cache.glob("*.cwasm"):
                if rng.random() < 0.5:
                    path.unlink(missing_ok=True)
            if rng.random() < 0.2:
                fill_names(cache)
            elif rng.random() < 0.3:
                empty(cache)
            fill_bytes(cache, leave=rng.choice((0, 1, 4096, rng.randrange(512 << 10))))
            check_start(cold_node, rng.choice(images))

        in_lanes(rng, fill_and_start)


def damage(rng: random.Random, path: Path, other: Path) -> None:
    """Put something else in an entry's place. other: the entry of another module."""
    data = path.read_bytes() if path.is_file() else bytes(rng.randbytes(1000))
    at = rng.randrange(len(data) + 1)
    length = rng.choice((1, 2, 64, 4096, rng.randrange(1, 1 << 16)))
    kind = rng.randrange(11)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind == 0:
        path.write_bytes(b"")
    elif kind == 1:
        path.write_bytes(data[:at])
    elif kind == 2:
        path.write_bytes(data[:at] + rng.randbytes(length) + data[at + length :])
    elif kind == 3:
        path.write_bytes(data[:at] + rng.randbytes(length) + data[at:])
    elif kind == 4:
        path.write_bytes(data[:at] + bytes(length) + data[at + length :])
    elif kind == 5:
        path.mkdir()
    elif kind == 6:
        path.mkdir()
        (path / "file").write_bytes(data)
    elif kind == 7:
        path.symlink_to(rng.choice((other, path, Path("/nowhere"), Path("/dev/zero"))))
    elif kind == 8:
        os.mkfifo(path)
    else:
        path.write_bytes(other.read_bytes() if other.is_file() else data[::-1])
    if path.is_file() and not path.is_symlink():
        path.chmod(0o444)


def test_cache_damaged_at_random(cold_node: Node, images: list[Image], cache: Path) -> None:
    own: dict[str, Path] = {}
    for image in images:
        before = set(cache.glob("*.cwasm"))
        check_start(cold_node, image)
        (own[image.reference],) = set(cache.glob("*.cwasm")) - before
    with seeded() as rng:
        for _ in range(TIMES):
            image, other = rng.sample(images, 2)
            damage(rng, own[image.reference], own[other.reference])
            if rng.random() < 0.2:
                damage(rng, own[other.reference], own[image.reference])
            check_start(cold_node, image)
    for path in own.values():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    for image in images:
        check_start(cold_node, image)
    assert all(path.is_file() for path in own.values())


# What is mapped


def mapped_entries(pid: int) -> dict[str, dict[str, int]]:
    """Return, for each file of the cache that a process maps, its figures of smaps, in kB."""
    found: dict[str, dict[str, int]] = {}
    current: dict[str, int] | None = None
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # the head of a mapping: addresses, mode, ..., inode, path
            entry = len(words) > 5 and words[5].endswith(".cwasm")
            current = found.setdefault(words[4], {}) if entry else None
        elif current is not None and words[-1] == "kB":
            name = words[0][:-1]
            current[name] = current.get(name, 0) + int(words[1])
    return found


def test_pods_of_one_image_share_the_pages_of_its_module(
    cold_node: Node, images: list[Image], cache: Path
) -> None:
    apps = [cold_node.run(images[0].reference) for _ in range(2)]
    for app in apps:
        assert app.get("/").status == 200
    one, two = (mapped_entries(app.pid) for app in apps)
    assert one.keys() == two.keys() != set()
    for figures in (*one.values(), *two.values()):
        shared = figures["Shared_Clean"]
        assert shared > figures["Private_Clean"] + figures["Private_Dirty"]
        assert figures["Pss"] < figures["Rss"]
    (entry,) = (path for path in cache.glob("*.cwasm") if is_in_use(path))
    CompiledModuleCache(cache, max_bytes=0).trim()
    assert list(cache.glob("*.cwasm")) == [entry]
    for app in apps:
        assert app.stop() == 0
    assert not is_in_use(entry)


SMALL_CONTAINER = 48 << 20

PEAK_OF_COMPILING = """
import os, resource, sys
from pathlib import Path
from containerd_shimkit.wasm.cache import CompiledModuleCache
from containerd_shimkit.compiling import find_or_compile
find_or_compile(Path(sys.argv[1]).read_bytes(), CompiledModuleCache(Path(sys.argv[2])))
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
"""


def large_module() -> bytes:
    """Return a Spin component that takes much to compile, in one function, and nothing to run."""
    sums = "".join(
        f"(local.set 1 (i32.add (i32.mul (local.get 1) (i32.const {n})) (local.get {n % 9})))"
        for n in range(60_000)
    )
    text = f"""(module (memory (export "memory") 1)
      (func (export "canonical_abi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8))
      (func (export "handle-http-request")
        (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) {sums} (local.get 1)))"""
    return bytes(wasmtime.wat2wasm(text))


def test_compiling_is_not_limited_by_the_container(cold_node: Node, tmp_path: Path) -> None:
    """It takes more memory than the container may have; the container starts."""
    wasm = large_module()
    (tmp_path / "app.wasm").write_bytes(wasm)
    paths = [str(tmp_path / name) for name in ("app.wasm", "other")]
    command = [sys.executable, "-c", PEAK_OF_COMPILING, *paths]
    peak = int(subprocess.check_output(command, timeout=60))
    assert peak > SMALL_CONTAINER
    image = cold_node.image(
        [ImageFile("spin.toml", MANIFEST.encode()), ImageFile("app.wasm", wasm)]
    )
    app = cold_node.run(image, "--memory-limit", str(SMALL_CONTAINER))
    assert app.stop() == 0
