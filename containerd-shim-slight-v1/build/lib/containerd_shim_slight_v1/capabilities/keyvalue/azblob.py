"""``keyvalue.azblob``: a blob for each key, in the container of the store's name.

The container must be there.

Source: SpiderLightning 0.5 crates/keyvalue/src/implementors/azblob.rs, src/providers/azure.rs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from containerd_shim_slight_v1.capabilities.azure_storage import (
    AzureError,
    AzureStorage,
    BadNameError,
    check_container,
)
from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.keyvalue.base import (
    MAX_VALUE_BYTES,
    AuthenticationError,
    InvalidKeyError,
    InvalidValueError,
    KeyNotFoundError,
    KeyValueBackend,
    KeyValueError,
    StoreConnectionError,
    StoreIoError,
    StoreTimeoutError,
)
from containerd_shim_slight_v1.capabilities.listing import Names
from containerd_shim_slight_v1.capabilities.rest import (
    RestConnectionError,
    RestError,
    RestTimeoutError,
)


class Backend(KeyValueBackend):
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._storage = AzureStorage(context)

    async def open(self, store: str) -> None:
        """Check the name only: the first call that needs the container finds out about it."""
        try:
            check_container(store)
        except BadNameError as exc:
            raise KeyValueError(str(exc)) from None

    async def get(self, store: str, key: str) -> bytes:
        with _errors(store, key):
            answer = await self._storage.ask(
                "GET", store, _checked(key), most_bytes=MAX_VALUE_BYTES
            )
            return answer.body

    async def set(self, store: str, key: str, value: bytes) -> None:
        if len(value) > MAX_VALUE_BYTES:
            raise InvalidValueError(f"{len(value)} bytes, more than {MAX_VALUE_BYTES}")
        headers = {"x-ms-blob-type": "BlockBlob", "content-type": "text/plain"}
        with _errors(store, key):
            await self._storage.ask("PUT", store, _checked(key), headers=headers, body=value)

    async def keys(self, store: str) -> list[str]:
        names = Names(f"store {store!r}", StoreIoError)
        with _errors(store):
            await self._storage.list_blobs(store, names)
        return list(names)

    async def delete(self, store: str, key: str) -> None:
        with _errors(store, key):
            await self._storage.ask(
                "DELETE", store, _checked(key), headers={"x-ms-delete-snapshots": "include"}
            )

    async def close(self) -> None:
        await self._storage.close()


def _checked(key: str) -> str:
    if not key:
        raise InvalidKeyError("a key must not be empty")
    return key


@contextmanager
def _errors(store: str, key: str = "") -> Iterator[None]:
    """Raise what fails inside as errors of the family."""
    try:
        yield
    except BadNameError as exc:
        raise InvalidKeyError(str(exc)) from None
    except AzureError as exc:
        if exc.denied:
            raise AuthenticationError(str(exc)) from None
        if exc.code == "BlobNotFound":
            raise KeyNotFoundError(key) from None
        if exc.code == "ContainerNotFound":
            raise KeyValueError(f"{exc}: the account has no container {store!r}") from None
        raise KeyValueError(str(exc)) from None
    except RestTimeoutError as exc:
        raise StoreTimeoutError(str(exc)) from None
    except RestConnectionError as exc:
        raise StoreConnectionError(str(exc)) from None
    except RestError as exc:
        raise StoreIoError(str(exc)) from None
