"""SQLite for guests, with real files."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import tracemalloc
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from containerd_shim_spin_v1.host import sqlite_database as database_module
from containerd_shim_spin_v1.host.sqlite import (
    MAX_GUESTS,
    MAX_HANDLES,
    AccessDeniedError,
    InvalidConnectionError,
    NoSuchDatabaseError,
    SqliteHost,
    SqliteSession,
)
from containerd_shim_spin_v1.host.sqlite_database import (
    DatabaseFullError,
    QueryResult,
    SqliteIoError,
    Value,
)
from containerd_shim_spin_v1.runtime_config.model import (
    DatabaseConfig,
    FileDatabase,
    LibsqlDatabase,
    RuntimeConfig,
)

FOREVER = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c"


class Guest:
    """A guest's session with a handle of one database."""

    def __init__(self, session: SqliteSession, handle: int) -> None:
        self.session = session
        self.handle = handle

    async def run(self, statement: str, *params: Value) -> QueryResult:
        return await self.session.execute(self.handle, statement, params)

    async def only(self, statement: str, *params: Value) -> Value:
        (row,) = (await self.run(statement, *params)).rows
        return row[0]


async def guest(host: SqliteHost, label: str = "default") -> Guest:
    session = host.session({"default", "memory", "nothing"})
    return Guest(session, await session.open(label))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def run(
    directory: Path,
    main: Callable[[SqliteHost], Coroutine[Any, Any, None]],
    *,
    attach: bool = False,
    **options: Any,
) -> None:
    """Call ``main`` with a host, on the loop that containers have; nothing is left of it."""
    databases = {
        "default": FileDatabase(str(directory / "state" / "default.db"), attach),
        "memory": FileDatabase(None, attach),
    }

    async def limited() -> None:
        files = open_files()
        host = SqliteHost(databases, **options)
        try:
            async with asyncio.timeout(60):
                await main(host)
        finally:
            await host.close()
        assert not [thread for thread in threading.enumerate() if "sqlite" in thread.name]
        assert open_files() <= files

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())
    if (directory / "state").exists():
        assert [file.name for file in (directory / "state").iterdir()] == ["default.db"]


@pytest.mark.parametrize("label", ["default", "memory"])
def test_what_one_guest_writes_another_reads(tmp_path: Path, label: str) -> None:
    async def main(host: SqliteHost) -> None:
        first = await guest(host, label)
        assert await first.run("CREATE TABLE t (a INTEGER PRIMARY KEY, b)") == ([], [])
        await first.run("INSERT INTO t (b) VALUES (?), (?)", "x", b"\0\xff")
        assert await first.only("SELECT last_insert_rowid()") == 2
        await first.session.close()
        second = await guest(host, label)
        found = await second.run("SELECT a, b AS c FROM t ORDER BY a")
        assert found == (["a", "c"], [(1, "x"), (2, b"\0\xff")])
        await second.session.close()

    run(tmp_path, main)


def test_databases_in_memory_are_the_apps_own(tmp_path: Path) -> None:
    async def main(host: SqliteHost) -> None:
        other = SqliteHost({"memory": FileDatabase(None, False)})
        first, second = await guest(host, "memory"), await guest(other, "memory")
        await first.run("CREATE TABLE t (a)")
        with pytest.raises(SqliteIoError, match="no such table"):
            await second.run("SELECT * FROM t")
        await first.session.close()
        await second.session.close()
        await other.close()

    run(tmp_path, main)


@pytest.mark.parametrize(
    "value",
    [
        None,
        0,
        -(1 << 63),
        (1 << 63) - 1,
        0.1,
        float("inf"),
        "",
        "it's é 😀",
        "a\0b",
        b"",
        b"\0\xff",
    ],
)
def test_values_both_ways(tmp_path: Path, value: Value) -> None:
    async def main(host: SqliteHost) -> None:
        one = await guest(host)
        found = await one.only("SELECT ?", value)
        assert (type(found), found) == (type(value), value)
        await one.session.close()

    run(tmp_path, main)


