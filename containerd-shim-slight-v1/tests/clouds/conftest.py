"""What clouds do, by their emulators: Azurite and moto, which check signatures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvloop

from containerd_shim_slight_v1.capabilities.aws import AwsService
from containerd_shim_slight_v1.capabilities.azure_storage import AzureStorage
from containerd_shim_slight_v1.capabilities.backends import load_backends
from containerd_shim_slight_v1.capabilities.context import AppContext, BackendContext
from containerd_shim_slight_v1.slightfile.reader import parse_slightfile
from containerd_shimkit.testing.servers.azurite import ACCOUNT, KEY, running_azurite
from containerd_shimkit.testing.servers.moto import AwsUser, running_moto
from containerd_shimkit.testing.servers.process import Server


@dataclass(frozen=True)
class Cloud:
    """A resource and the configs with which it is used."""

    resource: str
    configs: dict[str, str]

    def of(self, resource: str) -> Cloud:
        return Cloud(resource, self.configs)

    def but(self, **configs: str) -> Cloud:
        return Cloud(self.resource, self.configs | configs)

    @property
    def slightfile(self) -> str:
        configs = "".join(f'{key} = "{value}"\n' for key, value in self.configs.items())
        return (
            'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "a"\n'
            f'[[capability]]\nresource = "{self.resource}"\nname = "*"\n'
            f"[capability.configs]\n{configs}"
        )

    def context(self) -> BackendContext:
        file = parse_slightfile(self.slightfile)
        return BackendContext(AppContext(file, {}, None), file.capabilities[1], {})

    def call(self, main: Callable[[Any], Awaitable[None]]) -> None:
        """Run ``main`` with a backend of its own."""

        async def run() -> None:
            context = self.context()
            (class_,) = load_backends(context.app.slightfile).values()
            backend = class_(context)
            try:
                async with asyncio.timeout(60):
                    await main(backend)
            finally:
                await backend.close()

        _run(run())


def _run(main: Awaitable[None]) -> None:
    async def run() -> None:
        await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


@pytest.fixture(scope="session")
def azurite() -> Iterator[Server]:
    with running_azurite() as server:
        yield server


@pytest.fixture(scope="session")
def azure(azurite: Server) -> Cloud:
    """An account with the container ``store``."""
    made = Cloud(
        "keyvalue.azblob",
        {
            "AZURE_STORAGE_ACCOUNT": ACCOUNT,
            "AZURE_STORAGE_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"http://{azurite.address}/{ACCOUNT}",
        },
    )

    async def make_container() -> None:
        storage = AzureStorage(made.context())
        await storage.ask("PUT", "store", query={"restype": "container"})
        await storage.close()

    _run(make_container())
    return made


@pytest.fixture(scope="session")
def moto() -> Iterator[AwsUser]:
    with running_moto() as user:
        yield user


@pytest.fixture(scope="session")
def dynamodb(moto: AwsUser) -> Cloud:
    """A region with the table ``store``."""
    made = Cloud(
        "keyvalue.awsdynamodb",
        {
            "AWS_ACCESS_KEY_ID": moto.key_id,
            "AWS_SECRET_ACCESS_KEY": moto.secret,
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_ENDPOINT_URL": moto.url,
        },
    )
    table = (
        b'{"TableName": "store", "BillingMode": "PAY_PER_REQUEST",'
        b' "AttributeDefinitions": [{"AttributeName": "key", "AttributeType": "S"}],'
        b' "KeySchema": [{"AttributeName": "key", "KeyType": "HASH"}]}'
    )

    async def make_table() -> None:
        service = AwsService(made.context(), "dynamodb")
        headers = {"x-amz-target": "DynamoDB_20120810.CreateTable"}
        answer = await service.ask("POST", "/", headers=headers, body=table)
        assert answer.status == 200, answer.body
        await service.close()

    _run(make_table())
    return made


@pytest.fixture(scope="session")
def s3(moto: AwsUser) -> Cloud:
    """A region with the bucket ``store``."""
    made = Cloud(
        "blobstore.aws_s3",
        {
            "AWS_ACCESS_KEY_ID": moto.key_id,
            "AWS_SECRET_ACCESS_KEY": moto.secret,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": moto.url,
        },
    )

    async def make_bucket() -> None:
        service = AwsService(made.context(), "s3")
        answer = await service.ask("PUT", "/store")
        assert answer.status == 200, answer.body
        await service.close()

    _run(make_bucket())
    return made
