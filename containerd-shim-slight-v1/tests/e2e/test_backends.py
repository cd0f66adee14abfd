"""Backends through containerd: what they need is imported late, in a container without Python."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from containerd_shim_slight_v1.capabilities.aws import AwsService
from containerd_shim_slight_v1.capabilities.azure_storage import AzureStorage
from containerd_shim_slight_v1.capabilities.configs.short_crypt import encrypt
from containerd_shim_slight_v1.capabilities.context import AppContext, BackendContext
from containerd_shim_slight_v1.slightfile.reader import parse_slightfile
from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import Node, free_address
from containerd_shimkit.testing.servers.azurite import ACCOUNT, KEY, running_azurite
from containerd_shimkit.testing.servers.moto import AwsUser, running_moto
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.redis import running_redis

pytestmark = [pytest.mark.root, pytest.mark.containerd]

GUESTS = Path(__file__).parents[1] / "guests"
HEAD = 'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "a"\n'
SLIGHT_KEY = "Zq3sT8vWx0aBcDeFgHiJkLmNoPqRsT"
TABLE = (
    b'{"TableName": "store", "BillingMode": "PAY_PER_REQUEST",'
    b' "AttributeDefinitions": [{"AttributeName": "key", "AttributeType": "S"}],'
    b' "KeySchema": [{"AttributeName": "key", "KeyType": "HASH"}]}'
)


def capability(resource: str, name: str, **configs: str) -> str:
    table = "".join(f'{key} = "{value}"\n' for key, value in configs.items())
    return (
        f'[[capability]]\nresource = "{resource}"\nname = "{name}"\n[capability.configs]\n{table}'
    )


def context(text: str) -> BackendContext:
    file = parse_slightfile(HEAD + text)
    return BackendContext(AppContext(file, {}, None), file.capabilities[1], {})


@pytest.fixture
def redis() -> Iterator[Server]:
    with running_redis() as running:
        yield running


@pytest.fixture(scope="module")
def azure() -> Iterator[dict[str, str]]:
    """Configs of an account with the container ``store``."""
    with running_azurite() as server:
        configs = {
            "AZURE_STORAGE_ACCOUNT": ACCOUNT,
            "AZURE_STORAGE_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"http://{server.address}/{ACCOUNT}",
        }

        async def make_container() -> None:
            storage = AzureStorage(context(capability("blobstore.azblob", "*", **configs)))
            await storage.ask("PUT", "store", query={"restype": "container"})
            await storage.close()

        asyncio.run(make_container())
        yield configs


@pytest.fixture(scope="module")
def aws() -> Iterator[dict[str, str]]:
    """Configs of a region with the bucket and the table ``store``."""
    with running_moto() as user:
        configs = configs_of(user)

        async def make_both() -> None:
            found = context(capability("blobstore.aws_s3", "*", **configs))
            for service, path, headers, body in (
                ("s3", "/store", {}, b""),
                ("dynamodb", "/", {"x-amz-target": "DynamoDB_20120810.CreateTable"}, TABLE),
            ):
                made = AwsService(found, service)
                method = "PUT" if service == "s3" else "POST"
                answer = await made.ask(method, path, headers=headers, body=body)
                assert answer.status == 200, answer.body
                await made.close()

        asyncio.run(make_both())
        yield configs


def configs_of(user: AwsUser) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": user.key_id,
        "AWS_SECRET_ACCESS_KEY": user.secret,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": user.url,
    }


def image_of(node: Node, guest: str, slightfile: str, *files: ImageFile) -> str:
    wasm = (GUESTS / f"{guest}.wasm").read_bytes()
    text = ImageFile("slightfile.toml", (HEAD + slightfile).encode())
    return node.image([text, ImageFile("app.wasm", wasm), *files])


def keep_values(node: Node, image: str) -> None:
    """Have guests set, read, list and remove a key."""
    app = node.run(image)
    path = "/kv/store/key/"
    assert app.get(path, method="PUT", body=b"value").status == 204, app.log
    assert app.get(path).text == "value"
    assert app.get("/kv/store").text == "key\n"
    assert app.get(path, method="DELETE").status == 204
    assert app.get(path).text == "0 there is no key 'key'"
    assert app.stop() == 0, app.log


def test_redis_whose_address_is_a_secret(node: Node, redis: Server) -> None:
    secret = encrypt(SLIGHT_KEY, f"redis://{redis.address}".encode())
    slightfile = capability("keyvalue.redis", "*", REDIS_ADDRESS="${usersecrets.REDIS}")
    slightfile += f'[[secret_settings]]\nname = "REDIS"\nvalue = "{secret}"\n'
    key = ImageFile("tmp/.slightkey", SLIGHT_KEY.encode())
    keep_values(node, image_of(node, "probe", slightfile, key))


def test_values_in_azure(node: Node, azure: dict[str, str]) -> None:
    keep_values(node, image_of(node, "probe", capability("keyvalue.azblob", "*", **azure)))


def test_values_in_dynamodb(node: Node, aws: dict[str, str]) -> None:
    keep_values(node, image_of(node, "probe", capability("keyvalue.awsdynamodb", "*", **aws)))


@pytest.mark.parametrize("resource", ["blobstore.azblob", "blobstore.aws_s3"])
def test_blobs(node: Node, request: pytest.FixtureRequest, resource: str) -> None:
    configs = request.getfixturevalue("azure" if resource.endswith("azblob") else "aws")
    app = node.run(image_of(node, "blobs", capability(resource, "*", **configs)))
    body = bytes(range(256)) * 40_000  # two parts
    assert app.get("/put/store/name/", method="PUT", body=body).status == 204, app.log
    assert app.get("/get/store/name/").body == body
    assert app.get("/leave/store/small/", method="PUT", body=b"left").status == 204
    assert app.get("/get/store/small/").text == "left"
    assert app.get("/delete-all/store/x/", method="PUT", body=b"name\nsmall").status == 204
    assert app.get("/list/store/x/").text == ""
    assert app.get("/container/store/x/").status == 200
    assert app.stop() == 0, app.log


def test_app_configuration_that_is_away(node: Node) -> None:
    host, port = free_address()
    image = image_of(node, "probe", capability("configs.azapp", "env"))
    app = node.run(
        image,
        env={
            "AZAPPCONFIG_ENDPOINT": f"https://{host}:{port}",
            "AZAPPCONFIG_KEYID": "id",
            "AZAPPCONFIG_KEYSECRET": "c2VjcmV0",
        },
    )
    assert app.get("/config/KEY").text.startswith(f"3 https://{host}:{port} cannot be asked: ")
    assert app.stop() == 0, app.log
