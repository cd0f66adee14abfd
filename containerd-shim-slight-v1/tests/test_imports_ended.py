"""Backends in a process that cannot import anything, as those of containers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.servers.etcd import running_etcd
from containerd_shimkit.testing.servers.http import Received, answering, http_server, response
from containerd_shimkit.testing.servers.kafka import running_kafka
from containerd_shimkit.testing.servers.mosquitto import running_mosquitto
from containerd_shimkit.testing.servers.nats import running_nats
from containerd_shimkit.testing.servers.postgres import postgres_url, running_postgres
from containerd_shimkit.testing.servers.redis import running_tls_redis
from containerd_shimkit.testing.servers.tls import Authority, certificate_authority
from ended import HTTP, capability, use_without_imports
from nats_keys import USER, Operator, Signer

MESSAGES = """\
box = services.backend("messaging", "it")
token = await box.subscribe("it", "topic")
await box.publish("it", "topic", b"message")
while not (message := await box.receive("it", token)):
    pass
return message.decode()
"""
FAILURE = """\
try:
    await services.backend("messaging", "it").publish("it", "topic", b"message")
except CapabilityError as exc:
    return exc.case
"""


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with certificate_authority() as made:
        yield made


def test_mqtt() -> None:
    with running_mosquitto() as server:
        text = capability(
            "messaging.mosquitto", MOSQUITTO_HOST=server.host, MOSQUITTO_PORT=str(server.port)
        )
        assert asyncio.run(use_without_imports(text, MESSAGES)) == "message"
        server.stop()
        assert asyncio.run(use_without_imports(text, FAILURE)) == "service-unavailable"


def test_nats_with_credentials() -> None:
    operator = Operator()
    with running_nats(*operator.lines) as server:
        url = f"nats://{server.address}"
        text = capability(
            "messaging.nats", NATS_URL=url, NATS_CREDS=operator.credentials(operator.user.seed)
        )
        assert asyncio.run(use_without_imports(text, MESSAGES)) == "message"
        text = capability(
            "messaging.nats", NATS_URL=url, NATS_CREDS=operator.credentials(Signer(USER).seed)
        )
        assert asyncio.run(use_without_imports(text, FAILURE)) == "insufficient-permissions"
        server.stop()
        assert asyncio.run(use_without_imports(text, FAILURE)) == "service-unavailable"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_kafka(authority: Authority, mechanism: str) -> None:
    host, port = free_address()
    own = authority.issue("kafka", f"IP:{host}")
    with running_kafka(
        users={"ann": "right"}, mechanism=mechanism, certificate=own, address=(host, port)
    ) as server:

        def with_password(password: str) -> str:
            return capability(
                "messaging.confluent_apache_kafka",
                CAK_ENDPOINT=server.address,
                CAK_SECURITY_PROTOCOL="SASL_SSL",
                CAK_SASL_MECHANISMS=mechanism,
                CAK_SASL_USERNAME="ann",
                CAK_SASL_PASSWORD=password,
                CAK_GROUP_ID="group",
            )

        trusted = {"SSL_CERT_FILE": str(authority.cert)}

        async def use() -> None:
            text = with_password("right")
            assert await use_without_imports(text, MESSAGES, **trusted) == "message"
            refused = await use_without_imports(with_password("wrong"), FAILURE, **trusted)
            assert refused == "insufficient-permissions"
            await asyncio.to_thread(server.stop)
            away = await use_without_imports(text, FAILURE, **trusted)
            assert away == "service-unavailable"

        asyncio.run(use())


def test_etcd() -> None:
    body = """\
locks = services.backend("distributed_locking", "it")
key = await locks.lock(b"name", 60)
await locks.unlock(key)
try:
    await locks.unlock(key)
except CapabilityError as exc:
    return exc.case
"""
    with running_etcd() as server:
        text = capability("distributed_locking.etcd", ETCD_ENDPOINT=server.address)
        assert asyncio.run(use_without_imports(text, body)) == "invalid-lock-id"


def test_postgres_by_tls(authority: Authority) -> None:
    body = """\
database = services.backend("sql", "it")
await database.execute(Statement("create table t (n numeric, d date, j jsonb)", ()))
insert = "insert into t values ($1, '2024-02-29', '{}')"
await database.execute(Statement(insert, ("1.5",)))
fields = await database.query(Statement("select * from t", ()))
try:
    await database.query(Statement("select", ("1",)))
except CapabilityError as exc:
    return [fields[0][1][1], exc.case]
"""
    own = authority.issue("postgres", "DNS:localhost")
    with running_postgres(certificate=(own.cert, own.key), localhost=True) as server:
        url = postgres_url(server, options="?sslmode=require").replace(server.host, "localhost")
        text = capability("sql.postgres", POSTGRES_CONNECTION_URL=url)
        found = asyncio.run(use_without_imports(text, body, SSL_CERT_FILE=str(authority.cert)))
        assert found == ["1.5", "unexpected-error"]


def test_redis_by_tls(authority: Authority) -> None:
    body = """\
store = services.backend("keyvalue", "it")
await store.set("it", "key", b"value")
return [(await store.get("it", "key")).decode(), await store.keys("it")]
"""
    host, port = free_address()
    own = authority.issue("redis", f"IP:{host}")
    with running_tls_redis(str(own.cert), str(own.key), (host, port)) as server:
        text = capability("keyvalue.redis", REDIS_ADDRESS=f"rediss://{server.address}")
        found = asyncio.run(use_without_imports(text, body, SSL_CERT_FILE=str(authority.cert)))
        assert found == ["value", ["key"]]


def test_http_client_by_tls(authority: Authority) -> None:
    body = """\
answer = await services.http_client.request("PUT", environment["URL"], [], b"body")
try:
    await services.http_client.request("GET", "https://no-such-host.invalid/", [], b"")
except CapabilityError as exc:
    return [answer.status, answer.body.decode(), exc.case]
"""

    def echo(request: Received) -> bytes:
        return response(200, request.body)

    async def main() -> None:
        host, port = free_address()
        tls = authority.issue("http", f"IP:{host}").server_context()
        async with http_server(answering(echo), tls, (host, port)) as server:
            found = await use_without_imports(
                f'{HTTP}[[capability]]\nresource = "http-client"\nname = "it"\n',
                body,
                URL=server.url,
                SSL_CERT_FILE=str(authority.cert),
            )
        assert found == [200, "body", "unexpected-error"]

    asyncio.run(main())
