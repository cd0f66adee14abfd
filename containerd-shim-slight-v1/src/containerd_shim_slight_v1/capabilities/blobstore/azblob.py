"""``blobstore.azblob``: containers and block blobs of an Azure storage account.

Of a container Azure does not tell when it was made, only when it was last changed.

Source: SpiderLightning 0.5 crates/blob-store/src/implementors/azblob.rs; Azure Storage REST API,
"Put Block", "Put Block List".
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Final

from containerd_shim_slight_v1.capabilities.azure_storage import (
    AzureError,
    AzureStorage,
    BadNameError,
)
from containerd_shim_slight_v1.capabilities.blobstore.base import (
    BlobBackend,
    BlobError,
    ContainerInfo,
    NoContainerError,
    NoObjectError,
    ObjectInfo,
    Upload,
)
from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.listing import Names
from containerd_shim_slight_v1.capabilities.rest import MAX_SMALL_BYTES, RestError

_DELETES_AT_ONCE: Final = 16
_NOT_FOUND: Final = 404
_CONTAINER: Final = {"restype": "container"}


class Backend(BlobBackend):
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._storage = AzureStorage(context)

    async def open(self, container: str) -> None:
        await self.container_info(container)

    async def container_info(self, container: str) -> ContainerInfo:
        with _errors(container):
            answer = await self._storage.ask("HEAD", container, query=_CONTAINER)
        return ContainerInfo(container, _seconds(answer.headers, "last-modified"))

    async def object_info(self, container: str, name: str) -> ObjectInfo:
        with _errors(container, name):
            answer = await self._storage.ask("HEAD", container, _checked(name))
        headers = answer.headers
        length = headers.get("content-length", "")
        if not length.isdigit():
            raise BlobError(f"object {name!r}: the server tells no length")
        created = "x-ms-creation-time" if "x-ms-creation-time" in headers else "last-modified"
        return ObjectInfo(
            *(name, container, _seconds(headers, created), int(length)), headers.get("etag", "*")
        )

    async def list_objects(self, container: str) -> list[str]:
        names = Names(f"container {container!r}", BlobError)
        with _errors(container):
            await self._storage.list_blobs(container, names)
        return list(names)

    async def read(self, info: ObjectInfo, start: int, size: int) -> bytes:
        headers = {"range": f"bytes={start}-{start + size - 1}", "if-match": info.version}
        with _errors(info.container, info.name):
            answer = await self._storage.ask(
                *("GET", info.container, info.name),
                headers=headers,
                most_bytes=max(size, MAX_SMALL_BYTES),
            )
        return answer.body

    async def write(self, container: str, name: str, content: bytes) -> None:
        headers = {"x-ms-blob-type": "BlockBlob", "content-type": "application/octet-stream"}
        with _errors(container, name):
            await self._storage.ask("PUT", container, _checked(name), headers=headers, body=content)

    async def begin(self, container: str, name: str) -> Upload:
        return _Blocks(self._storage, container, _checked(name))

    async def delete(self, container: str, names: Sequence[str]) -> None:
        left = iter(names)

        async def delete_in_turn() -> None:
            for name in left:
                with suppress(NoObjectError), _errors(container, name):
                    await self._storage.ask(
                        "DELETE",
                        container,
                        _checked(name),
                        headers={"x-ms-delete-snapshots": "include"},
                    )

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_DELETES_AT_ONCE, len(names))):
                    group.create_task(delete_in_turn())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def close(self) -> None:
        await self._storage.close()


class _Blocks(Upload):
    def __init__(self, storage: AzureStorage, container: str, name: str) -> None:
        self._storage = storage
        self._container = container
        self._name = name
        self._ids: list[str] = []

    async def add(self, part: bytes) -> None:
        id_ = base64.b64encode(b"%08d" % len(self._ids)).decode()
        query = {"comp": "block", "blockid": id_}
        with _errors(self._container, self._name):
            await self._storage.ask("PUT", self._container, self._name, query, body=part)
        self._ids.append(id_)

    async def finish(self) -> None:
        ids = "".join(f"<Latest>{id_}</Latest>" for id_ in self._ids)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{ids}</BlockList>'.encode()
        headers = {
            "content-type": "application/xml",
            "x-ms-blob-content-type": "application/octet-stream",
        }
        query = {"comp": "blocklist"}
        with _errors(self._container, self._name):
            await self._storage.ask("PUT", self._container, self._name, query, headers, body)

    async def abandon(self) -> None:
        """Do nothing: Azure forgets blocks that are in no list after a week."""


def _checked(name: str) -> str:
    if not name:
        raise BlobError("an object's name must not be empty")
    return name


def _seconds(headers: Mapping[str, str], name: str) -> int:
    try:
        return max(int(parsedate_to_datetime(headers[name]).timestamp()), 0)
    except (KeyError, ValueError):
        return 0


@contextmanager
def _errors(container: str, name: str = "") -> Iterator[None]:
    """Raise what fails inside as errors of the family."""
    try:
        yield
    except AzureError as exc:
        if exc.code == "ContainerNotFound":
            raise NoContainerError(f"{exc}: the account has no container {container!r}") from None
        if exc.status == _NOT_FOUND and name:
            raise NoObjectError(name) from None
        if exc.code == "ConditionNotMet":
            raise BlobError(f"object {name!r} has changed since it was opened") from None
        raise BlobError(str(exc)) from None
    except (BadNameError, RestError) as exc:
        raise BlobError(str(exc)) from None
