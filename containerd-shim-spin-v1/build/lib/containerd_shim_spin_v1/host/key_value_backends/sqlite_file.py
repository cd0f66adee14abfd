"""Stores in a SQLite file, in the table that Spin keeps them in: either opens the other's files.

Each process that serves the app has one connection and one thread for it. They share the file by
SQLite's own locks: with a write-ahead log readers wait for nobody, and a writer for the one before
it. What was written is there after the process ends in whatever way; a node that loses its power
may lose the last values, and no more.

Source: Spin 3.6 crates/key-value-spin/src/store.rs.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from containerd_shim_spin_v1.host.key_value_backends.base import (
    KEY_BYTES,
    MAX_RESULT_BYTES,
    StoreError,
    too_large,
)

BUSY_SECONDS: Final = 5.0
"""A writer waits this long for others."""

_SETTINGS: Final = (
    "PRAGMA synchronous = NORMAL",
    "PRAGMA trusted_schema = OFF",  # the file may be an image's: what is in it runs nothing
)
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS spin_key_value (
    store TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (store, key)
)"""
_GET: Final = """
SELECT CASE WHEN length(value) <= ? THEN value END
FROM spin_key_value WHERE store = ? AND key = ?"""
_SET: Final = """
INSERT INTO spin_key_value (store, key, value) VALUES (?, ?, ?)
ON CONFLICT (store, key) DO UPDATE SET value = excluded.value"""
_DELETE: Final = "DELETE FROM spin_key_value WHERE store = ? AND key = ?"
_EXISTS: Final = "SELECT 1 FROM spin_key_value WHERE store = ? AND key = ?"
_KEYS: Final = "SELECT key FROM spin_key_value WHERE store = ?"

_T = TypeVar("_T")


class SqliteFileStore:
    """See ``base.Store``. The file is opened when the store is first used, not before."""

    def __init__(self, label: str, path: Path) -> None:
        """label: by which the file knows the store.  path: directories are made as needed."""
        self._label = label
        self._path = path
        self._executor: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None

    async def get(self, key: str) -> bytes | None:
        """See ``Store``."""

        def get(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute(_GET, (MAX_RESULT_BYTES, self._label, key)).fetchone()
            if row is None:
                return None
            if row[0] is None:
                raise too_large(self._label)
            # Another program may have written a text.
            return row[0] if isinstance(row[0], bytes) else str(row[0]).encode()

        return await self._run(get)

    async def set(self, key: str, value: bytes) -> None:
        """See ``Store``."""
        await self._run(lambda connection: connection.execute(_SET, (self._label, key, value)))

    async def delete(self, key: str) -> None:
        """See ``Store``."""
        await self._run(lambda connection: connection.execute(_DELETE, (self._label, key)))

    async def exists(self, key: str) -> bool:
        """See ``Store``."""

        def exists(connection: sqlite3.Connection) -> bool:
            return connection.execute(_EXISTS, (self._label, key)).fetchone() is not None

        return await self._run(exists)

    async def get_keys(self) -> list[str]:
        """See ``Store``."""

        def get_keys(connection: sqlite3.Connection) -> list[str]:
            found, size = [], 0
            with contextlib.closing(connection.execute(_KEYS, (self._label,))) as rows:
                for (key,) in rows:
                    size += len(key.encode()) + KEY_BYTES
                    if size > MAX_RESULT_BYTES:
                        raise too_large(self._label)
                    found.append(key)
            return found

        return await self._run(get_keys)

    async def close(self) -> None:
        """See ``Store``."""
        if self._executor is None:
            return
        executor, self._executor = self._executor, None
        await asyncio.get_running_loop().run_in_executor(executor, self._close)
        executor.shutdown()

    def __str__(self) -> str:
        return f"key-value store {self._label!r} in {self._path}"

    async def _run(self, function: Callable[[sqlite3.Connection], _T]) -> _T:
        """Return what ``function`` returns; once begun it ends, even if whoever waits is gone."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="key-value")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._call, function)

    # In the thread

    def _call(self, function: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._connection is None:
            self._connection = self._open()
        try:
            return function(self._connection)
        except (sqlite3.Error, OverflowError) as exc:  # the second for values of gigabytes
            raise StoreError(f"{self}: {exc}") from exc

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as exc:
            raise self._cannot_open(exc) from exc
        try:
            # Another process may do the same now, and SQLite does not wait for that. Whoever
            # comes first does it for all.
            with contextlib.suppress(sqlite3.OperationalError):
                connection.execute("PRAGMA journal_mode = WAL")
            for statement in (*_SETTINGS, _TABLE):
                connection.execute(statement)
        except sqlite3.Error as exc:
            connection.close()
            raise self._cannot_open(exc) from exc
        return connection

    def _cannot_open(self, exc: Exception) -> StoreError:
        reason = (isinstance(exc, OSError) and exc.strerror) or str(exc)
        return StoreError(
            f"{self} cannot be opened: {reason}: mount a volume at {self._path.parent}, or say "
            "where one is with state_dir or path in the runtime configuration"
        )

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
