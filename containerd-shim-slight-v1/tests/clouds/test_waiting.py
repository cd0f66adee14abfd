"""200 guests at once, each of which waits on a service of a cloud."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import pytest

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import fetch
from containerd_shimkit.testing.servers.azurite import ACCOUNT
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.proxy import Proxy, holding_proxy

Image = Any  # of conftest.py
Cloud = Any

COUNT = 200


KINDS = pytest.mark.parametrize(
    ("fixture", "resource"),
    [
        ("azure", "keyvalue.azblob"),
        ("azure", "blobstore.azblob"),
        ("dynamodb", "keyvalue.awsdynamodb"),
        ("s3", "blobstore.aws_s3"),
    ],
)


@dataclass(frozen=True)
class Held:
    """A service that is behind a proxy."""

    server: Server
    address: tuple[str, int]
    path: str
    expected: tuple[int, str]
    """What a guest answers that comes through."""

    def proxy(self) -> AbstractAsyncContextManager[Proxy]:
        return holding_proxy((self.server.host, self.server.port), self.address)

    async def ask(self, port: int) -> tuple[int, str]:
        answer = await fetch(port, self.path)
        return answer.status, answer.text


@pytest.fixture
def held(image: Image, request: pytest.FixtureRequest, fixture: str, resource: str) -> Held:
    cloud: Cloud = request.getfixturevalue(fixture)
    address = free_address()
    url = "http://{}:{}".format(*address)
    if fixture == "azure":
        server = request.getfixturevalue("azurite")
        cloud = cloud.but(AZURE_STORAGE_ENDPOINT=f"{url}/{ACCOUNT}")
    else:
        server = request.getfixturevalue("moto").server
        cloud = cloud.but(AWS_ENDPOINT_URL=url)
    image.slightfile(cloud.of(resource).slightfile)
    if resource.startswith("blobstore"):
        image.guest("blobs")
        return Held(server, address, "/has/store/nothing/", (200, "0"))
    return Held(server, address, "/kv/store/nothing/", (418, "0 there is no key 'nothing'"))


@KINDS
def test_many_wait_at_once(image: Image, held: Held) -> None:
    async def main(port: int) -> None:
        async with held.proxy() as proxy, asyncio.timeout(100), asyncio.TaskGroup() as group:
            asked = [group.create_task(held.ask(port)) for _ in range(COUNT)]
            await proxy.holds(COUNT)
            assert not any(task.done() for task in asked)
            proxy.open()
            assert [await task for task in asked] == [held.expected] * COUNT

    image.run(main, SLIGHT_MAX_INSTANCE_COUNT=str(COUNT))


@KINDS
def test_request_that_is_cut_off(image: Image, held: Held) -> None:
    """Its connection is nobody else's, nor are there less for those that come."""

    async def main(port: int) -> None:
        async with held.proxy() as proxy:
            answers = await asyncio.gather(*(held.ask(port) for _ in range(10)))
            assert {status for status, _ in answers} == {504}
            proxy.open()
            async with asyncio.timeout(60):
                while (found := await held.ask(port))[0] == 504:
                    pass  # a busy machine may take longer
            assert found == held.expected

    image.run(main, SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS="2", SLIGHT_MAX_INSTANCE_COUNT="10")