def test_ten_megabytes_both_ways(tmp_path: Path) -> None:
    async def main(host: SqliteHost) -> None:
        one = await guest(host)
        data, text = bytes(range(250)) * 40_000, "é" * 5_000_000
        await one.run("CREATE TABLE t (a, b)")
        await one.run("INSERT INTO t VALUES (?, ?)", data, text)
        assert (await one.run("SELECT * FROM t")).rows == [(data, text)]
        await one.session.close()

    run(tmp_path, main)


@pytest.mark.parametrize("statement", ["SELECT ?, ?", "SELECT ?1, ?2", "SELECT :a, @b"])
def test_parameters_count_by_their_places(tmp_path: Path, statement: str) -> None:
    async def main(host: SqliteHost) -> None:
        one = await guest(host)
        assert (await one.run(statement, 1, 2)).rows == [(1, 2)]
        await one.session.close()

    run(tmp_path, main)


@pytest.mark.parametrize(
    ("statement", "params", "message"),
    [
        ("selec", (), "syntax error"),
        ("SELECT * FROM missing", (), "no such table: missing"),
        ("SELECT 1; SELECT 2", (), "one statement at a time"),
        ("SELECT ?", (), "uses 1, and there are 0"),
        ("SELECT 1", (1,), "uses 0, and there are 1"),
        ("SELECT 1\0", (), "null character"),
        ("SELECT CAST(x'ff' AS TEXT)", (), "UTF-8"),
        ("SELECT zeroblob(1000000000)", (), "too big"),
        ("SELECT abs(-9223372036854775808)", (), "integer overflow"),
    ],
)
def test_statements_that_fail(
    tmp_path: Path, statement: str, params: tuple[Value, ...], message: str
) -> None:
    async def main(host: SqliteHost) -> None:
        one = await guest(host)
        with pytest.raises(SqliteIoError, match=message):
            await one.run(statement, *params)
        assert await one.only("SELECT 1") == 1
        await one.session.close()

    run(tmp_path, main)


@pytest.mark.parametrize("label", ["default", "memory"])
@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH '{path}' AS other",
        "ATTACH 'file:{path}' AS other",
        "ATTACH 'file:/default?vfs=memdb' AS other",
        "ATTACH ? AS other",
        "ATTACH '{path}' || '' AS other",
        "VACUUM INTO '{path}'",
        "VACUUM main INTO '{path}'",
        "SELECT load_extension('{path}')",
        "PRAGMA temp_store_directory = '{path}'",
        "PRAGMA hard_heap_limit = 1000",
        "PRAGMA main.soft_heap_limit = 1000",
        "PRAGMA busy_timeout = 1000000",
        "PRAGMA writable_schema = ON",
    ],
)
def test_what_reaches_further_is_denied(tmp_path: Path, label: str, statement: str) -> None:
    path = tmp_path / "other.db"

    async def main(host: SqliteHost) -> None:
        one = await guest(host, label)
        params = (str(path),) if "?" in statement.split("'")[0] else ()
        with pytest.raises(SqliteIoError, match=r"not authorized|authorization denied"):
            await one.run(statement.format(path=path), *params)
        await one.session.close()

    run(tmp_path, main)
    assert not path.exists()


def test_what_stays_inside_is_not_denied(tmp_path: Path) -> None:
    async def main(host: SqliteHost) -> None:
        one = await guest(host)
        await one.run("CREATE TABLE t (a)")
        for statement in (
            "VACUUM",
            "ATTACH ':memory:' AS a",
            "ATTACH '' AS b",
            "PRAGMA user_version",
        ):
            await one.run(statement)
        await one.session.close()

    run(tmp_path, main)


def test_files_may_be_attached_where_that_is_configured(tmp_path: Path) -> None:
    async def main(host: SqliteHost) -> None:
        one = await guest(host)
        await one.run("ATTACH ? AS other", str(tmp_path / "other.db"))
        await one.run("CREATE TABLE other.t (a)")
        await one.session.close()

    run(tmp_path, main, attach=True)
    assert (tmp_path / "other.db").exists()


