"""Messages through containerd: the example image, and what is not lost with a container."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import App, Node, eventually
from containerd_shimkit.testing.servers.kafka import running_kafka
from containerd_shimkit.testing.servers.nats import running_nats
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.shim_nodes import import_example
from nats_keys import Operator

pytestmark = [pytest.mark.root, pytest.mark.containerd]

GUEST = Path(__file__).parents[1] / "guests/messaging.wasm"
EXAMPLE = Path(__file__).parents[3] / "images/slight-messaging"
HTTP = 'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "a"\n'
TOPIC = "/topic/box/topic/"


def messaging(resource: str, name: str, **configs: str) -> str:
    lines = "".join(f'{key} = "{value}"\n' for key, value in configs.items())
    head = f'[[capability]]\nresource = "messaging.{resource}"\nname = "{name}"\n'
    return f"{head}[capability.configs]\n{lines}"


def kafka_at(server: Server, name: str) -> str:
    return messaging(
        "confluent_apache_kafka",
        name,
        CAK_ENDPOINT=server.address,
        CAK_SECURITY_PROTOCOL="PLAINTEXT",
        CAK_GROUP_ID="group",
    )


def image_of(node: Node, wasm: Path, slightfile: str) -> str:
    files = [
        ImageFile("slightfile.toml", (HTTP + slightfile).encode()),
        ImageFile("app.wasm", wasm.read_bytes()),
    ]
    return node.image(files)


@pytest.fixture(scope="module")
def kafka() -> Iterator[Server]:
    with running_kafka() as server:
        yield server


@pytest.fixture
def example(node: Node, pytestconfig: pytest.Config) -> str:
    """The image of ``images/slight-messaging``, as ``make images`` writes it."""
    return import_example(node, pytestconfig.rootpath, "slight-messaging")


def receive(app: App) -> bytes:
    """Return the example's next message."""

    def received() -> bytes:
        answer = app.get("/receive")
        assert answer.status in (200, 204), app.log
        return answer.body

    return eventually(received, "a message comes")


def test_example(node: Node, example: str) -> None:
    app = node.run(example)
    assert app.get("/receive").status == 204
    for message in (b"one", b"\0two\n"):
        assert app.get("/publish", method="POST", body=message).status == 204, app.log
    assert [receive(app) for _ in range(2)] == [b"one", b"\0two\n"]
    assert app.get("/receive").status == 204
    assert app.stop() == 0, app.log


def test_example_with_kafka(node: Node, kafka: Server) -> None:
    """What one container has received another of the group does not get."""
    state = '[[capability]]\nresource = "configs.envvars"\nname = "my-state"\n'
    image = image_of(node, EXAMPLE / "app.wasm", kafka_at(kafka, "my-messages") + state)
    app = node.run(image)
    for message in (b"one", b"two"):
        assert app.get("/publish", method="POST", body=message).status == 204, app.log
    assert receive(app) == b"one"
    assert app.stop() == 0, app.log
    app = node.run(image)
    assert receive(app) == b"two"
    assert app.stop() == 0, app.log


def test_example_whose_server_is_away(node: Node, kafka: Server) -> None:
    state = '[[capability]]\nresource = "configs.envvars"\nname = "my-state"\n'
    text = kafka_at(kafka, "my-messages").replace(f":{kafka.port}", ":1") + state
    refusal = node.run_refused(image_of(node, EXAMPLE / "app.wasm", text))
    assert f"{kafka.host}:1: there is no connection" in refusal.error + refusal.log


@pytest.mark.timeout(180)
def test_message_that_a_killed_container_has_comes_again(node: Node, kafka: Server) -> None:
    image = image_of(node, GUEST, kafka_at(kafka, "box"))
    app = node.run(image)
    assert app.get(TOPIC, method="POST").status == 200, app.log
    assert app.get(TOPIC, method="PUT", body=b"message").status == 204, app.log
    with closing(app.connect()) as connection:
        connection.request("GET", "/held/box/topic/")
        eventually(lambda: "holding message\n" in app.log, "the guest has the message")
        assert app.stop("SIGKILL") == 137
    app = node.run(image)
    # The group waits for who has been killed.
    found = eventually(lambda: app.get("/subscription/box/topic/").body, "it comes", 90)
    assert found == b"message"
    assert app.get("/subscription/box/topic/").body == b""
    assert app.stop() == 0, app.log


def test_nats_with_credentials(node: Node) -> None:
    operator = Operator()
    credentials = operator.credentials(operator.user.seed).replace("\n", "\\n")
    with running_nats(*operator.lines) as server:
        text = messaging("nats", "box", NATS_URL=f"nats://{server.address}", NATS_CREDS=credentials)
        app = node.run(image_of(node, GUEST, text))
        token = app.get(TOPIC, method="POST").text
        assert app.get(TOPIC, method="PUT", body=b"message").status == 204, app.log
        assert app.get(f"/subscription/box/{token}/").body == b"message"
        assert app.stop() == 0, app.log
