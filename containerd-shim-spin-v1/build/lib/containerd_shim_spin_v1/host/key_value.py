"""Key-value stores, as guests open and use them.

Stores are the app's, by their labels; a component may open those that its manifest names. A guest
has handles for what it has opened: small numbers, never the same twice.

Source: Spin 3.6 crates/factor-key-value/src/host.rs; Spin 1.5 wit/ephemeral/key-value.wit.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from containerd_shim_spin_v1.host.key_value_backends.base import Store
from containerd_shim_spin_v1.host.key_value_backends.memory import MemoryStore
from containerd_shim_spin_v1.host.key_value_backends.redis import RedisKeyValueStore
from containerd_shim_spin_v1.host.key_value_backends.sqlite_file import SqliteFileStore
from containerd_shim_spin_v1.runtime_config.labels import DEFAULT
from containerd_shim_spin_v1.runtime_config.model import FileStore, RedisStore, RuntimeConfig
from containerd_shimkit.errors import ManifestError
from containerd_shimkit.redis_client.address import AddressError, RedisAddress
from containerd_shimkit.redis_client.pool import RedisPool

MAX_OPEN: Final = 256
"""Handles of one guest, as in Spin."""
MAX_REDIS_CONNECTIONS: Final = 64
"""To the servers of all stores; what a store asks is answered at once, so that few are enough."""
DEFAULT_STATE_DIR: Final = ".spin"
_FILE: Final = "sqlite_key_value.db"


class StoreTableFullError(Exception):
    """A guest has too many stores open."""


class NoSuchStoreError(Exception):
    """There is no store of that label."""


class AccessDeniedError(Exception):
    """The component's manifest does not name the store."""


class InvalidStoreError(Exception):
    """The handle is of no open store."""


class KeyValueHost:
    """The stores of an app, made in the event loop that serves."""

    def __init__(self, stores: Mapping[str, Store], pool: RedisPool) -> None:
        """stores: by their labels.  pool: what those in Redis use, closed with them."""
        self._stores = stores
        self._pool = pool

    @classmethod
    def of(
        cls,
        config: RuntimeConfig,
        tls: Callable[[], ssl.SSLContext],
        *,
        root: Path,
        directory: Path,
    ) -> KeyValueHost:
        """Return the stores of the runtime configuration, and the default one.

        tls: returns the context for ``rediss://``.  root: of the container's files.  directory: in
        the container, that of the configuration file, which paths in it are relative to.
        Kinds that are not supported are left out, see ``check_labels``.  Raises ManifestError.
        """
        pool = RedisPool(tls, max_connections=MAX_REDIS_CONNECTIONS)
        stores: dict[str, Store] = {DEFAULT: _default_store(config, root)}
        for label, store in config.key_value_stores.items():
            match store:
                case FileStore(None):
                    stores[label] = MemoryStore(label)
                case FileStore(str() as path):
                    stores[label] = SqliteFileStore(label, _inside(root, directory / path))
                case RedisStore(url):
                    stores[label] = RedisKeyValueStore(label, _address(label, url), pool)
        return cls(stores, pool)

    def session(self, labels: Collection[str]) -> KeyValueSession:
        """Return what one guest calls. labels: of the stores that its component may open."""
        return KeyValueSession(self._stores, labels)

    async def close(self) -> None:
        """Close every store."""
        for store in self._stores.values():
            await store.close()
        await self._pool.close()


def check_store_addresses(config: RuntimeConfig) -> None:
    """Raise ManifestError for an address of a store that is none."""
    for label, store in config.key_value_stores.items():
        if isinstance(store, RedisStore):
            _address(label, store.url)


def _address(label: str, url: str) -> RedisAddress:
    try:
        return RedisAddress.parse(url)
    except AddressError as exc:
        raise ManifestError(
            f"[key_value_store.{label}] of the runtime configuration: url: {exc}"
        ) from None


def _default_store(config: RuntimeConfig, root: Path) -> Store:
    if config.state_dir == "":
        return MemoryStore(DEFAULT)
    path = Path("/", config.state_dir or DEFAULT_STATE_DIR, _FILE)
    return SqliteFileStore(DEFAULT, _inside(root, path))


def _inside(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


class KeyValueSession:
    """One guest's stores."""

    def __init__(self, stores: Mapping[str, Store], labels: Collection[str]) -> None:
        self._stores = stores
        self._labels = labels
        self._open: dict[int, Store] = {}
        self._next = 0

    async def open(self, label: str) -> int:
        """Return a handle.

        Raises AccessDeniedError, NoSuchStoreError, StoreTableFullError.
        """
        if label not in self._labels:
            raise AccessDeniedError(
                f"the component may not open key-value store {label!r}: it needs "
                f'key_value_stores = ["{label}"] in the manifest'
            )
        store = self._stores.get(label)
        if store is None:
            raise NoSuchStoreError(f"there is no key-value store {label!r}")
        if len(self._open) == MAX_OPEN:
            raise StoreTableFullError(f"a guest may have {MAX_OPEN} key-value stores open")
        handle = self._next
        self._next += 1
        self._open[handle] = store
        return handle

    async def get(self, handle: int, key: str) -> bytes | None:
        """Return the value of a key; None if it has none. Raises InvalidStoreError, StoreError."""
        return await self._store(handle).get(key)

    async def set(self, handle: int, key: str, value: bytes) -> None:
        """Set the value of a key. Raises InvalidStoreError, StoreError."""
        await self._store(handle).set(key, value)

    async def delete(self, handle: int, key: str) -> None:
        """Remove a key; it need not be there. Raises InvalidStoreError, StoreError."""
        await self._store(handle).delete(key)

    async def exists(self, handle: int, key: str) -> bool:
        """Return whether a key has a value. Raises InvalidStoreError, StoreError."""
        return await self._store(handle).exists(key)

    async def get_keys(self, handle: int) -> list[str]:
        """Return all keys, in no order. Raises InvalidStoreError, StoreError."""
        return await self._store(handle).get_keys()

    def close(self, handle: int) -> None:
        """Close a store; any number is fine."""
        self._open.pop(handle, None)

    def _store(self, handle: int) -> Store:
        store = self._open.get(handle)
        if store is None:
            raise InvalidStoreError(f"{handle} is the handle of no open key-value store")
        return store
