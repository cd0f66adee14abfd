"""Redis and key-value stores through containerd: guests that call, and guests that are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import App, Node, eventually
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.redis import running_redis

pytestmark = [pytest.mark.root, pytest.mark.containerd]

GUESTS = Path(__file__).parents[1] / "guests"
MANIFEST = """\
spin_manifest_version = 2
[application]
name = "data"
[[trigger.http]]
route = "/redis/..."
component = "redis"
[[trigger.http]]
route = "/store/..."
component = "store"
[component.redis]
source = "redis.wasm"
allowed_outbound_hosts = ["redis://127.0.0.0/8:*", "redis://localhost:*"]
[component.store]
source = "key_value.wasm"
key_value_stores = ["default", "cache", "memory"]
"""
CONFIG = """\
[key_value_store.memory]
type = "spin"
[key_value_store.cache]
type = "redis"
url = "redis://{address}"
"""
TEN_MEGABYTES = 10 << 20


@pytest.fixture
def server() -> Iterator[Server]:
    with running_redis() as running:
        yield running


@pytest.fixture
def image(node: Node, server: Server) -> str:
    """Two guests that call what they are told to."""
    names = ("redis.wasm", "key_value.wasm")
    guests = [ImageFile(name, (GUESTS / name).read_bytes()) for name in names]
    config = ImageFile("runtime-config.toml", CONFIG.format(address=server.address).encode())
    return node.image([ImageFile("spin.toml", MANIFEST.encode()), config, *guests])


def ask(app: App, path: str, *lines: str, address: str = "") -> list[str]:
    """Have one guest make calls; return what it says of each."""
    body = "\n".join(lines).encode()
    answer = app.get(path, method="POST", headers={"address": address}, body=body)
    assert answer.status == 200, answer
    return answer.text.splitlines()


def redis(server: Server, *words: str) -> str:
    """Run a command; return what redis-cli prints."""
    return server.run("redis-cli", "-h", server.host, "-p", str(server.port), *words).strip()


def published(server: Server, text: str) -> Callable[[], bool]:
    """Return what publishes a message and says whether anybody heard it."""
    return lambda: redis(server, "PUBLISH", "messages", text) == "1"


def volume(directory: Path) -> list[str]:
    """Return options of ctr that mount a directory where the default store is kept."""
    return ["--mount", f"type=bind,src={directory},dst=/.spin,options=rbind:rw"]


# Redis


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_guest_calls_redis(node: Node, image: str, server: Server, version: str) -> None:
    app = node.run(image)
    path, address = f"/redis/{version}", f"redis://{server.address}"
    lines = (f"set big @{TEN_MEGABYTES}", "execute STRLEN big", "incr n", "execute MULTI")
    assert ask(app, path, *lines, address=address) == ["ok", str(TEN_MEGABYTES), "1", "+'OK'"]
    assert ask(app, path, "incr n", address=address) == ["2"]
    assert ask(app, path, "get big", address=address)[0].startswith(f"{TEN_MEGABYTES} bytes")
    [denied] = ask(app, path, "get n", address="redis://:s3cret@cache.example")
    assert denied.startswith("error")
    [away] = ask(app, path, "get n", address="redis://:s3cret@localhost:1")
    assert away.startswith("error")
    assert app.stop() == 0
    assert 'needs allowed_outbound_hosts = ["redis://cache.example"]' in app.log
    assert "s3cret" not in app.log


def test_connections_end_with_the_app(node: Node, image: str, server: Server) -> None:
    app = node.run(image)
    address = f"redis://{server.address}"
    assert ask(app, "/redis/v1", "get n", address=address) == ["''"]
    assert len(redis(server, "CLIENT", "LIST").splitlines()) == 2
    assert app.stop() == 0
    eventually(lambda: len(redis(server, "CLIENT", "LIST").splitlines()) == 1)


def test_many_guests_wait_at_once(node: Node, image: str, server: Server) -> None:
    """Each has two connections of the 1024 files that ctr allows a container."""
    app = node.run(image, env={"SPIN_HTTP_WORKERS": "1", "SPIN_MAX_INSTANCE_COUNT": "400"})
    address = f"redis://{server.address}"

    def wait(_: int) -> bool:
        return ask(app, "/redis/v1", "execute BLPOP nothing 0.2", address=address) == ["nil"]

    with ThreadPoolExecutor(400) as pool:
        assert all(pool.map(wait, range(400)))
    assert app.stop() == 0


# Key-value stores


@pytest.mark.parametrize("label", ["default", "cache", "memory"])
def test_guest_uses_a_store(node: Node, image: str, label: str) -> None:
    app = node.run(image, env={"SPIN_HTTP_WORKERS": "1"})
    lines = (f"open {label}", "set k v", f"set big @{TEN_MEGABYTES}", "get k", "exists no")
    assert ask(app, "/store/v1", *lines) == ["0", "ok", "ok", "'v'", "no"]
    [_, big, keys] = ask(app, "/store/v1", f"open {label}", "get big", "get-keys")
    assert big.startswith(f"{TEN_MEGABYTES} bytes")
    assert sorted(keys.split()) == ["'big'", "'k'"]
    assert app.stop() == 0


def test_readonly_rootfs_without_a_volume(node: Node, image: str) -> None:
    """The app serves, and the error says what to do."""
    app = node.run(image, "--read-only")
    [_, answer] = ask(app, "/store/v1", "open default", "set k v")
    assert answer == (
        "error 5 key-value store 'default' in /.spin/sqlite_key_value.db cannot be opened: "
        "Read-only file system: mount a volume at /.spin, or say where one is with state_dir or "
        "path in the runtime configuration"
    )
    assert ask(app, "/store/v1", "open memory", "set k v", "get k")[2] == "'v'"
    assert app.stop() == 0


def test_volume_outlasts_the_app(node: Node, image: str, tmp_path: Path) -> None:
    first = node.run(image, "--read-only", *volume(tmp_path))
    assert ask(first, "/store/v1", "open default", "set k v") == ["0", "ok"]
    assert first.stop("SIGKILL") == 137
    second = node.run(image, "--read-only", *volume(tmp_path))
    assert ask(second, "/store/v1", "open default", "get k") == ["0", "'v'"]
    assert second.stop() == 0
    assert [file.name for file in tmp_path.iterdir()] == ["sqlite_key_value.db"]


def test_workers_and_pods_share_a_file(node: Node, image: str, tmp_path: Path) -> None:
    apps = [node.run(image, *volume(tmp_path), env={"SPIN_HTTP_WORKERS": "2"}) for _ in range(2)]

    def write(number: int) -> bool:
        lines = ("open default", f"set key-{number} @{number}")
        return ask(apps[number % 2], "/store/v1", *lines) == ["0", "ok"]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(write, range(200)))
    for app in apps:
        [_, keys] = ask(app, "/store/v1", "open default", "get-keys")
        assert len(keys.split()) == 200
        assert app.stop() == 0


# The images


def test_image_of_the_redis_trigger(
    node: Node, example_image: Callable[[str], str], server: Server
) -> None:
    app = node.run(
        example_image("spin-redis-hello"), env={"SPIN_VARIABLE_REDIS_HOST": server.address}
    )
    eventually(published(server, "Grüezi"), "the app listens")
    eventually(lambda: "Hello from Redis: Grüezi\n" in app.log, "the message is handled")
    assert published(server, "")()
    eventually(lambda: "returned an error" in app.log, "the guest's error is told")
    server.stop()
    eventually(lambda: "tried again" in app.log, "the app sees that the server is away")
    server.start()
    eventually(published(server, "again"), "the app listens again")
    eventually(lambda: "Hello from Redis: again\n" in app.log, "the message is handled")
    assert app.stop() == 0


def test_image_of_outbound_redis(
    node: Node, example_image: Callable[[str], str], server: Server
) -> None:
    """Its messages reach the other image."""
    env = {"SPIN_VARIABLE_REDIS_HOST": server.address}
    app = node.run(example_image("spin-outbound-redis"), env=env)
    hello = node.run(example_image("spin-redis-hello"), env=env)
    assert [app.get("/visits").text for _ in range(3)] == ["1\n", "2\n", "3\n"]
    assert app.get("/note").status == 404
    assert app.get("/note", method="PUT", body=b"a\0b").text == "kept\n"
    assert app.get("/note").body == b"a\0b"
    assert app.get("/nothing").status == 404
    eventually(published(server, "first"), "the other app listens")
    assert app.get("/messages", method="POST", body=b"from the app").text == "published\n"
    eventually(lambda: "Hello from Redis: from the app\n" in hello.log, "the message is handled")
    server.stop()
    assert app.get("/visits").status == 502
    server.start()
    assert app.get("/visits").text == "1\n"
    assert (app.stop(), hello.stop()) == (0, 0)


def test_image_of_key_value(node: Node, example_image: Callable[[str], str]) -> None:
    app = node.run(example_image("spin-key-value"))
    assert app.get("/a").status == 404
    assert app.get("/a", method="HEAD").status == 404
    assert app.get("/a", method="PUT", body=b"one").text == "kept\n"
    assert app.get("/b?x", method="PUT", body=bytes(TEN_MEGABYTES)).text == "kept\n"
    assert app.get("/a").body == b"one"
    assert app.get("/b").body == bytes(TEN_MEGABYTES)
    assert app.get("/a", method="HEAD").status == 200
    assert sorted(app.get("/").text.split()) == ["a", "b"]
    assert app.get("/a", method="DELETE").text == "removed\n"
    assert app.get("/").text == "b\n"
    assert app.get("/a", method="POST").status == 405
    assert app.stop() == 0
