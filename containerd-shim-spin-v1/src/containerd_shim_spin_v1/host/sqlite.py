"""SQLite for guests: ``sqlite``.

A guest has one connection to each database it uses, opened for it and closed when it ends: nothing
of it is left for the next, and a transaction that it left open is rolled back. Databases in memory
last as long as the app.

Statements run in threads. One whose guest is cut off is interrupted.

What would reach beyond the database is denied: other files, extensions, and settings of the whole
process.

Sources: Spin 1.5 crates/sqlite-inproc, Spin 4.0 crates/{sqlite,sqlite-inproc}.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.thread import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import quote

from containerd_shim_spin_v1.host.database import MAX_RESULT_BYTES
from containerd_shim_spin_v1.host.key_value import DEFAULT_STATE_DIR
from containerd_shim_spin_v1.runtime_config.labels import DEFAULT
from containerd_shim_spin_v1.runtime_config.model import (
    DatabaseConfig,
    FileDatabase,
    RuntimeConfig,
)

Value: TypeAlias = int | float | str | bytes | None

MAX_HANDLES: Final = 256  # Spin 1.5 crates/sqlite/src/lib.rs
MAX_GUESTS: Final = 64
"""Guests that use SQLite at once."""

_DEFAULT_NAME: Final = "sqlite_db.db"
_WAIT_SECONDS: Final = 30.0
_LOCK_SECONDS: Final = 5.0
_INTERRUPT_STEPS: Final = 50_000  # of SQLite's machine: some milliseconds
_VALUE_BYTES: Final = 16  # what a value takes in a guest, beside its text or bytes

# What else than one database they are about: files, the process, a thread that would not end.
_DENIED_PRAGMAS: Final = frozenset(
    {
        *("temp_store_directory", "data_store_directory", "hard_heap_limit", "soft_heap_limit"),
        *("busy_timeout", "writable_schema"),
    }
)


class SqliteError(Exception):
    """The cases of the interface's ``error``."""


class NoSuchDatabaseError(SqliteError):
    """The runtime configuration has no database of this name."""


class AccessDeniedError(SqliteError):
    """The component's manifest does not list the database."""


class InvalidConnectionError(SqliteError):
    """The guest has no such handle."""


class DatabaseFullError(SqliteError):
    """The guest has too many handles, or the disk is full."""


class SqliteIoError(SqliteError):
    """Anything else; the message is for the guest."""


class QueryResult(NamedTuple):
    """What a statement returned."""

    columns: list[str]
    rows: list[Sequence[Value]]


class SqliteHost:
    """The app's databases."""

    def __init__(
        self,
        databases: Mapping[str, FileDatabase],
        *,
        max_result_bytes: int = MAX_RESULT_BYTES,
    ) -> None:
        """databases: by their labels, with paths that are not relative to anything."""
        self.databases = databases
        self.max_result_bytes = max_result_bytes
        # A guest runs one statement at a time; with fewer threads those that wait for a lock could
        # keep who holds it from going on.
        self.threads = ThreadPoolExecutor(MAX_GUESTS, thread_name_prefix="sqlite")
        self._places = asyncio.Semaphore(MAX_GUESTS)
        self._closing: set[asyncio.Task[None]] = set()
        self._open: set[_Connection] = set()
        # Without a connection they would be gone.
        self._kept = [
            sqlite3.connect(self.location(label), uri=True, check_same_thread=False)
            for label, database in databases.items()
            if database.path is None
        ]

    @classmethod
    def of(cls, config: RuntimeConfig, *, root: Path, directory: Path) -> SqliteHost:
        """Return the databases of the runtime configuration, and the default one.

        root: of the container's files.  directory: in the container, that of the configuration
        file, which paths in it are relative to.  Types that are not supported are left out.
        """
        path = None
        if config.state_dir != "":
            path = str(Path("/", config.state_dir or DEFAULT_STATE_DIR, _DEFAULT_NAME))
        found: dict[str, DatabaseConfig] = {DEFAULT: FileDatabase(path, allow_attach_file=False)}
        found.update(config.sqlite_databases)
        return cls(
            {
                label: replace(database, path=_inside(root, directory, database.path))
                for label, database in found.items()
                if isinstance(database, FileDatabase)
            }
        )

    def session(self, labels: Collection[str]) -> SqliteSession:
        """Return what one guest asks; it has to be closed. labels: what its component lists."""
        return SqliteSession(self, labels)

    async def close(self) -> None:
        """End every connection; statements that run are interrupted."""
        for connection in self._open:
            connection.interrupt()
        while self._closing:
            await asyncio.wait(self._closing)
        for kept in self._kept:
            kept.close()
        self._kept.clear()
        self.threads.shutdown()

    def location(self, label: str) -> str:
        """Return a database's path; in memory, a URI that is this host's own."""
        path = self.databases[label].path
        return f"file:/{os.getpid()}-{id(self)}-{quote(label)}?vfs=memdb" if path is None else path

    # For sessions

    async def take_place(self) -> None:
        """Raises SqliteIoError if none becomes free in time."""
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await self._places.acquire()
        except TimeoutError:
            raise SqliteIoError(
                f"{MAX_GUESTS} guests use SQLite, and none ended within {_WAIT_SECONDS:g} s"
            ) from None

    def connection(self, label: str) -> _Connection:
        connection = _Connection(self, label)
        self._open.add(connection)
        return connection

    def end(self, connections: Collection[_Connection]) -> None:
        """Close a guest's connections, and then let another one in its place."""
        for connection in connections:
            connection.interrupt()
        task = asyncio.get_running_loop().create_task(self._end(connections))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _end(self, connections: Collection[_Connection]) -> None:
        for connection in connections:
            await connection.close()
            self._open.discard(connection)
        self._places.release()


