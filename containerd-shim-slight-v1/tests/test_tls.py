"""Servers that speak TLS: whose certificate is trusted, and for which name, as guests find out."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import Response, fetch
from containerd_shimkit.testing.servers.etcd import running_etcd
from containerd_shimkit.testing.servers.http import answering, http_server, response
from containerd_shimkit.testing.servers.nats import running_nats
from containerd_shimkit.testing.servers.postgres import (
    DATABASE,
    PASSWORD,
    USER,
    postgres_url,
    running_postgres,
)
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.redis import running_tls_redis
from containerd_shimkit.testing.servers.tls import Authority, Certificate, certificate_authority

Image = Any  # of conftest.py
Address = tuple[str, int]

HEAD = 'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "api"\n'
REFUSED = "its certificate or its TLS is not accepted"
UNVERIFIED = "certificate verify failed"


@dataclass(frozen=True)
class Kind:
    """A backend and its server."""

    resource: str
    guest: str
    configs: str
    """``{0}`` is the server's address."""
    run: Callable[[Certificate, Address], AbstractContextManager[Server]]
    ask: Callable[[int], Coroutine[Any, Any, Response]]
    """A call that is answered with less than 300 if it can be made."""
    refusal: str

    def slightfile(self, address: Address) -> str:
        configs = self.configs.format("{}:{}".format(*address))
        return (
            f'{HEAD}[[capability]]\nresource = "{self.resource}"\nname = "box"\n'
            f"[capability.configs]\n{configs}\n"
        )


KINDS = [
    Kind(
        "keyvalue.redis",
        "probe",
        'REDIS_ADDRESS = "rediss://{0}"',
        lambda made, address: running_tls_redis(str(made.cert), str(made.key), address),
        lambda port: fetch(port, "/kv/box/key/", method="PUT", body=b"x"),
        UNVERIFIED,
    ),
    Kind(
        "sql.postgres",
        "sql",
        f'POSTGRES_CONNECTION_URL = "postgres://{USER}:{PASSWORD.replace(" ", "%20")}@{{0}}'
        f'/{DATABASE}?sslmode=verify-full"',
        lambda made, address: running_postgres(certificate=(made.cert, made.key), address=address),
        lambda port: fetch(port, "/query", method="PUT", body=b"SELECT 1 AS one"),
        REFUSED,
    ),
    Kind(
        "distributed_locking.etcd",
        "locking",
        'ETCD_ENDPOINT = "https://{0}"',
        running_etcd,
        lambda port: fetch(port, "/current/lock/1", method="PUT", body=b"name"),
        REFUSED,
    ),
    Kind(
        "messaging.nats",
        "messaging",
        'NATS_URL = "tls://{0}"',
        lambda made, address: running_nats(certificate=made, address=address),
        lambda port: fetch(port, "/topic/box/t/", method="POST"),
        REFUSED,
    ),
    Kind(
        "messaging.nats",
        "messaging",
        'NATS_URL = "nats://{0}"',  # the server asks for TLS
        lambda made, address: running_nats(certificate=made, address=address),
        lambda port: fetch(port, "/topic/box/t/", method="POST"),
        REFUSED,
    ),
]


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with certificate_authority() as made:
        yield made


@pytest.fixture(scope="module")
def other_authority() -> Iterator[Authority]:
    with certificate_authority() as made:
        yield made


def name_of(kind: Kind) -> str:
    return f"{kind.resource}-{kind.configs.partition('://')[0].partition(chr(34))[2]}"


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_whom_the_app_trusts(
    image: Image, authority: Authority, other_authority: Authority, kind: Kind
) -> None:
    address = free_address()
    image.guest(kind.guest)
    image.slightfile(kind.slightfile(address).replace('name = "box"', name_in_guest(kind)))

    async def accepted(port: int) -> None:
        answer = await kind.ask(port)
        assert answer.status < 300, answer.text

    async def refused(port: int) -> None:
        answer = await kind.ask(port)
        assert answer.status == 418
        assert kind.refusal in answer.text
        assert "{}:{}".format(*address) in answer.text
        assert PASSWORD.split()[0] not in answer.text

    made = authority.issue(f"good-{address[1]}", f"IP:{address[0]}")
    with kind.run(made, address):
        image.run(accepted, SSL_CERT_FILE=str(authority.cert))
        image.sockets.clear()
        image.run(refused, SSL_CERT_FILE=str(other_authority.cert))
        image.sockets.clear()
    made = authority.issue(f"bad-{address[1]}", "DNS:other.example", "IP:127.255.255.254")
    with kind.run(made, address):
        image.run(refused, SSL_CERT_FILE=str(authority.cert))