def test_results_have_a_limit(tmp_path: Path) -> None:
    async def main(host: SqliteHost) -> None:
        one = await guest(host)
        with pytest.raises(SqliteIoError, match="larger than 1000000 bytes"):
            await one.run(f"SELECT zeroblob(900) FROM ({FOREVER.replace('max(x)', 'x')})")
        assert len((await one.run("SELECT zeroblob(900000)")).rows) == 1
        await one.session.close()

    run(tmp_path, main, max_result_bytes=1_000_000)


def test_many_small_values_are_counted_by_what_they_take(tmp_path: Path) -> None:
    numbers = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?) "

    async def main(host: SqliteHost) -> None:
        one = await guest(host)
        assert len((await one.run(numbers + "SELECT n FROM c", 1000)).rows) == 1000
        with pytest.raises(SqliteIoError, match="larger than 1000000 bytes"):
            await one.run(numbers + "SELECT n FROM c", 3000)
        await one.session.close()

    run(tmp_path, main, max_result_bytes=1_000_000)


def test_a_full_database(tmp_path: Path) -> None:
    async def main(host: SqliteHost) -> None:
        one = await guest(host)
        await one.run("PRAGMA max_page_count = 10")
        await one.run("CREATE TABLE t (a)")
        with pytest.raises(DatabaseFullError, match="full"):
            await one.run("INSERT INTO t VALUES (zeroblob(100000))")
        await one.session.close()

    run(tmp_path, main)


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    async def main(_: SqliteHost) -> None:
        host = SqliteHost({"default": FileDatabase("/proc/nothing/default.db", False)})
        one = await guest(host)
        with pytest.raises(
            SqliteIoError, match=r"cannot open /proc/nothing/default\.db: .*mount a volume"
        ):
            await one.run("SELECT 1")
        await one.session.close()
        await host.close()

    run(tmp_path, main)


# Handles


def test_handles(tmp_path: Path) -> None:
    async def main(host: SqliteHost) -> None:
        session = host.session({"default", "nothing"})
        with pytest.raises(AccessDeniedError, match="'memory'"):
            await session.open("memory")
        with pytest.raises(NoSuchDatabaseError, match="'nothing'"):
            await session.open("nothing")
        handles = [await session.open("default") for _ in range(MAX_HANDLES)]
        with pytest.raises(DatabaseFullError):
            await session.open("default")
        session.drop(handles[7])
        session.drop(1 << 31)
        with pytest.raises(InvalidConnectionError):
            await session.execute(handles[7], "SELECT 1", ())
        assert await session.open("default") == handles[7]
        await session.execute(handles[7], "SELECT 1", ())
        await session.close()
        with pytest.raises(InvalidConnectionError):
            await session.execute(handles[0], "SELECT 1", ())

    run(tmp_path, main)


# Transactions and guests that end


@pytest.mark.parametrize("label", ["default", "memory"])
def test_nothing_of_a_guest_is_left_for_the_next(tmp_path: Path, label: str) -> None:
    async def main(host: SqliteHost) -> None:
        first = await guest(host, label)
        await first.run("CREATE TABLE t (a)")
        await first.run("CREATE TEMP TABLE left_over (a)")
        await first.run("BEGIN IMMEDIATE")
        await first.run("INSERT INTO t VALUES (1)")
        await first.session.close()
        second = await guest(host, label)
        await second.run("INSERT INTO t VALUES (2)")
        assert (await second.run("SELECT a FROM t")).rows == [(2,)]
        with pytest.raises(SqliteIoError, match="no such table"):
            await second.run("SELECT * FROM left_over")
        await second.session.close()

    run(tmp_path, main)


