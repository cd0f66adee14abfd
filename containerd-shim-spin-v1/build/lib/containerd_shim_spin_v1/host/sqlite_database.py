"""One SQLite database, and a guest's connection to it.

Statements that only read run at once, beside each other. Others take their turns, guest by guest,
and a guest keeps its turn while its transaction is open: SQLite itself would let whoever comes
next try again for a while, and fail. A file has a write-ahead log, so that readers and the writer
do not wait for each other; where the file system cannot have one they do.

Which statements write, SQLite says when it prepares them: a connection is not authorized for that
until its guest has its turn.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import quote

from containerd_shim_spin_v1.runtime_config.model import FileDatabase

Value: TypeAlias = int | float | str | bytes | None

_TURN_SECONDS: Final = 30.0
_LOCK_SECONDS: Final = 5.0  # of other processes
_INTERRUPT_STEPS: Final = 50_000  # of SQLite's machine: some milliseconds
# What a row and a value take here while they are handed over, beside text and bytes; measured.
_ROW_BYTES: Final = 350
_VALUE_BYTES: Final = 150
_MOST_REMEMBERED: Final = 1000
_DBCONFIG_DEFENSIVE: Final = 1010  # sqlite3.h; Python knows it since 3.12

_READING: Final = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
# They are about files, the process or a thread that would not end, not about one database.
_DENIED_PRAGMAS: Final = frozenset(
    {
        *("temp_store_directory", "data_store_directory", "hard_heap_limit", "soft_heap_limit"),
        *("busy_timeout", "writable_schema"),
    }
)


class SqliteError(Exception):
    """The cases of the interface's ``error``."""


class DatabaseFullError(SqliteError):
    """The guest has too many handles, or the disk is full."""


class SqliteIoError(SqliteError):
    """What has no case of its own; the message is for the guest."""


class QueryResult(NamedTuple):
    """What a statement returned."""

    columns: list[str]
    rows: list[Sequence[Value]]


class Database:
    """A database of the app."""

    def __init__(
        self, label: str, config: FileDatabase, threads: Executor, max_result_bytes: int
    ) -> None:
        """config: its path is not relative to anything."""
        self.label = label
        self.config = config
        self.threads = threads
        self.max_result_bytes = max_result_bytes
        self._turn = asyncio.Lock()
        self._writing: dict[int, None] = {}
        """Hashes of statements: guests choose how long these are."""
        self._opening = threading.Lock()
        self._kept: sqlite3.Connection | None = None

    async def take_turn(self) -> None:
        """Return when nobody else writes. Raises SqliteIoError if that does not come."""
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            raise SqliteIoError(
                f"database {self.label!r}: database is locked by another request"
            ) from None

    def end_turn(self) -> None:
        self._turn.release()

    def writes(self, statement: str) -> bool:
        """Return whether a statement is known to write."""
        return hash(statement) in self._writing

    def remember(self, statement: str) -> None:
        """Note that a statement writes."""
        while len(self._writing) >= _MOST_REMEMBERED:
            del self._writing[next(iter(self._writing))]
        self._writing[hash(statement)] = None

    # In a thread

    def connect(self) -> sqlite3.Connection:
        """Return a new connection. Raises SqliteIoError."""
        path = self.config.path
        try:
            with self._opening:
                if self._kept is None:
                    self._kept = self._open_first()
            return self._open()
        except (OSError, sqlite3.Error) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else exc
            raise SqliteIoError(
                f"database {self.label!r}: cannot open {path or 'memory'}: {reason}; mount a "
                "volume there, or say where in state_dir or the path of the runtime configuration"
            ) from None

    def close(self) -> None:
        """Close the connection that is kept: without it what is in memory is gone."""
        if self._kept is not None:
            self._kept.close()

    def _open_first(self) -> sqlite3.Connection:
        """Make the database if need be; the log of a file is not made anew for each guest then."""
        if self.config.path is not None:
            Path(self.config.path).parent.mkdir(parents=True, exist_ok=True)
        connection = self._open()
        try:
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA journal_mode = WAL").close()
                # It has the log from its first reading on, and removes it as the last one.
                connection.execute("PRAGMA schema_version").fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self) -> sqlite3.Connection:
        path = self.config.path
        memory = f"file:/{os.getpid()}-{id(self)}-{quote(self.label)}?vfs=memdb"
        return sqlite3.connect(
            memory if path is None else path,
            timeout=_LOCK_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=0,  # one that is there already would not be authorized once more
            uri=path is None,
        )


