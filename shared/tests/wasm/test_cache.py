"""The cache of compiled modules: whatever lies in its directory, only intact entries come out."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import secrets
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from containerd_shimkit.wasm.cache import (
    CompiledModuleCache,
    Label,
    cpu_fingerprint,
    is_in_use,
    read_label,
)

CODE = bytes(range(256)) * 40
DIGEST_BYTES = 32
TRAILER_BYTES = 36  # an empty label, its length, the digest


@pytest.fixture
def cache(tmp_path: Path) -> CompiledModuleCache:
    return CompiledModuleCache(tmp_path / "cache")


def content(cache: CompiledModuleCache, key: str) -> bytes | None:
    descriptor = cache.open(key)
    if descriptor is None:
        return None
    with open(descriptor, "rb") as file:
        return file.read()


def entry(cache: CompiledModuleCache) -> Path:
    (path,) = cache.directory.iterdir()
    return path


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # only the number matters


def test_stored_entry_is_found(cache: CompiledModuleCache) -> None:
    assert cache.open("key") is None
    cache.store("key", CODE)
    assert content(cache, "key") is not None
    assert (content(cache, "key") or b"")[:-TRAILER_BYTES] == CODE
    assert cache.open("other") is None


def test_modes_keep_others_out_and_descriptors_readable(cache: CompiledModuleCache) -> None:
    cache.store("key", CODE)
    assert cache.directory.stat().st_mode & 0o777 == 0o700
    assert entry(cache).stat().st_mode & 0o777 == 0o444
    descriptor = cache.open("key")
    assert descriptor is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(descriptor, b"x")
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_open_marks_an_entry_as_used(cache: CompiledModuleCache) -> None:
    cache.store("key", CODE)
    os.utime(entry(cache), (1, 1))
    content(cache, "key")
    assert entry(cache).stat().st_mtime > 1


def test_store_replaces_an_entry(cache: CompiledModuleCache) -> None:
    cache.store("key", CODE)
    old = cache.open("key")
    assert old is not None
    cache.store("key", b"new" * 100)
    assert (content(cache, "key") or b"")[:3] == b"new"
    assert os.pread(old, len(CODE), 0) == CODE  # who has it mapped keeps it
    os.close(old)


def flip(at: int) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[at] ^= 0x10
        return bytes(changed)

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "one byte": lambda data: data[:1],
    "digest only": lambda data: data[-DIGEST_BYTES:],
    "less than a digest": lambda data: data[: DIGEST_BYTES - 1],
    "without digest": lambda data: data[:-DIGEST_BYTES],
    "without last byte": lambda data: data[:-1],
    "without first byte": lambda data: data[1:],
    "half": lambda data: data[: len(data) // 2],
    "trailing byte": lambda data: data + b"\0",
    "trailing digest": lambda data: data + data[-DIGEST_BYTES:],
    "first byte": flip(0),
    "middle byte": flip(len(CODE) // 2),
    "last byte of the code": flip(len(CODE) - 1),
    "first byte of the digest": flip(len(CODE)),
    "last byte of the digest": flip(-1),
    "zeros": lambda data: bytes(len(data)),
    "hole": lambda data: data[:4096] + bytes(4096) + data[8192:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_entry_is_removed_and_can_be_stored_again(
    cache: CompiledModuleCache, damage: Callable[[bytes], bytes]
) -> None:
    cache.store("key", CODE)
    path = entry(cache)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(data))
    before = open_descriptors()
    assert cache.open("key") is None
    assert not path.exists()
    assert open_descriptors() == before
    cache.store("key", CODE)
    assert (content(cache, "key") or b"")[:-TRAILER_BYTES] == CODE


@pytest.mark.parametrize("at", range(0, len(CODE) + DIGEST_BYTES, 499))
def test_no_flipped_bit_goes_unnoticed(cache: CompiledModuleCache, at: int) -> None:
    cache.store("key", CODE)
    path = entry(cache)
    path.chmod(0o644)
    path.write_bytes(flip(at)(path.read_bytes()))
    assert cache.open("key") is None


def test_symlink_in_place_is_not_followed(cache: CompiledModuleCache, tmp_path: Path) -> None:
    cache.store("key", CODE)
    path = entry(cache)
    elsewhere = path.rename(tmp_path / "elsewhere")
    path.symlink_to(elsewhere)
    assert cache.open("key") is None
    cache.store("key", CODE)
    assert not path.is_symlink()
    assert cache.open("key") is not None
    assert elsewhere.exists()


def make_directory(path: Path) -> None:
    path.mkdir()


def make_full_directory(path: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"x")


@pytest.mark.parametrize("make", [make_directory, make_full_directory, os.mkfifo])
def test_what_is_no_file_counts_as_no_entry(
    cache: CompiledModuleCache, make: Callable[[Path], None]
) -> None:
    """A FIFO must not make it wait either."""
    cache.store("key", CODE)
    path = entry(cache)
    path.unlink()
    make(path)
    before = open_descriptors()
    assert cache.open("key") is None
    assert open_descriptors() == before


def test_concurrent_stores_and_opens_agree(cache: CompiledModuleCache) -> None:
    cache.store("key", CODE)

    def work(number: int) -> bool:
        if number % 2:
            cache.store("key", CODE)
        found = content(cache, "key")
        return found is not None and found[:-TRAILER_BYTES] == CODE

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))
    assert len(list(cache.directory.iterdir())) == 1


def fail_with(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("call", ["os.fsync", "os.fchmod", "pathlib.Path.rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_disk_error_leaves_nothing_behind(
    cache: CompiledModuleCache, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(call, fail_with(number))
        with pytest.raises(OSError, match=os.strerror(number)):
            cache.store("key", CODE)
    assert list(cache.directory.iterdir()) == []
    assert open_descriptors() == before
    assert cache.open("key") is None


def test_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = CompiledModuleCache(tmp_path / "file" / "cache")
    assert cache.open("key") is None
    with pytest.raises(OSError, match="Not a directory"):
        cache.store("key", CODE)


def test_key_depends_on_wasm_and_settings() -> None:
    keys = {Label.of(wasm, settings).key for wasm in (b"1", b"2") for settings in ("a", "b")}
    assert len(keys) == 4
    assert all(len(key) == 64 and key.isalnum() for key in keys)
    assert Label.of(b"1", "a").key in keys


def test_cpu_fingerprint_is_steady() -> None:
    first = cpu_fingerprint()
    cpu_fingerprint.cache_clear()
    assert cpu_fingerprint() == first


# Entries say what they are


def test_label_comes_back(cache: CompiledModuleCache) -> None:
    label = Label.of(b"wasm", "wasmtime=1")
    cache.store(label.key, CODE, label.encode())
    descriptor = cache.open(label.key)
    assert descriptor is not None
    assert Label.decode(read_label(descriptor, label.key) or b"") == label
    os.close(descriptor)


def test_entry_of_another_module_is_never_taken(cache: CompiledModuleCache) -> None:
    """Intact, but under a name that is not its own."""
    cache.store("one", CODE)
    cache.store("two", CODE[::-1])
    (cache.directory / "one.cwasm").replace(cache.directory / "two.cwasm")
    assert cache.open("two") is None
    assert not (cache.directory / "two.cwasm").exists()


# Size


def bounded(directory: Path, entries: int) -> CompiledModuleCache:
    return CompiledModuleCache(directory, max_bytes=entries * (len(CODE) + TRAILER_BYTES))


def fill(cache: CompiledModuleCache, keys: str) -> None:
    for used, key in enumerate(keys, 1):
        cache.store(key, CODE)
        os.utime(cache.directory / f"{key}.cwasm", (used, used))


def keys_of(cache: CompiledModuleCache) -> str:
    return "".join(sorted(entry.key for entry in cache.entries()))


def test_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = bounded(tmp_path / "cache", 2)
    fill(cache, "abcd")
    assert content(cache, "a") is not None  # used just now
    cache.trim()
    assert keys_of(cache) == "ad"


def test_what_fits_stays(tmp_path: Path) -> None:
    cache = bounded(tmp_path / "cache", 4)
    fill(cache, "abcd")
    cache.trim()
    assert keys_of(cache) == "abcd"


def test_what_is_in_use_is_not_removed(tmp_path: Path) -> None:
    """In use is what has an open descriptor, a copy in another process included."""
    cache = bounded(tmp_path / "cache", 0)
    fill(cache, "abc")
    descriptor = cache.open("a")
    assert descriptor is not None
    copy = os.dup(descriptor)
    os.close(descriptor)
    cache.trim()
    assert keys_of(cache) == "a"
    assert is_in_use(cache.directory / "a.cwasm")
    os.close(copy)
    assert not is_in_use(cache.directory / "a.cwasm")
    cache.trim()
    assert keys_of(cache) == ""


def test_trim_without_a_directory(tmp_path: Path) -> None:
    cache = bounded(tmp_path / "cache", 0)
    cache.trim()
    assert cache.entries() == []


# Writers that are killed

WRITER = """
import os, sys
from pathlib import Path
from containerd_shimkit.wasm.cache import CompiledModuleCache
cache = CompiledModuleCache(Path(sys.argv[1]))
code = bytes(range(256)) * 4000
sys.stdout.write("ready\\n")
sys.stdout.flush()
while True:
    cache.store("key", code)
