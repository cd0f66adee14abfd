"""Kinds of requests, and what has to come of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final

from containerd_shimkit.testing.http import Response
from containerd_shimkit.testing.servers.mariadb import mysql_url
from containerd_shimkit.testing.servers.postgres import postgres_url
from spin_load.app import redis_url
from spin_load.servers import MQTT_PASSWORD, MQTT_USER, Servers

# More words than the guests take in a line: they abort, with whatever they have open.
TRAP: Final = "trap" + " now" * 20
FIELDS_TRAP: Final = "trap" + "\tnow" * 40


@dataclass(frozen=True)
class Kind:
    """A request, and its answer."""

    name: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    """``{number}`` here, or in a header's value, is another number in each request."""
    status: int | None = 200
    """None: the client leaves while the guest waits."""
    answer: str | None = None
    """What the body begins with."""
    every: int = 1
    """It is made in one of so many rounds."""

    def check(self, response: Response) -> None:
        """Raises AssertionError."""
        assert response.status == self.status, (self.name, response)
        if self.answer is not None:
            assert response.body.startswith(self.answer.encode()), (self.name, response)


SLEEPING: Final = Kind("sleep, deadline", "/probe/sleep?ms=60000", status=504)


def all_kinds(servers: Servers) -> list[Kind]:
    """Return one of each."""
    return list(
        chain(
            _probe(),
            _http(servers),
            _redis(servers),
            _key_value(),
            _databases(servers),
            _sqlite(),
            _variables(),
            _mqtt(servers),
            _llm(),
        )
    )


def quick(kinds: Sequence[Kind]) -> list[Kind]:
    """Return those that succeed, and wait for no other guest."""
    return [kind for kind in kinds if kind.name.endswith("ok")]


def connecting(kinds: Sequence[Kind]) -> list[Kind]:
    """Return one of each for which a guest waits on a server, without an end."""
    alone = ("sleep", "sqlite")
    return [kind for kind in kinds if kind.status == 504 and not kind.name.startswith(alone)]


def _waiting(
    name: str, path: str, headers: Mapping[str, str], body: str = "", every: int = 1
) -> list[Kind]:
    """Return requests for which a guest waits until its deadline, whoever else waits."""
    return [
        Kind(f"{name}, deadline", path, headers, body, status=504, every=every),
        Kind(f"{name}, client leaves", path, headers, body, status=None, every=every),
    ]


def _probe() -> list[Kind]:
    return [
        Kind("hello ok", "/probe/echo", body="hello", answer="hello"),
        Kind("trap", "/probe/trap", status=500),
        Kind("exit", "/probe/exit?code=3", status=500),
        Kind("bad response", "/probe/bad-body-pointer", status=500),
        SLEEPING,
        replace(SLEEPING, name="sleep, client leaves", status=None),
    ]


def _http(servers: Servers) -> list[Kind]:
    def ask(name: str, url: str, answer: str = "200\n", body: str = "") -> Kind:
        headers = {"x-url": url, "x-method": "POST" if body else "GET", "x-abi": "v1.5"}
        return Kind(f"http, {name}", "/http/", headers, body, answer=answer)

    def wait(name: str, url: str) -> list[Kind]:
        return _waiting(f"http, {name}", "/http/", {"x-url": url})

    url = servers.http.url
    mute = "{}:{}".format(*servers.mute)
    return [
        ask("get ok", f"{url}/"),
        ask("post ok", f"{url}/", body="x" * 10_000),
        ask("redirect ok", f"{url}/moved"),
        # Not where something is sent by POST, which is not made again on another connection.
        ask("closed after it ok", f"{servers.https.url}/once"),
        ask("down", "http://{}:{}/".format(*servers.down), "error 4"),
        ask("rude", "http://{}:{}/".format(*servers.rude), "error 4"),
        ask("denied", "http://{}:{}/".format(*servers.denied), "error 1"),
        ask("no url", "http:///", "error 2"),
        ask("tls ok", f"{servers.https.url}/big"),
        ask("refused certificate", f"{servers.forged.url}/", "error 4"),
        ask("cut", f"{url}/cut", "error 4"),
        ask("garbage", f"{url}/garbage", "error 4"),
        *wait("no answer", f"{url}/wait"),
        *wait("half a body", f"{url}/part"),
        *wait("mute", f"http://{mute}/"),
        *wait("no handshake", f"https://{mute}/"),
        ask("within the app ok", "http://probe.spin.internal/echo", body="hello"),
        ask("trap within the app", "http://probe.spin.internal/trap", "500\n"),
        *wait("wait within the app", "http://redis-wait.spin.internal/wait/none/60"),
    ]


