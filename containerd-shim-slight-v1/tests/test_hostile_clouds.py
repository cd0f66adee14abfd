"""Answers of servers of clouds that are made to do harm, or are large."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from containerd_shim_slight_v1.capabilities.backends import load_backends
from containerd_shim_slight_v1.capabilities.blobstore.base import BlobBackend, BlobError
from containerd_shim_slight_v1.capabilities.context import AppContext, BackendContext
from containerd_shim_slight_v1.capabilities.errors import CapabilityError
from containerd_shim_slight_v1.capabilities.xml_answers import XmlError, parse_xml
from containerd_shim_slight_v1.slightfile.reader import parse_slightfile
from containerd_shimkit.testing.servers.http import Received, answering, http_server, response
from containerd_shimkit.testing.turns import longest_turn

AZURE = {"AZURE_STORAGE_ACCOUNT": "account", "AZURE_STORAGE_KEY": "a2V5"}
AWS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "r"}
BOTH = pytest.mark.parametrize("resource", ["blobstore.azblob", "blobstore.aws_s3"])

ENTITIES = b'<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
PAGE = (
    b"<EnumerationResults><Blobs>%b</Blobs></EnumerationResults>",
    b"<Blob><Name>%d</Name><Properties><Size>1</Size></Properties></Blob>",
)


def call(
    resource: str,
    answer: Callable[[Received], bytes],
    use: Callable[[BlobBackend], Awaitable[None]],
) -> list[Received]:
    """Return the requests that the use of a backend makes."""

    async def main() -> list[Received]:
        async with http_server(answering(answer)) as server, asyncio.timeout(100):
            key = "AZURE_STORAGE_ENDPOINT" if "azblob" in resource else "AWS_ENDPOINT_URL"
            configs = (AZURE if "azblob" in resource else AWS) | {key: server.url}
            lines = "".join(f'{name} = "{value}"\n' for name, value in configs.items())
            file = parse_slightfile(
                f'specversion = "0.2"\n[[capability]]\nresource = "{resource}"\nname = "*"\n'
                f"[capability.configs]\n{lines}"
            )
            context = BackendContext(AppContext(file, {}, None), file.capabilities[0], {})
            backend: Any = next(iter(load_backends(file).values()))(context)
            try:
                await use(backend)
            finally:
                await backend.close()
                await server.all_closed()
            return server.requests

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


@BOTH
@pytest.mark.parametrize(
    "body",
    [
        ENTITIES + b"<r><Contents><Key>&b;</Key></Contents></r>",
        b"<r>" + b"<a/>" * 300_000 + b"</r>",
        b"<a>" * 300_000,
        b"<r>",
        b"",
    ],
    ids=["entities", "elements", "depth", "unfinished", "nothing"],
)
def test_list_is_no_such_document(resource: str, body: bytes) -> None:
    async def use(backend: BlobBackend) -> None:
        with pytest.raises(CapabilityError, match="unknown answer"):
            await backend.list_objects("store")

    call(resource, lambda _: response(200, body), use)


def test_others_are_served_while_a_page_is_read() -> None:
    blobs = b"".join(PAGE[1] % number for number in range(60_000))

    async def main() -> None:
        assert await longest_turn(parse_xml(PAGE[0] % blobs)) < 1 / 3

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_a_document_type_is_refused() -> None:
    with pytest.raises(XmlError, match="document type"), asyncio.Runner() as runner:
        runner.run(parse_xml(ENTITIES + b"<r/>"))


@BOTH
def test_objects_older_than_time(resource: str) -> None:
    headers = ("last-modified: Mon, 01 Jan 1900 00:00:00 GMT", "etag: e")

    async def use(backend: BlobBackend) -> None:
        assert (await backend.object_info("store", "name")).created_at == 0

    call(resource, lambda _: response(200, b"", *headers), use)


def test_no_more_objects_are_deleted_at_once_than_there_are_places() -> None:
    """A task for each of a hundred thousand would stop the loop."""

    async def use(backend: BlobBackend) -> None:
        tasks = len(asyncio.all_tasks())
        deleting = asyncio.create_task(backend.delete("store", [str(n) for n in range(2000)]))
        most = 0
        while not deleting.done():
            most = max(most, len(asyncio.all_tasks()) - tasks)
            await asyncio.sleep(0)
        await deleting
        assert most < 100

    requests = call("blobstore.azblob", lambda _: response(202), use)
    assert len({request.target for request in requests}) == 2000


def test_deleting_ends_at_the_first_failure() -> None:
    async def use(backend: BlobBackend) -> None:
        with pytest.raises(BlobError, match="403"):
            await backend.delete("store", [str(n) for n in range(2000)])

    assert len(call("blobstore.azblob", lambda _: response(403), use)) < 100