@pytest.mark.parametrize("label", ["default", "memory"])
def test_a_statement_whose_guest_is_cut_off_is_interrupted(tmp_path: Path, label: str) -> None:
    async def main(host: SqliteHost) -> None:
        one = await guest(host, label)
        await one.run("CREATE TABLE t (a)")
        await one.run("BEGIN IMMEDIATE")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await one.run(FOREVER)
        await one.session.close()
        other = await guest(host, label)
        await other.run("INSERT INTO t VALUES (1)")  # the other's lock is gone
        await other.session.close()

    run(tmp_path, main)


def test_one_cut_off_before_it_runs(tmp_path: Path) -> None:
    async def main(host: SqliteHost) -> None:
        one = await guest(host)
        task = asyncio.create_task(one.run(FOREVER))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await one.session.close()

    run(tmp_path, main)


def test_close_interrupts_what_runs(tmp_path: Path) -> None:
    async def main(host: SqliteHost) -> None:
        one = await guest(host)
        await one.run("SELECT 1")
        task = asyncio.create_task(one.run(FOREVER))
        await asyncio.sleep(0)
        await one.session.close()
        with pytest.raises(SqliteIoError, match="interrupted"):
            await task

    run(tmp_path, main)


def test_others_are_served_while_a_statement_runs(tmp_path: Path) -> None:
    async def main(host: SqliteHost) -> None:
        slow, quick = await guest(host), await guest(host)
        await quick.run("SELECT 1")
        task = asyncio.create_task(slow.run(FOREVER))
        async with asyncio.timeout(5):
            for _ in range(100):
                await quick.run("SELECT 1")
        assert not task.done()
        await slow.session.close()
        with pytest.raises(SqliteIoError):
            await task
        await quick.session.close()

    run(tmp_path, main)


def test_who_holds_a_lock_goes_on_while_many_wait(tmp_path: Path) -> None:
    async def main(host: SqliteHost) -> None:
        holder = await guest(host)
        await holder.run("CREATE TABLE t (a)")
        await holder.run("BEGIN IMMEDIATE")

        async def wait(number: int) -> None:
            one = await guest(host)
            try:
                await one.run("INSERT INTO t VALUES (?)", number)
            finally:
                await one.session.close()

        tasks = [asyncio.create_task(wait(number)) for number in range(100)]
        while len(host._open) < MAX_GUESTS:
            await holder.run("SELECT 1")
        async with asyncio.timeout(5):
            await holder.run("COMMIT")
        await holder.session.close()
        await asyncio.gather(*tasks)
        last = await guest(host)
        assert await last.only("SELECT count(*) FROM t") == 100
        await last.session.close()

    run(tmp_path, main)


@pytest.mark.parametrize("label", ["default", "memory"])
def test_many_write_at_once(tmp_path: Path, label: str) -> None:
    """Nobody is told that the database is locked, as SQLite itself would."""

    async def main(host: SqliteHost) -> None:
        first = await guest(host, label)
        await first.run("CREATE TABLE t (a)")
        await first.session.close()

        async def one(number: int) -> None:
            found = await guest(host, label)
            try:
                await found.run("BEGIN")
                count = await found.only("SELECT count(*) FROM t")
                await found.run("INSERT INTO t VALUES (?)", count)
                await found.run("COMMIT")
            finally:
                await found.session.close()

        await asyncio.gather(*map(one, range(300)))
        last = await guest(host, label)
        assert (await last.run("SELECT count(*), max(a) FROM t")).rows == [(300, 299)]
        await last.session.close()

    run(tmp_path, main)


def test_writers_do_not_wait_for_readers(tmp_path: Path) -> None:
    async def main(host: SqliteHost) -> None:
        reader, writer = await guest(host), await guest(host)
        await writer.run("CREATE TABLE t (a)")
        task = asyncio.create_task(
            reader.run(FOREVER.replace("max(x)", "max(x), (SELECT a FROM t)"))
        )
        for _ in range(20):
            await writer.run("INSERT INTO t VALUES (1)")
        assert not task.done()
        await reader.session.close()
        with pytest.raises(SqliteIoError, match="interrupted"):
            await task
        await writer.session.close()

    run(tmp_path, main)