def _redis(servers: Servers) -> list[Kind]:
    def ask(name: str, *lines: str, url: str = "", path: str = "/redis/") -> Kind:
        headers = {"address": url or redis_url(servers)}
        *calls, answer = lines
        return Kind(f"redis, {name}", path, headers, "\n".join(calls), answer=answer)

    def wait(name: str, url: str, *lines: str) -> list[Kind]:
        return _waiting(f"redis, {name}", "/redis/", {"address": url}, "\n".join(lines))

    def url(address: tuple[str, int], scheme: str = "redis") -> str:
        return f"{scheme}://:secret@{address[0]}:{address[1]}"

    own = redis_url(servers)
    forged = f"{servers.forged.host}:{servers.forged.port}"
    trap = Kind("redis, trap", "/redis/", {"address": own}, f"execute MULTI\n{TRAP}", status=500)
    return [
        ask("get ok", "set k v", "get k", "ok\n'v'"),
        ask("large value ok", "set large @100000", "get large", "ok\n100000 bytes"),
        ask("many connections ok", *[f"open {own}"] * 5, "1\n2\n3\n", path="/v2"),
        ask("leaves a transaction ok", "execute MULTI", "execute SET k other", "+'OK'"),
        ask("other database ok", "execute SELECT 3", "+'OK'"),
        ask("wrong type", "sadd set 1", "get set", ""),
        ask("no command", "execute NOTHING", "error "),
        ask("wrong password", "get k", "error ", url=redis_url(servers, "wrong")),
        ask("down", "get k", "error ", url=url(servers.down)),
        ask("denied", "get k", "error ", url=url(servers.denied)),
        ask("rude", "get k", "error ", url=url(servers.rude)),
        ask("refused certificate", "get k", "error ", url=f"rediss://{forged}"),
        trap,
        *wait("no value", own, "execute BLPOP none 60"),
        *wait("no value in a state of its own", own, "execute SELECT 2", "execute BLPOP none 60"),
        *wait("mute", url(servers.mute), "get k"),
        *wait("no handshake", url(servers.mute, "rediss"), "get k"),
        *wait("no tls", f"rediss://{servers.redis.address}", "get k"),
    ]


def _key_value() -> list[Kind]:
    def ask(name: str, *lines: str, path: str = "/key-value/", status: int = 200) -> Kind:
        *calls, answer = lines
        return Kind(f"key-value, {name}", path, body="\n".join(calls), status=status, answer=answer)

    # A key of its own: there is one store for all, and others delete theirs meanwhile.
    uses = ("set k{number} v", "get k{number}", "exists k{number}", "delete k{number}")
    done = "ok\n'v'\nyes\nok"
    return [
        ask("file ok", "open default", "set shared v", "exists shared", "0\nok\nyes"),
        ask("memory ok", "open memory", *uses, f"0\n{done}"),
        ask("redis ok", "open cache", "set shared v", "exists shared", "0\nok\nyes"),
        ask("many handles ok", *["open default"] * 5, "0\n1\n2\n", path="/v1.5"),
        ask("no such store", "open nothing", "error "),
        ask("no such handle", "use 77", "get k", "ok\nerror "),
        ask("down", "open away", "get k", "0\nerror "),
        ask("trap", "open default", "open cache", "set k v", TRAP, "", status=500),
        *_waiting("key-value, mute", "/key-value/", {}, "open mute\nget k"),
    ]


def _databases(servers: Servers) -> list[Kind]:
    return [
        *_database(
            "pg",
            servers,
            postgres_url(servers.postgres, options="?sslmode=disable"),
            postgres_url(servers.postgres, password="wrong", options="?sslmode=disable"),
            postgres_url(servers.postgres, options="?sslmode=require"),
            "SELECT pg_sleep(60)",
        ),
        *_database(
            "mysql",
            servers,
            mysql_url(servers.mariadb),
            mysql_url(servers.mariadb, password="wrong"),
            mysql_url(servers.mariadb, options="?ssl-mode=REQUIRED"),
            "SELECT SLEEP(60)",
        ),
    ]


