"""200 guests at once, each of which waits on a service of a cloud."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import fetch
from containerd_shimkit.testing.servers.azurite import ACCOUNT
from containerd_shimkit.testing.servers.proxy import holding_proxy

Image = Any  # of conftest.py
Cloud = Any

COUNT = 200


@pytest.mark.parametrize(
    ("fixture", "resource"),
    [
        ("azure", "keyvalue.azblob"),
        ("azure", "blobstore.azblob"),
        ("dynamodb", "keyvalue.awsdynamodb"),
        ("s3", "blobstore.aws_s3"),
    ],
)
def test_many_wait_at_once(
    image: Image, request: pytest.FixtureRequest, fixture: str, resource: str
) -> None:
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
        path, expected = "/has/store/nothing/", (200, "0")
    else:
        path, expected = "/kv/store/nothing/", (418, "0 there is no key 'nothing'")

    async def main(port: int) -> None:
        async with (
            holding_proxy((server.host, server.port), address) as proxy,
            asyncio.timeout(100),
            asyncio.TaskGroup() as group,
        ):
            asked = [group.create_task(fetch(port, path)) for _ in range(COUNT)]
            await proxy.holds(COUNT)
            assert not any(task.done() for task in asked)
            proxy.open()
            for task in asked:
                answer = await task
                assert (answer.status, answer.text) == expected

    image.run(main, SLIGHT_MAX_INSTANCE_COUNT=str(COUNT))
