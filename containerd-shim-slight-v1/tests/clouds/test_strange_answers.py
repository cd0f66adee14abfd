"""Servers that answer what no service would: guests are told errors, and nothing else happens."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from containerd_shim_slight_v1.capabilities.backends import load_backends
from containerd_shim_slight_v1.capabilities.blobstore.base import ObjectInfo
from containerd_shim_slight_v1.capabilities.context import AppContext, BackendContext
from containerd_shim_slight_v1.capabilities.errors import CapabilityError
from containerd_shim_slight_v1.slightfile.reader import parse_slightfile
from containerd_shimkit.testing.servers.http import answering, http_server, response

Calls = Callable[[Any], list[Callable[[], Awaitable[Any]]]]

HEAD = 'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "a"\n'
KEY = base64.b64encode(b"key").decode()
AZURE = (
    f'AZURE_STORAGE_ACCOUNT = "account"\nAZURE_STORAGE_KEY = "{KEY}"\n'
    'AZURE_STORAGE_ENDPOINT = "{0}"\n'
)
AWS = (
    'AWS_ACCESS_KEY_ID = "id"\nAWS_SECRET_ACCESS_KEY = "secret"\nAWS_REGION = "r"\n'
    'AWS_DEFAULT_REGION = "r"\nAWS_ENDPOINT_URL = "{0}"\n'
)
BUS = (
    'AZURE_SERVICE_BUS_NAMESPACE = "n"\nAZURE_POLICY_NAME = "p"\nAZURE_POLICY_KEY = "k"\n'
    'AZURE_SERVICE_BUS_ENDPOINT = "{0}"\n'
)
STATUSES = (200, 201, 404)
BODIES = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"7",
    b"\xff\xfe\0",
    b"[" * 100_000,
    b'{"Item": {"value": {"B": "!"}}}',
    b'{"Item": {"value": 7}}',
    b'{"Items": [7, {"key": 7}, {"key": {"S": "k"}}]}',
    b'{"Items": 7}',
    b'{"value": 7}',
    b'{"value": "\\ud800", "Item": {"value": {"S": "\\ud800"}}}',
    b'{"Items": [{"key": {"S": "\\ud800"}}]}',
    b'{"__type": 7}',
    b"<a/>",
    b"<a>" * 10_000,
    b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb">]><a>&b;</a>',
    b"<R><Blobs><Blob/><Blob><Name/></Blob><Blob><Name Encoded='true'>%</Name></Blob></Blobs></R>",
    b"<R><EncodingType>url</EncodingType><Contents/><Contents><Key>%ff</Key></Contents></R>",
    b"<R><Buckets><Bucket><Name>bucket</Name><CreationDate>x</CreationDate></Bucket></Buckets></R>",
    b"<R><Buckets><Bucket><Name>bucket</Name><CreationDate>0001-01-01T00:00:00</CreationDate>"
    b"</Bucket></Buckets></R>",
    b"<R><UploadId>u</UploadId></R>",
    b"<Error><Code/></Error>",
)
HEADERS = (
    (),
    ("last-modified: x", "etag: \xff", "location: http://[", "x-ms-error-code: \xff"),
    ("last-modified: Mon, 01 Jan 0001 00:00:00 -2359", "location: /store/messages/1/\xff?x"),
    ("last-modified: Mon, 01 Jan 99999 00:00:00 GMT", "x-ms-creation-time: Mon, 32 Jan 2020"),
)


def of_keyvalue(backend: Any) -> list[Callable[[], Awaitable[Any]]]:
    return [
        lambda: backend.open("store"),
        lambda: backend.get("store", "k"),
        lambda: backend.set("store", "k", b"v"),
        lambda: backend.keys("store"),
        lambda: backend.delete("store", "k"),
    ]


def of_blobs(backend: Any) -> list[Callable[[], Awaitable[Any]]]:
    async def write_in_parts() -> None:
        upload = await backend.begin("bucket", "name")
        await upload.add(b"part")
        await upload.finish()

    return [
        lambda: backend.open("bucket"),
        lambda: backend.container_info("bucket"),
        lambda: backend.object_info("bucket", "name"),
        lambda: backend.list_objects("bucket"),
        lambda: backend.read(ObjectInfo("name", "bucket", 0, 100, "*"), 0, 10),
        lambda: backend.write("bucket", "name", b"x"),
        write_in_parts,
        lambda: backend.delete("bucket", ["a"]),
        lambda: backend.delete("bucket", ["a", "b"]),
    ]


def of_configs(backend: Any) -> list[Callable[[], Awaitable[Any]]]:
    return [lambda: backend.get("k"), lambda: backend.set("k", b"v")]


def of_messaging(backend: Any) -> list[Callable[[], Awaitable[Any]]]:
    return [
        lambda: backend.publish("box", "store", b"x"),
        lambda: backend.receive("box", "store"),
        lambda: backend.receive_from_queue("store"),
    ]


@pytest.mark.parametrize(
    ("resource", "configs", "calls"),
    [
        ("keyvalue.azblob", AZURE, of_keyvalue),
        ("keyvalue.awsdynamodb", AWS, of_keyvalue),
        ("blobstore.azblob", AZURE, of_blobs),
        ("blobstore.aws_s3", AWS, of_blobs),
        ("configs.azapp", "", of_configs),
        ("messaging.azsbus", BUS, of_messaging),
    ],
    ids=lambda value: value if isinstance(value, str) and "=" not in value else "",
)
def test_strange_answers(
    resource: str, configs: str, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("containerd_shim_slight_v1.capabilities.configs.azapp._PAUSES", ())

    async def main() -> None:
        current, longest = b"", 0
        async with http_server(answering(lambda _: current)) as server:
            table = f"[capability.configs]\n{configs.format(server.url)}" if configs else ""
            file = parse_slightfile(
                f'{HEAD}[[capability]]\nresource = "{resource}"\nname = "*"\n{table}'
            )
            environment = {
                "AZAPPCONFIG_ENDPOINT": server.url,
                "AZAPPCONFIG_KEYID": "id",
                "AZAPPCONFIG_KEYSECRET": KEY,
            }
            app = AppContext(file, environment, None)
            (class_,) = load_backends(file).values()
            given = app if resource.startswith("configs") else None
            backend = class_(given or BackendContext(app, file.capabilities[1], {}))
            try:
                for status, body, headers in itertools.product(STATUSES, BODIES, HEADERS):
                    current = response(status, body, *headers)
                    for call in calls(backend):
                        try:
                            async with asyncio.timeout(30):
                                await call()
                        except CapabilityError as exc:
                            longest = max(longest, len(str(exc)))
            finally:
                await backend.close()
        assert 0 < longest < 1000

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