def _database(
    what: str, servers: Servers, url: str, wrong: str, untrusted: str, wait: str
) -> list[Kind]:
    """url, wrong, untrusted: the server, with a wrong password, by TLS.  wait: a statement."""
    scheme = url.partition("://")[0]
    begin = ["execute\tBEGIN", "execute\tINSERT INTO t VALUES (1)"]
    create = "execute\tCREATE TEMPORARY TABLE t (n int)"

    def ask(name: str, address: str, *lines: str, path: str = "v1") -> Kind:
        *calls, answer = lines
        body = "\n".join(calls)
        return Kind(f"{what}, {name}", f"/{what}/{path}", {"address": address}, body, answer=answer)

    def waiting(name: str, address: str, *lines: str) -> list[Kind]:
        headers = {"address": address}
        return _waiting(f"{what}, {name}", f"/{what}/v1.5", headers, "\n".join(lines))

    def at(address: tuple[str, int]) -> str:
        return f"{scheme}://user:secret@{address[0]}:{address[1]}/db"

    select = "query\tSELECT 7"
    return [
        ask("query ok", url, select, ""),
        ask("leaves a transaction ok", url, create, *begin, ""),
        ask("many connections", url, *[f"open\t{url}"] * 4, "1\n2\n3\n4\n", path="v2"),
        ask("bad statement", url, "query\tSELEC", "error 3"),
        ask("bad parameter", url, "query\tSELECT 1\tint32:1", "error "),
        ask("wrong password", wrong, select, "error 1"),
        ask("refused certificate", untrusted, select, "error 1"),
        ask("down", at(servers.down), select, "error 1"),
        ask("denied", at(servers.denied), select, "error 1"),
        Kind(
            f"{what}, trap in a transaction",
            f"/{what}/v1",
            {"address": url},
            "\n".join([create, *begin, FIELDS_TRAP]),
            status=500,
        ),
        *waiting("slow statement", url, f"query\t{wait}"),
        *waiting("slow statement in a transaction", url, create, *begin, f"query\t{wait}"),
        *waiting("mute", at(servers.mute), select),
    ]


def _sqlite() -> list[Kind]:
    def ask(name: str, *lines: str, status: int = 200) -> Kind:
        *calls, answer = lines
        return Kind(
            f"sqlite, {name}", "/sqlite/v1", body="\n".join(calls), status=status, answer=answer
        )

    create = "execute\tCREATE TABLE IF NOT EXISTS t (n)"
    begin = ["execute\tBEGIN IMMEDIATE", "execute\tINSERT INTO t VALUES (1)"]
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    return [
        ask("query ok", "open\tdefault", create, "execute\tSELECT 7", "0\n\n7; 0:7"),
        ask("memory ok", "open\tmemory", create, "execute\tSELECT count(*) FROM t", "0\n\n"),
        ask("many handles ok", *["open\tdefault"] * 5, "0\n1\n2\n"),
        ask("leaves a transaction", "open\tdefault", create, *begin, "0\n"),
        ask("bad statement", "open\tdefault", "execute\tSELEC", "0\nerror 4"),
        ask("denied", "open\tother", "error 1"),
        ask("trap in a transaction", "open\tdefault", create, *begin, FIELDS_TRAP, "", status=500),
        *_waiting("sqlite, endless", "/sqlite/v1", {}, f"open\tmemory\nexecute\t{endless}", 10),
    ]


def _variables() -> list[Kind]:
    return [
        Kind("variables, ok", "/variables/known", answer="ok value"),
        Kind("variables, undefined", "/variables/unknown", answer="error 1"),
    ]


def _mqtt(servers: Servers) -> list[Kind]:
    def headers(address: str, password: str = MQTT_PASSWORD) -> dict[str, str]:
        return {
            "address": f"mqtt://{address}",
            "username": MQTT_USER,
            "password": password,
            "keep-alive": "30",
            "topic": "t",
            "qos": "1",
        }

    def ask(name: str, address: str, answer: str, *, path: str = "/mqtt/", **more: str) -> Kind:
        sent = headers(address, **more)
        return Kind(f"mqtt, {name}", path, sent, "payload", answer=answer)

    own = servers.mosquitto.address
    mute = "{}:{}".format(*servers.mute)
    return [
        ask("publish ok", own, "ok"),
        ask("dropped", own, "publish: error", path="/dropped"),
        ask("wrong password", own, "publish: error", password="wrong"),
        ask("down", "{}:{}".format(*servers.down), "publish: error"),
        ask("rude", "{}:{}".format(*servers.rude), "publish: error"),
        ask("denied", "{}:{}".format(*servers.denied), "open: error"),
        # Whoever logs in alike waits for the same connection, which may have begun long ago.
        *_waiting("mqtt, mute", "/mqtt/", headers(f"{mute}?client_id={{number}}")),
    ]


def _llm() -> list[Kind]:
    path, model = "/llm/", {"x-model": "model"}
    return [
        Kind("llm, ok", path, model, "Say", answer="ok 1 1 Say"),
        Kind("llm, denied", path, {"x-model": "other"}, "Say", answer="error "),
        *_waiting("llm, no answer", path, model, "wait"),
    ]