class Connection:
    """A guest's connection to a database, opened by its first statement."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: sqlite3.Connection | None = None
        self._stopped = False
        self._running: Future[QueryResult | None] | None = None
        self._has_turn = False
        self._may_write = False
        self._wants_to_write = False

    async def run(self, statement: str, params: Sequence[Value]) -> QueryResult:
        """Run a statement. Raises DatabaseFullError, SqliteIoError."""
        database = self._database
        if not self._has_turn:
            if not database.writes(statement):
                result = await self._submit(statement, params, may_write=False)
                if result is not None:
                    return result
                database.remember(statement)
            await database.take_turn()
            self._has_turn = True
        try:
            result = await self._submit(statement, params, may_write=True)
        except SqliteError:
            self._end_turn()
            raise
        # If cut off it may still be running: then ``close`` ends the turn.
        self._end_turn()
        assert result is not None
        return result

    def interrupt(self) -> None:
        """Have what runs end soon, with an error; nothing can be run afterwards."""
        self._stopped = True
        if self._connection is not None:
            with suppress(sqlite3.ProgrammingError):  # it is closed already
                self._connection.interrupt()

    async def close(self) -> None:
        """Close it, after what runs has ended."""
        if self._running is not None:
            with suppress(asyncio.CancelledError, Exception):
                await asyncio.wrap_future(self._running)
        if self._connection is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._database.threads, self._connection.close)
        if self._has_turn:
            self._has_turn = False
            self._database.end_turn()

    def _end_turn(self) -> None:
        if self._connection is None or not self._connection.in_transaction:
            self._has_turn = False
            self._database.end_turn()

    async def _submit(
        self, statement: str, params: Sequence[Value], *, may_write: bool
    ) -> QueryResult | None:
        """Run a statement in a thread; None if it would write and may not."""
        if self._stopped:
            raise self._error("interrupted")
        self._may_write = may_write
        self._running = self._database.threads.submit(self._execute, statement, params)
        try:
            return await asyncio.wrap_future(self._running)
        except asyncio.CancelledError:
            self.interrupt()
            raise

    def _error(self, reason: object) -> SqliteIoError:
        return SqliteIoError(f"database {self._database.label!r}: {reason}")

    # In a thread

    def _execute(self, statement: str, params: Sequence[Value]) -> QueryResult | None:
        self._wants_to_write = False
        try:
            if self._connection is None:
                self._connection = self._connect()
            cursor = _start(self._connection, statement, params)
            try:
                columns = [column[0] for column in cursor.description or ()]
                return QueryResult(columns, self._rows(cursor))
            finally:
                cursor.close()
        except sqlite3.Error as exc:
            if self._wants_to_write:
                return None
            if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise DatabaseFullError(f"database {self._database.label!r}: {exc}") from None
            raise self._error(exc) from None
        except (ValueError, OverflowError, MemoryError, sqlite3.Warning) as exc:
            # Statements with a NUL; more than one of them.
            raise self._error(str(exc) or type(exc).__name__) from None

    def _rows(self, cursor: sqlite3.Cursor) -> list[Sequence[Value]]:
        rows: list[Sequence[Value]] = []
        limit, size = self._database.max_result_bytes, 0
        for row in cursor:
            size += _ROW_BYTES + _VALUE_BYTES * len(row)
            for value in row:
                if isinstance(value, str | bytes):
                    size += len(value)
            if size > limit:
                raise self._error(f"the result is larger than {limit} bytes")
            rows.append(row)
        return rows

    def _connect(self) -> sqlite3.Connection:
        connection = self._database.connect()
        connection.execute("PRAGMA temp_store = MEMORY").close()
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, self._database.max_result_bytes)
        configure: Callable[[int, bool], None] | None = getattr(connection, "setconfig", None)
        if configure is not None:
            configure(_DBCONFIG_DEFENSIVE, True)
        connection.set_progress_handler(lambda: self._stopped, _INTERRUPT_STEPS)
        connection.set_authorizer(self._authorize)
        return connection

    def _authorize(
        self,
        action: int,
        first: str | None,
        second: str | None,
        _where: str | None,
        _by: str | None,
    ) -> int:
        denied = (
            # VACUUM attaches, too: an empty name is a temporary file.
            (
                action == sqlite3.SQLITE_ATTACH
                and first not in ("", ":memory:")
                and not self._database.config.allow_attach_file
            )
            or (action == sqlite3.SQLITE_PRAGMA and (first or "").lower() in _DENIED_PRAGMAS)
            or (action == sqlite3.SQLITE_FUNCTION and second == "load_extension")
        )
        if denied:
            return sqlite3.SQLITE_DENY
        if action in _READING or self._may_write:
            return sqlite3.SQLITE_OK
        self._wants_to_write = True
        return sqlite3.SQLITE_DENY


class _InOrder(dict[str, Value]):
    """Parameters for a statement that names them: whichever is asked for, it is the next one."""

    def __init__(self, params: Sequence[Value]) -> None:
        super().__init__()
        self._params = iter(params)

    def __missing__(self, name: str) -> Value:
        try:
            return next(self._params)
        except StopIteration:
            raise sqlite3.ProgrammingError(f"no value for parameter {name!r}") from None


def _start(connection: sqlite3.Connection, statement: str, params: Any) -> sqlite3.Cursor:
    """Run a statement up to its first row."""
    try:
        return connection.execute(statement, params)
    except sqlite3.ProgrammingError as exc:
        # Since Python 3.14, for `:name` and a sequence of values.
        if "named parameter" not in str(exc):
            raise
        return connection.execute(statement, _InOrder(params))
