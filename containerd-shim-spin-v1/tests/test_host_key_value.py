"""Key-value stores: one suite for every kind, and what is special about each."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from containerd_shim_spin_v1.host import key_value
from containerd_shim_spin_v1.host.key_value import (
    AccessDeniedError,
    InvalidStoreError,
    KeyValueHost,
    KeyValueSession,
    NoSuchStoreError,
    StoreTableFullError,
    check_store_addresses,
)
from containerd_shim_spin_v1.host.key_value_backends import memory, redis, sqlite_file
from containerd_shim_spin_v1.host.key_value_backends.base import StoreError
from containerd_shim_spin_v1.runtime_config.reader import parse_runtime_config
from containerd_shimkit.errors import ManifestError
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.redis import running_redis

KINDS = ("memory", "sqlite", "redis")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_redis() as found:
        yield found


@pytest.fixture(params=KINDS)
def config(request: pytest.FixtureRequest) -> str:
    """A configuration with a store ``s`` of each kind in turn; it is empty."""
    if request.param == "redis":
        server = request.getfixturevalue("server")
        command(server, "FLUSHALL")
        return f'[key_value_store.s]\ntype = "redis"\nurl = "redis://{server.address}/3"\n'
    path = 'path = "data/kv.db"\n' if request.param == "sqlite" else ""
    return f'[key_value_store.s]\ntype = "spin"\n{path}'


def command(server: Server, *words: str) -> None:
    server.run("redis-cli", "-h", server.host, "-p", str(server.port), *words)


def no_tls() -> ssl.SSLContext:
    raise AssertionError("no TLS here")


def run(
    config: str, directory: Path, main: Callable[[KeyValueHost], Coroutine[Any, Any, None]]
) -> None:
    """Call ``main`` with the stores of a configuration, and close these."""

    async def whole() -> None:
        host = KeyValueHost.of(
            parse_runtime_config(config), no_tls, root=directory, directory=Path("/etc")
        )
        try:
            async with asyncio.timeout(60):
                await main(host)
        finally:
            await host.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())


@contextlib.asynccontextmanager
async def opened(
    host: KeyValueHost, label: str = "s"
) -> AsyncIterator[tuple[KeyValueSession, int]]:
    session = host.session([label])
    handle = await session.open(label)
    yield session, handle
    session.close(handle)


# Of every kind


def test_values(config: str, tmp_path: Path) -> None:
    async def main(host: KeyValueHost) -> None:
        async with opened(host) as (guest, s):
            assert await guest.get(s, "ключ") is None
            assert not await guest.exists(s, "ключ")
            await guest.delete(s, "ключ")
            await guest.set(s, "ключ", b"\0\xff\r\n")
            assert await guest.get(s, "ключ") == b"\0\xff\r\n"
            assert await guest.exists(s, "ключ")
            await guest.set(s, "ключ", b"")
            assert await guest.get(s, "ключ") == b""
            assert await guest.exists(s, "ключ")
            await guest.set(s, "", b"empty")
            await guest.set(s, "a\0b", b"nul")
            assert sorted(await guest.get_keys(s)) == ["", "a\0b", "ключ"]
            assert await guest.get(s, "a") is None
            await guest.delete(s, "ключ")
            assert sorted(await guest.get_keys(s)) == ["", "a\0b"]

    run(config, tmp_path, main)


def test_large_value(config: str, tmp_path: Path) -> None:
    value = bytes(range(256)) * (10 << 12)

    async def main(host: KeyValueHost) -> None:
        async with opened(host) as (guest, s):
            await guest.set(s, "large", value)
            assert await guest.get(s, "large") == value

    run(config, tmp_path, main)


def test_many_keys(config: str, tmp_path: Path) -> None:
    async def main(host: KeyValueHost) -> None:
        async with opened(host) as (guest, s):
            keys = [f"key {number}" for number in range(3000)]
            await asyncio.gather(*(guest.set(s, key, b"x") for key in keys))
            found = await guest.get_keys(s)
            assert sorted(found) == sorted(keys)

    run(config, tmp_path, main)


def test_too_many_keys(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (memory, sqlite_file, redis):
        monkeypatch.setattr(module, "MAX_RESULT_BYTES", 100)

    async def main(host: KeyValueHost) -> None:
        async with opened(host) as (guest, s):
            for number in range(3):
                await guest.set(s, f"{number} 6789", b"x" * 50)
            assert len(await guest.get_keys(s)) == 3
            await guest.set(s, "more", b"x")
            with pytest.raises(StoreError, match="key-value store 's': the result exceeds"):
                await guest.get_keys(s)
            assert await guest.get(s, "more") == b"x"

    run(config, tmp_path, main)


def test_guests_share_a_store(config: str, tmp_path: Path) -> None:
    async def main(host: KeyValueHost) -> None:
        async with opened(host) as (one, s), opened(host) as (other, t):
            await one.set(s, "k", b"v")
            assert await other.get(t, "k") == b"v"

    run(config, tmp_path, main)


def test_cancelled_calls(config: str, tmp_path: Path) -> None:
    """Whatever became of them, the store works, and each value is whole."""

    async def main(host: KeyValueHost) -> None:
        async with opened(host) as (guest, s):
            for turns in range(20):
                calls = [
                    asyncio.create_task(guest.set(s, f"k{number}", b"%d" % turns * 1000))
                    for number in range(10)
                ]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            await guest.set(s, "k0", b"end")
            assert await guest.get(s, "k0") == b"end"
            for key in await guest.get_keys(s):
                value = await guest.get(s, key)
                assert value == b"end" or (value is not None and len(value) in (1000, 2000))

    run(config, tmp_path, main)


# Handles


def test_what_a_guest_may_open(tmp_path: Path) -> None:
    async def main(host: KeyValueHost) -> None:
        guest = host.session(["default", "gone"])
        with pytest.raises(AccessDeniedError, match=r'needs key_value_stores = \["s"\]'):
            await guest.open("s")
        with pytest.raises(NoSuchStoreError, match="'gone'"):
            await guest.open("gone")
        assert await guest.open("default") == 0

    run('state_dir = ""\n[key_value_store.s]\ntype = "spin"', tmp_path, main)


def test_handles(tmp_path: Path) -> None:
    async def main(host: KeyValueHost) -> None:
        guest = host.session(["default"])
        first, second = await guest.open("default"), await guest.open("default")
        assert first != second
        await guest.set(first, "k", b"v")
        assert await guest.get(second, "k") == b"v"
        guest.close(first)
        guest.close(first)
        guest.close(99)
        third = await guest.open("default")
        assert third not in (first, second)
        for call in (
            guest.get(first, "k"),
            guest.set(first, "k", b""),
            guest.delete(99, "k"),
            guest.exists(first, "k"),
            guest.get_keys(first),
        ):
            with pytest.raises(InvalidStoreError):
                await call

    run('state_dir = ""', tmp_path, main)


def test_handles_are_bounded(tmp_path: Path) -> None:
    async def main(host: KeyValueHost) -> None:
        guest = host.session(["default"])
        handles = [await guest.open("default") for _ in range(key_value.MAX_OPEN)]
        with pytest.raises(StoreTableFullError):
            await guest.open("default")
        guest.close(handles[7])
        await guest.open("default")

    run('state_dir = ""', tmp_path, main)


# In memory


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_BYTES", 3000)

    async def main(host: KeyValueHost) -> None:
        async with opened(host, "default") as (guest, s):
            await guest.set(s, "a", bytes(2000))
            with pytest.raises(StoreError, match="'default' is full"):
                await guest.set(s, "b", bytes(1000))
            await guest.set(s, "a", bytes(2500))
            await guest.delete(s, "a")
            await guest.delete(s, "a")
            await guest.set(s, "b", bytes(2500))

    run('state_dir = ""', tmp_path, main)


# In a file


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ("", ".spin/sqlite_key_value.db"),
        ('state_dir = "state/of"', "state/of/sqlite_key_value.db"),
        ('state_dir = "/state"', "state/sqlite_key_value.db"),
        ('[key_value_store.default]\ntype = "spin"\npath = "kv.db"', "etc/kv.db"),
        ('[key_value_store.default]\ntype = "spin"\npath = "/data/kv.db"', "data/kv.db"),
    ],
)
def test_file_is_made_when_it_is_needed(config: str, path: str, tmp_path: Path) -> None:
    async def main(host: KeyValueHost) -> None:
        async with opened(host, "default") as (guest, s):
            assert list(tmp_path.iterdir()) == []
            await guest.set(s, "k", b"v")
        assert (tmp_path / path).is_file()

    run(config, tmp_path, main)
    assert [file.name for file in (tmp_path / path).parent.iterdir()] == [Path(path).name]


def test_values_outlast_the_app(tmp_path: Path) -> None:
    async def write(host: KeyValueHost) -> None:
        async with opened(host, "default") as (guest, s):
            await guest.set(s, "k", b"v")

    async def read(host: KeyValueHost) -> None:
        async with opened(host, "default") as (guest, s):
            assert await guest.get(s, "k") == b"v"

    run("", tmp_path, write)
    run("", tmp_path, read)


# As Spin makes it: crates/key-value-spin/src/store.rs of 3.6.
SPIN_TABLE = """CREATE TABLE IF NOT EXISTS spin_key_value (
  store TEXT NOT NULL,
  key   TEXT NOT NULL,
  value BLOB NOT NULL,

  PRIMARY KEY (store, key)
)"""


def test_file_of_spin(tmp_path: Path) -> None:
    """Either reads what the other wrote, and stores in one file do not see each other."""
    path = tmp_path / "etc" / "kv.db"
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as spin, spin:
        spin.execute(SPIN_TABLE)
        spin.execute("INSERT INTO spin_key_value VALUES ('s', 'k', x'00ff'), ('t', 'k', x'01')")

    async def main(host: KeyValueHost) -> None:
        async with opened(host) as (guest, s), opened(host, "t") as (other, t):
            assert await guest.get(s, "k") == b"\0\xff"
            assert await other.get(t, "k") == b"\1"
            await guest.set(s, "k", b"new")
            await guest.set(s, "l", b"")
            assert await other.get_keys(t) == ["k"]

    tables = "".join(
        f'[key_value_store.{label}]\ntype = "spin"\npath = "kv.db"\n' for label in ("s", "t")
    )
    run(tables, tmp_path, main)
    with contextlib.closing(sqlite3.connect(path)) as spin:
        assert spin.execute("SELECT * FROM spin_key_value ORDER BY store, key").fetchall() == [
            ("s", "k", b"new"),
            ("s", "l", b""),
            ("t", "k", b"\1"),
        ]


WRITER = """
import asyncio, sys
from pathlib import Path
from containerd_shim_spin_v1.host.key_value_backends.sqlite_file import SqliteFileStore