def name_in_guest(kind: Kind) -> str:
    return {"sql": 'name = "db"', "locking": 'name = "locks"'}.get(kind.guest, 'name = "box"')


@pytest.mark.parametrize(
    ("trusted", "host", "reason"),
    [(True, "", ""), (False, "", "local issuer"), (True, "other.example", "mismatch")],
)
def test_http_client(
    image: Image,
    authority: Authority,
    other_authority: Authority,
    trusted: bool,
    host: str,
    reason: str,
) -> None:
    address = free_address()
    made = authority.issue(f"http-{address[1]}", f"DNS:{host}" if host else f"IP:{address[0]}")
    image.guest("client")
    image.slightfile(f'{HEAD}[[capability]]\nresource = "http-client"\nname = "c"\n')

    async def main(port: int) -> None:
        answer = answering(lambda _: response(200, b"x"))
        async with http_server(answer, made.server_context(), address) as server:
            found = await fetch(port, "/0", method="PUT", headers=[("x-url", server.url)])
            if reason:
                assert found.status == 418
                refused = f"4 GET {server.url}: the server's certificate is not accepted: "
                assert found.text.startswith(refused)
                assert reason in found.text
                assert server.requests == []
            else:
                assert (found.status, found.text) == (200, "x")

    used = authority if trusted else other_authority
    image.run(main, SSL_CERT_FILE=str(used.cert))


@pytest.mark.parametrize("trusted", [True, False])
def test_services_of_clouds(
    image: Image, authority: Authority, other_authority: Authority, trusted: bool
) -> None:
    """All of them are asked in the same way; this one is App Configuration."""
    address = free_address()
    made = authority.issue(f"cloud-{address[1]}", f"IP:{address[0]}")
    image.slightfile(f'{HEAD}[[capability]]\nresource = "configs.azapp"\nname = "env"\n')

    async def main(port: int) -> None:
        answer = answering(lambda _: response(200, b'{"value": "x"}'))
        async with http_server(answer, made.server_context(), address) as server:
            found = await fetch(port, "/config/key")
            if trusted:
                assert (found.status, found.text) == (200, "x")
            else:
                assert found.status == 418
                assert found.text.startswith(f"3 {server.url} cannot be asked: ")
                assert "certificate verify failed" in found.text

    used = authority if trusted else other_authority
    env = {
        "AZAPPCONFIG_ENDPOINT": "https://{}:{}".format(*address),
        "AZAPPCONFIG_KEYID": "id",
        "AZAPPCONFIG_KEYSECRET": "c2VjcmV0",
        "SSL_CERT_FILE": str(used.cert),
    }
    image.run(main, **env)


def test_postgres_server_without_tls(image: Image) -> None:
    image.guest("sql")
    with running_postgres() as server, certificate_authority() as authority:
        text = postgres_url(server, options="?sslmode=require")
        image.slightfile(
            f'{HEAD}[[capability]]\nresource = "sql.postgres"\nname = "db"\n'
            f'[capability.configs]\nPOSTGRES_CONNECTION_URL = "{text}"\n'
        )

        async def main(port: int) -> None:
            answer = await fetch(port, "/query", method="PUT", body=b"SELECT 1")
            assert (answer.status, answer.text) == (418, f"3 {server.address}: it has no TLS")

        image.run(main, SSL_CERT_FILE=str(authority.cert))


def test_nats_server_without_tls_is_told_no_password(image: Image) -> None:
    image.guest("messaging")
    users = 'authorization { user: ann, password: "s3cret" }'
    with running_nats(users) as server, certificate_authority() as authority:
        image.slightfile(
            f'{HEAD}[[capability]]\nresource = "messaging.nats"\nname = "box"\n'
            f'[capability.configs]\nNATS_URL = "tls://ann:s3cret@{server.address}"\n'
        )

        async def main(port: int) -> None:
            answer = await fetch(port, "/topic/box/t/", method="POST")
            assert (answer.status, answer.text) == (418, f"3 {server.address}: it has no TLS")

        image.run(main, SSL_CERT_FILE=str(authority.cert))