"""


def test_writer_killed_at_any_moment_leaves_no_wrong_entry(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    delays = random.Random(seed)
    cache = CompiledModuleCache(tmp_path / "cache")
    code = bytes(range(256)) * 4000
    left = 0
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(cache.directory)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            # Not a wait for anything: the moment of the kill is what varies.
            with suppress(subprocess.TimeoutExpired):
                writer.wait(delays.random() * 0.03)
            writer.kill()
        left += len(list(cache.directory.glob(".new-*")))
        found = content(cache, "key")
        assert found is None or found[:-TRAILER_BYTES] == code, f"seed {seed}"
        cache.trim()
        assert not list(cache.directory.glob(".new-*")), f"seed {seed}"
    assert left, f"seed {seed}: no kill hit a write"


def test_file_of_a_writer_at_work_is_not_swept(cache: CompiledModuleCache) -> None:
    cache.store("key", CODE)
    directory = os.open(cache.directory, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_SH)  # as a writer has it
    (cache.directory / ".new-abc").write_bytes(b"x")
    cache.sweep()
    assert (cache.directory / ".new-abc").exists()
    cache.store("other", CODE)  # two writers do not wait for each other
    os.close(directory)
    cache.sweep()
    assert not (cache.directory / ".new-abc").exists()


def test_sweep_that_hangs_stops_no_writer(cache: CompiledModuleCache) -> None:
    cache.store("key", CODE)
    directory = os.open(cache.directory, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    cache.store("other", CODE)
    os.close(directory)
    assert content(cache, "other") is not None


def test_read_error_is_no_signal(
    cache: CompiledModuleCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a mapping it would be SIGBUS, which ends the process."""
    cache.store("key", CODE)
    descriptor = os.open(entry(cache), os.O_RDONLY)
    monkeypatch.setattr(os, "pread", fail_with(errno.EIO))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            read_label(descriptor, "key")
    finally:
        os.close(descriptor)
    assert cache.open("key") is None
    assert not list(cache.directory.iterdir())