async def main():
    store = SqliteFileStore("s", Path(sys.argv[1]))
    sys.stdin.read(1)
    for number in range(200):
        await store.set(f"{sys.argv[2]} {number}", b"x" * number)
        await store.set("all", sys.argv[2].encode())
    await store.close()

asyncio.run(main())
"""


def test_processes_share_a_file(tmp_path: Path) -> None:
    """They begin together, so that all want to make it."""
    path = tmp_path / "state" / "kv.db"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(number)], stdin=subprocess.PIPE
        )
        for number in range(4)
    ]
    try:
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write(b"!")
            writer.stdin.close()
        assert [writer.wait(60) for writer in writers] == [0] * 4
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    with contextlib.closing(sqlite3.connect(path)) as reader:
        assert reader.execute("SELECT count(*) FROM spin_key_value").fetchone() == (801,)
        assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_writer_that_holds_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.05)

    async def main(host: KeyValueHost) -> None:
        async with opened(host, "default") as (guest, s):
            await guest.set(s, "k", b"1")
            path = tmp_path / ".spin" / "sqlite_key_value.db"
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StoreError, match="database is locked"):
                    await guest.set(s, "k", b"2")
                assert await guest.get(s, "k") == b"1"
                other.execute("ROLLBACK")
            await guest.set(s, "k", b"2")

    run("", tmp_path, main)


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    """The message says what to do, and it works as soon as that is done."""
    (tmp_path / ".spin").write_text("a file where the directory is to be")

    async def main(host: KeyValueHost) -> None:
        async with opened(host, "default") as (guest, s):
            with pytest.raises(StoreError) as caught:
                await guest.get(s, "k")
            assert f"mount a volume at {tmp_path}/.spin, or say where" in str(caught.value)
            (tmp_path / ".spin").unlink()
            assert await guest.get(s, "k") is None

    run("", tmp_path, main)


def test_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / ".spin").mkdir()
    (tmp_path / ".spin" / "sqlite_key_value.db").write_bytes(b"something else" * 1000)

    async def main(host: KeyValueHost) -> None:
        async with opened(host, "default") as (guest, s):
            with pytest.raises(StoreError, match="file is not a database"):
                await guest.get(s, "k")

    run("", tmp_path, main)


def test_value_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "MAX_RESULT_BYTES", 100)

    async def main(host: KeyValueHost) -> None:
        async with opened(host, "default") as (guest, s):
            await guest.set(s, "k", bytes(101))
            assert await guest.exists(s, "k")
            with pytest.raises(StoreError, match="exceeds"):
                await guest.get(s, "k")

    run("", tmp_path, main)


# In Redis


def test_keys_in_redis_are_plain(server: Server, tmp_path: Path) -> None:
    """A store has all keys of its database, whoever wrote them."""
    command(server, "FLUSHALL")
    command(server, "-n", "3", "SET", "theirs", "1")
    command(server, "-n", "3", "RPUSH", "list", "1")

    async def main(host: KeyValueHost) -> None:
        async with opened(host) as (guest, s):
            assert await guest.get(s, "theirs") == b"1"
            assert sorted(await guest.get_keys(s)) == ["list", "theirs"]
            with pytest.raises(StoreError, match=r"store 's': redis://127.*WRONGTYPE"):
                await guest.get(s, "list")

    run(f'[key_value_store.s]\ntype = "redis"\nurl = "redis://{server.address}/3"', tmp_path, main)


def test_redis_that_is_away(tmp_path: Path) -> None:
    async def main(host: KeyValueHost) -> None:
        async with opened(host) as (guest, s):
            await guest.set(s, "k", b"v")
            own_server.stop()
            with pytest.raises(StoreError, match="cannot connect") as caught:
                await guest.get(s, "k")
            assert "s3cret" not in str(caught.value)
            own_server.start()
            assert await guest.get(s, "k") is None

    with running_redis("--requirepass", "s3cret") as own_server:
        url = f"redis://:s3cret@{own_server.address}"
        run(f'[key_value_store.s]\ntype = "redis"\nurl = "{url}"', tmp_path, main)


def test_address_of_redis_is_checked_at_the_start() -> None:
    config = '[key_value_store.s]\ntype = "redis"\nurl = "redis://u:s3cret@h/name"'
    with pytest.raises(ManifestError, match=r"\[key_value_store\.s\].*url: ") as caught:
        check_store_addresses(parse_runtime_config(config))
    assert "s3cret" not in str(caught.value)
