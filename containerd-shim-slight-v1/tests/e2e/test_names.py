"""Servers by name, through containerd: found by the container's /etc/hosts, and TLS for the name.

``ctr run --net-host`` mounts the node's file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import Node, free_address
from containerd_shimkit.testing.servers.etcd import running_etcd
from containerd_shimkit.testing.servers.mosquitto import running_mosquitto
from containerd_shimkit.testing.servers.nats import running_nats
from containerd_shimkit.testing.servers.postgres import DATABASE, PASSWORD, USER, running_postgres
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.redis import running_tls_redis
from containerd_shimkit.testing.servers.tls import Authority, Certificate, certificate_authority

pytestmark = [pytest.mark.root, pytest.mark.containerd]

GUESTS = Path(__file__).parents[1] / "guests"
NAME = "localhost"
Address = tuple[str, int]
HEAD = 'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "api"\n'


@dataclass(frozen=True)
class Call:
    """A guest and what it is asked to do with a server."""

    guest: str
    resource: str
    name: str
    configs: str
    """``{0}`` is the server's name and port."""
    run: Callable[[Certificate, Address], AbstractContextManager[Server]]
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


CALLS = [
    Call(
        *("probe", "keyvalue.redis", "box", 'REDIS_ADDRESS = "rediss://{0}"'),
        lambda made, place: running_tls_redis(str(made.cert), str(made.key), place),
        *("PUT", "/kv/box/key/", b"value"),
    ),
    Call(
        *("sql", "sql.postgres", "db"),
        f'POSTGRES_CONNECTION_URL = "postgres://{USER}:{quote(PASSWORD)}@{{0}}/{DATABASE}'
        '?sslmode=verify-full"',
        lambda made, place: running_postgres(certificate=(made.cert, made.key), address=place),
        *("PUT", "/query", b"SELECT 1 AS one"),
    ),
    Call(
        *("locking", "distributed_locking.etcd", "locks", 'ETCD_ENDPOINT = "https://{0}"'),
        running_etcd,
        *("PUT", "/current/lock/1", b"name"),
    ),
    Call(
        *("messaging", "messaging.nats", "box", 'NATS_URL = "tls://{0}"'),
        lambda made, place: running_nats(certificate=made, address=place),
        *("POST", "/topic/box/topic/"),
    ),
    Call(
        *("messaging", "messaging.mosquitto", "box"),
        f'MOSQUITTO_HOST = "{NAME}"\nMOSQUITTO_PORT = "{{1}}"',
        lambda _, place: running_mosquitto(address=place),
        *("POST", "/topic/box/topic/"),
    ),
    Call(
        *("client", "http-client", "client", 'ALLOWED_HOSTS = "https://{0}"'),
        running_etcd,
        *("PUT", "/0"),
        headers={"x-url": "https://{0}/health"},
    ),
]


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with certificate_authority() as made:
        yield made


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.resource)
def test_server_by_name(node: Node, authority: Authority, call: Call) -> None:
    made = authority.issue(call.resource, f"DNS:{NAME}")
    with call.run(made, ("127.0.0.1", free_address()[1])) as server:
        place = f"{NAME}:{server.port}"
        configs = call.configs.format(place, server.port)
        slightfile = (
            f'{HEAD}[[capability]]\nresource = "{call.resource}"\nname = "{call.name}"\n'
            f"[capability.configs]\n{configs}\n"
        )
        image = node.image(
            [
                ImageFile("slightfile.toml", slightfile.encode()),
                ImageFile("app.wasm", (GUESTS / f"{call.guest}.wasm").read_bytes()),
                ImageFile("ca.pem", authority.cert.read_bytes()),
            ]
        )
        app = node.run(image, env={"SSL_CERT_FILE": "/ca.pem"})
        answer = app.get(
            call.path,
            method=call.method,
            body=call.body,
            headers={n: v.format(place) for n, v in call.headers.items()},
        )
        assert answer.status < 300, (answer.text, app.log)
        assert app.stop() == 0, app.log