def test_a_transaction_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_TURN_SECONDS", 0.05)

    async def main(host: SqliteHost) -> None:
        one, other = await guest(host), await guest(host)
        await one.run("CREATE TABLE t (a)")
        await one.run("BEGIN")
        await one.run("INSERT INTO t VALUES (1)")
        assert (await other.run("SELECT a FROM t")).rows == []
        with pytest.raises(SqliteIoError, match="locked by another request"):
            await other.run("INSERT INTO t VALUES (2)")
        with pytest.raises(SqliteIoError):
            await one.run("INSERT INTO missing VALUES (2)")
        assert (await one.run("SELECT a FROM t")).rows == [(1,)]
        await one.run("COMMIT")
        await other.run("INSERT INTO t VALUES (2)")
        await one.session.close()
        await other.session.close()

    run(tmp_path, main)


def test_a_statement_that_was_forgotten_takes_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its guest's connection has it prepared already."""
    monkeypatch.setattr(database_module, "_MOST_REMEMBERED", 1)
    monkeypatch.setattr(database_module, "_LOCK_SECONDS", 0)
    insert = "INSERT INTO t VALUES (1)"

    async def main(host: SqliteHost) -> None:
        one, other = await guest(host), await guest(host)
        await one.run("CREATE TABLE t (a)")
        await one.run(insert)
        await other.run("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(one.run(insert))
        for _ in range(20):
            await other.run("SELECT a FROM t")
        assert not waiting.done()
        await other.run("COMMIT")
        await waiting
        await one.session.close()
        await other.session.close()

    run(tmp_path, main)


def test_what_is_remembered_of_long_statements_is_short(tmp_path: Path) -> None:
    async def main(host: SqliteHost) -> None:
        one = await guest(host)
        await one.run("CREATE TABLE t (a)")
        tracemalloc.start()
        try:
            for number in range(20):
                await one.run(f"INSERT INTO t VALUES ({number}) -- {'x' * 1_000_000}")
            assert tracemalloc.get_traced_memory()[0] < 10_000_000
        finally:
            tracemalloc.stop()
        await one.session.close()

    run(tmp_path, main)


def test_many_guests_leave_nothing(tmp_path: Path) -> None:
    async def main(host: SqliteHost) -> None:
        async def one(number: int) -> None:
            found = await guest(host, "default" if number % 2 else "memory")
            try:
                async with asyncio.timeout(0.01 if number % 10 == 0 else 30):
                    await found.run(FOREVER if number % 10 == 0 else "SELECT 1")
            except TimeoutError:
                assert number % 10 == 0
            finally:
                await found.session.close()

        await asyncio.gather(*map(one, range(500)))

    run(tmp_path, main)


# Configuration


@pytest.mark.parametrize(
    ("state_dir", "path", "default", "other"),
    [
        (None, "x.db", "/root/.spin/sqlite_db.db", "/root/config/x.db"),
        ("state", "/y/x.db", "/root/state/sqlite_db.db", "/root/y/x.db"),
        ("/state", None, "/root/state/sqlite_db.db", None),
        ("", None, None, None),
    ],
)
def test_where_databases_are(
    state_dir: str | None, path: str | None, default: str | None, other: str | None
) -> None:
    async def main() -> None:
        databases: dict[str, DatabaseConfig] = {
            "other": FileDatabase(path, True),
            "far": LibsqlDatabase("https://x", "secret"),
        }
        config = RuntimeConfig(state_dir=state_dir, sqlite_databases=databases)
        host = SqliteHost.of(config, root=Path("/root"), directory=Path("/config"))
        found = {label: database.config for label, database in host.databases.items()}
        assert found == {
            "default": FileDatabase(default, False),
            "other": FileDatabase(other, True),
        }
        await host.close()

    asyncio.run(main())


def test_the_library_can_what_is_needed() -> None:
    assert sqlite3.sqlite_version_info >= (3, 36)  # databases in memory that connections share
    assert sqlite3.threadsafety == 3
