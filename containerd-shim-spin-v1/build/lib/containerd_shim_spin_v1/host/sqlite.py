"""SQLite for guests: ``sqlite``.

A guest has one connection to each database it uses, opened for it and closed when it ends: nothing
of it is left for the next, and a transaction that it left open is rolled back. Databases in memory
last as long as the app, in each process that serves it.

Statements run in threads. One whose guest is cut off is interrupted.

What would reach beyond the database is denied: other files, extensions, and settings of the whole
process.

Sources: Spin 1.5 crates/sqlite-inproc, Spin 4.0 crates/{sqlite,sqlite-inproc}.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures.thread import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

from containerd_shim_spin_v1.host.database import MAX_RESULT_BYTES
from containerd_shim_spin_v1.host.key_value import DEFAULT_STATE_DIR
from containerd_shim_spin_v1.host.sqlite_database import (
    Connection,
    Database,
    DatabaseFullError,
    QueryResult,
    SqliteError,
    SqliteIoError,
    Value,
)
from containerd_shim_spin_v1.runtime_config.labels import DEFAULT
from containerd_shim_spin_v1.runtime_config.model import (
    DatabaseConfig,
    FileDatabase,
    RuntimeConfig,
)

MAX_HANDLES: Final = 256  # Spin 1.5 crates/sqlite/src/lib.rs
MAX_GUESTS: Final = 64
"""Guests that use SQLite at once."""

_DEFAULT_NAME: Final = "sqlite_db.db"
_WAIT_SECONDS: Final = 30.0


class NoSuchDatabaseError(SqliteError):
    """The runtime configuration has no database of this name."""


class AccessDeniedError(SqliteError):
    """The component's manifest does not list the database."""


class InvalidConnectionError(SqliteError):
    """The guest has no such handle."""


class SqliteHost:
    """The app's databases."""

    def __init__(
        self,
        databases: Mapping[str, FileDatabase],
        *,
        max_result_bytes: int = MAX_RESULT_BYTES,
    ) -> None:
        """databases: by their labels, with paths that are not relative to anything."""
        # A guest runs one statement at a time; with fewer threads those that wait for a lock could
        # keep who holds it from going on.
        self._threads = ThreadPoolExecutor(MAX_GUESTS, thread_name_prefix="sqlite")
        self.databases = {
            label: Database(label, config, self._threads, max_result_bytes)
            for label, config in databases.items()
        }
        self._places = asyncio.Semaphore(MAX_GUESTS)
        self._closing: set[asyncio.Task[None]] = set()
        self._open: set[Connection] = set()

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
        loop = asyncio.get_running_loop()
        for database in self.databases.values():
            await loop.run_in_executor(self._threads, database.close)
        self._threads.shutdown()

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

    def connection(self, label: str) -> Connection:
        """Return a new connection, which ``end`` closes."""
        connection = Connection(self.databases[label])
        self._open.add(connection)
        return connection

    def end(self, connections: Collection[Connection]) -> None:
        """Close a guest's connections, and then let another one in its place."""
        for connection in connections:
            connection.interrupt()
        task = asyncio.get_running_loop().create_task(self._end(connections))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _end(self, connections: Collection[Connection]) -> None:
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
        self._connections: dict[str, Connection] = {}

    @property
    def has_open(self) -> bool:
        """Whether there is anything to close."""
        return bool(self._connections)

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

    async def close(self) -> None:
        """End the session: what is not committed is rolled back, what runs is interrupted."""
        connections, self._connections = self._connections, {}
        self._handles.clear()
        if connections:
            self._host.end(connections.values())


def _inside(root: Path, directory: Path, path: str | None) -> str | None:
    return None if path is None else str(root / (directory / path).relative_to("/"))