def test_file_that_becomes_shorter_while_read(
    cache: CompiledModuleCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store("key", bytes(3 << 20))
    path = entry(cache)
    pread = os.pread

    def read(descriptor: int, size: int, at: int) -> bytes:
        os.truncate(path, 1 << 20)
        return pread(descriptor, size, at)

    monkeypatch.setattr(os, "pread", read)
    assert cache.open("key") is None


def test_label_of_a_large_entry(cache: CompiledModuleCache) -> None:
    for size in ((1 << 20) - 10, 1 << 20, (2 << 20) + 1):
        cache.store("key", secrets.token_bytes(size), b"label")
        descriptor = cache.open("key")
        assert descriptor is not None
        assert read_label(descriptor, "key") == b"label"
        os.close(descriptor)


@pytest.mark.parametrize("is_released", [True, False])
def test_open_while_another_looks_whether_it_is_in_use(
    cache: CompiledModuleCache, monkeypatch: pytest.MonkeyPatch, is_released: bool
) -> None:
    """The lock is taken a moment later; who holds it for good does not stop a start."""
    cache.store("key", CODE)
    other = os.open(entry(cache), os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    if is_released:
        monkeypatch.setattr("time.sleep", lambda _: fcntl.flock(other, fcntl.LOCK_UN))
    descriptor = cache.open("key")
    fcntl.flock(other, fcntl.LOCK_UN)
    try:
        assert descriptor is not None
        assert is_in_use(entry(cache)) is is_released
        os.close(descriptor)
    finally:
        os.close(other)
