"""``blob-store``, in SpiderLightning since 0.5. Its error has one case.

Source: SpiderLightning 0.5 wit/{blob-store,blob-types}.wit.
"""

from __future__ import annotations

from typing import Final

from containerd_shim_slight_v1.abi.imports import Function, Interface, error_of
from containerd_shim_slight_v1.capabilities.blobstore.base import (
    BlobBackend,
    BlobError,
    ContainerInfo,
    NoObjectError,
    ObjectInfo,
)
from containerd_shim_slight_v1.capabilities.blobstore.streams import (
    MAX_WRITE_STREAMS,
    OpenContainer,
    ReadStream,
    WriteStream,
    settle_all,
)
from containerd_shim_slight_v1.capabilities.instance import Instance
from containerd_shim_slight_v1.slightfile.resources import BLOBSTORE
from containerd_shimkit.wasm.canonical import (
    BOOL,
    BYTES,
    STRING,
    U32,
    U64,
    List,
    Option,
    Record,
    Result,
    Variant,
)

_ERROR: Final = Variant(unexpected_error=STRING)
_CONTAINER_METADATA: Final = Record(STRING, U64, names=("name", "created_at"))
_OBJECT_METADATA: Final = Record(
    *(STRING, STRING, U64, U64), names=("name", "container", "created_at", "size")
)


async def _open(instance: Instance, name: str) -> int:
    backend: BlobBackend = instance.services.backend(BLOBSTORE, name)
    await backend.open(name)
    return instance.handles.add(OpenContainer(backend, name), name)


async def _container(instance: Instance, handle: int) -> tuple[BlobBackend, str]:
    """Return a container as the guest itself has left it."""
    container = instance.handles.get(handle, OpenContainer)
    await settle_all(instance.handles.each(WriteStream))
    return container.backend, container.name


async def _name(instance: Instance, handle: int) -> str:
    return instance.handles.get(handle, OpenContainer).name


async def _info(instance: Instance, handle: int) -> ContainerInfo:
    backend, container = await _container(instance, handle)
    return await backend.container_info(container)


async def _read_object(instance: Instance, handle: int, name: str) -> int:
    backend, container = await _container(instance, handle)
    info = await backend.object_info(container, name)
    return instance.handles.add(ReadStream(backend, info), name)


async def _write_object(instance: Instance, handle: int, name: str) -> int:
    container = instance.handles.get(handle, OpenContainer)
    if len(instance.handles.each(WriteStream)) >= MAX_WRITE_STREAMS:
        raise BlobError(f"more than {MAX_WRITE_STREAMS} objects are written at once")
    return instance.handles.add(WriteStream(container, name), name)


async def _list_objects(instance: Instance, handle: int) -> list[str]:
    backend, container = await _container(instance, handle)
    return await backend.list_objects(container)


async def _delete_object(instance: Instance, handle: int, name: str) -> None:
    backend, container = await _container(instance, handle)
    await backend.delete(container, [name])


async def _delete_objects(instance: Instance, handle: int, names: list[str]) -> None:
    backend, container = await _container(instance, handle)
    await backend.delete(container, names)


async def _has_object(instance: Instance, handle: int, name: str) -> bool:
    backend, container = await _container(instance, handle)
    try:
        await backend.object_info(container, name)
    except NoObjectError:
        return False
    return True


async def _object_info(instance: Instance, handle: int, name: str) -> ObjectInfo:
    backend, container = await _container(instance, handle)
    return await backend.object_info(container, name)


async def _clear(instance: Instance, handle: int) -> None:
    backend, container = await _container(instance, handle)
    await backend.delete(container, await backend.list_objects(container))


async def _write(instance: Instance, handle: int, data: bytes) -> None:
    await instance.handles.get(handle, WriteStream).write(data)


async def _close(instance: Instance, handle: int) -> None:
    await instance.handles.get(handle, WriteStream).finish()


async def _read(instance: Instance, handle: int, size: int) -> bytes | None:
    return await instance.handles.get(handle, ReadStream).read(size)


async def _available(instance: Instance, handle: int) -> int:
    return instance.handles.get(handle, ReadStream).available


RESOURCES: Final = ("container", "read-stream", "write-stream")
INTERFACES: Final = (
    Interface(
        "blob-store",
        [
            Function("container::open", [STRING], Result(U32, _ERROR), _open),
            Function("container::name", [U32], Result(STRING, _ERROR), _name),
            Function("container::info", [U32], Result(_CONTAINER_METADATA, _ERROR), _info),
            Function("container::read-object", [U32, STRING], Result(U32, _ERROR), _read_object),
            Function("container::write-object", [U32, STRING], Result(U32, _ERROR), _write_object),
            Function("container::list-objects", [U32], Result(List(STRING), _ERROR), _list_objects),
            Function(
                "container::delete-object", [U32, STRING], Result(None, _ERROR), _delete_object
            ),
            Function(
                "container::delete-objects",
                [U32, List(STRING)],
                Result(None, _ERROR),
                _delete_objects,
            ),
            Function("container::has-object", [U32, STRING], Result(BOOL, _ERROR), _has_object),
            Function(
                "container::object-info",
                [U32, STRING],
                Result(_OBJECT_METADATA, _ERROR),
                _object_info,
            ),
            Function("container::clear", [U32], Result(None, _ERROR), _clear),
            Function("write-stream::write", [U32, BYTES], Result(None, _ERROR), _write),
            Function("write-stream::close", [U32], Result(None, _ERROR), _close),
            Function("read-stream::read", [U32, U64], Result(Option(BYTES), _ERROR), _read),
            Function("read-stream::available", [U32], Result(U64, _ERROR), _available),
        ],
        error_of(BlobError),
    ),
)