class SqliteSession:
    """One guest's use of SQLite; it makes one call at a time."""

    def __init__(self, host: SqliteHost, labels: Collection[str]) -> None:
        self._host = host
        self._labels = labels
        self._handles: dict[int, str] = {}
        self._connections: dict[str, _Connection] = {}

    async def open(self, name: str) -> int:
        """Return a handle of a database.

        Raises AccessDeniedError, NoSuchDatabaseError, DatabaseFullError.
        """
        if name not in self._labels:
            raise AccessDeniedError(
                f"the component may not use database {name[:64]!r}: it needs "
                f'sqlite_databases = ["{name[:64]}"] in the manifest'
            )
        if name not in self._host.databases:
            raise NoSuchDatabaseError(f"there is no database {name!r}")
        if len(self._handles) >= MAX_HANDLES:
            raise DatabaseFullError(f"{MAX_HANDLES} handles are open")
        handle = next(number for number in range(MAX_HANDLES) if number not in self._handles)
        self._handles[handle] = name
        return handle

    async def execute(self, handle: int, statement: str, params: Sequence[Value]) -> QueryResult:
        """Run one statement.

        Raises InvalidConnectionError, DatabaseFullError, SqliteIoError.
        """
        label = self._handles.get(handle)
        if label is None:
            raise InvalidConnectionError(f"there is no handle {handle}")
        connection = self._connections.get(label)
        if connection is None:
            if not self._connections:
                await self._host.take_place()
            connection = self._connections[label] = self._host.connection(label)
        return await connection.run(statement, params)

    def drop(self, handle: int) -> None:
        """Forget a handle; any number is fine."""
        self._handles.pop(handle, None)

    @property
    def has_open(self) -> bool:
        """Whether there is anything to close."""
        return bool(self._connections)

    async def close(self) -> None:
        """End the session: what is not committed is rolled back, what runs is interrupted."""
        connections, self._connections = self._connections, {}
        self._handles.clear()
        if connections:
            self._host.end(connections.values())


def _inside(root: Path, directory: Path, path: str | None) -> str | None:
    return None if path is None else str(root / (directory / path).relative_to("/"))


class _Connection:
    """A guest's connection to one database, opened by its first statement."""

    def __init__(self, host: SqliteHost, label: str) -> None:
        self._host = host
        self._label = label
        self._database = host.databases[label]
        self._connection: sqlite3.Connection | None = None
        self._stopped = False
        self._running: Future[QueryResult] | None = None

    async def run(self, statement: str, params: Sequence[Value]) -> QueryResult:
        """Run a statement in a thread. Raises DatabaseFullError, SqliteIoError."""
        if self._stopped:
            raise SqliteIoError(f"database {self._label!r}: interrupted")
        self._running = self._host.threads.submit(self._execute, statement, params)
        try:
            return await asyncio.wrap_future(self._running)
        except asyncio.CancelledError:
            self.interrupt()
            raise

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
            await loop.run_in_executor(self._host.threads, self._connection.close)

    # In a thread

    def _execute(self, statement: str, params: Sequence[Value]) -> QueryResult:
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
            if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise DatabaseFullError(f"database {self._label!r}: {exc}") from None
            raise SqliteIoError(f"database {self._label!r}: {exc}") from None
        except (ValueError, OverflowError, MemoryError, sqlite3.Warning) as exc:
            # Statements with a NUL; more than one of them.
            raise SqliteIoError(f"database {self._label!r}: {exc or type(exc).__name__}") from None

    def _rows(self, cursor: sqlite3.Cursor) -> list[Sequence[Value]]:
        rows: list[Sequence[Value]] = []
        limit, size = self._host.max_result_bytes, 0
        for row in cursor:
            size += _VALUE_BYTES * len(row)
            for value in row:
                if isinstance(value, str | bytes):
                    size += len(value)
            if size > limit:
                raise SqliteIoError(
                    f"database {self._label!r}: the result is larger than {limit} bytes"
                )
            rows.append(row)
        return rows

    def _connect(self) -> sqlite3.Connection:
        path = self._database.path
        try:
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self._host.location(self._label),
                timeout=_LOCK_SECONDS,
                isolation_level=None,
                check_same_thread=False,
                uri=path is None,
            )
        except (OSError, sqlite3.Error) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else exc
            where = "memory" if path is None else path
            raise SqliteIoError(
                f"database {self._label!r}: cannot open {where}: {reason}; mount a volume there, "
                "or say where in state_dir or the path of the runtime configuration"
            ) from None
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, self._host.max_result_bytes)
        configure: Any = getattr(connection, "setconfig", None)  # Python 3.12
        if configure is not None:
            configure(1010, True)  # SQLITE_DBCONFIG_DEFENSIVE
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
                and not self._database.allow_attach_file
            )
            or (action == sqlite3.SQLITE_PRAGMA and (first or "").lower() in _DENIED_PRAGMAS)
            or (action == sqlite3.SQLITE_FUNCTION and second == "load_extension")
        )
        return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK


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
