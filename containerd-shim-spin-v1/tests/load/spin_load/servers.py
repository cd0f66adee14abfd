"""The servers that the app calls: real ones, and some that do what no good server does."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import uvloop

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.servers.http import HttpServer, Received, http_server, response
from containerd_shimkit.testing.servers.mariadb import running_mariadb
from containerd_shimkit.testing.servers.mosquitto import running_mosquitto
from containerd_shimkit.testing.servers.postgres import running_postgres
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.redis import running_redis
from containerd_shimkit.testing.servers.tls import Authority, certificate_authority

REDIS_PASSWORD: Final = "redis-secret"
MQTT_USER: Final = "publisher"
MQTT_PASSWORD: Final = "mqtt-secret"

_LISTENING, _TIME_WAIT = "0A", "06"  # include/net/tcp_states.h
_SECONDS: Final = 20.0

T = TypeVar("T")
_Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Servers:
    """All of them; each address is of one server only."""

    authority: Authority
    """Whom the app trusts."""
    redis: Server
    postgres: Server
    mariadb: Server
    """Both have TLS, too, with a certificate that nobody trusts."""
    mosquitto: Server
    http: HttpServer
    """Does what the path says, and answers as a model's server."""
    https: HttpServer
    """The same with a certificate of ``authority``."""
    forged: HttpServer
    """The same with a certificate that nobody trusts."""
    mute: tuple[str, int]
    """Accepts connections and never says anything."""
    rude: tuple[str, int]
    """Closes each connection when something comes by it."""
    down: tuple[str, int]
    """Nobody listens."""
    denied: tuple[str, int]
    """Where no component may connect to; mute, too."""

    def have(self, count: int) -> bool:
        """Return whether they have at least so many connections."""
        return sum(self.connections().values()) >= count

    def all_closed(self) -> bool:
        """Return whether no server has a connection; AssertionError says which have."""
        found = {name: count for name, count in self.connections().items() if count}
        assert not found, found
        return True

    def connections(self) -> dict[str, int]:
        """Return how many connections each server has, closed ones that it has not closed too."""
        addresses = {
            "redis": (self.redis.host, self.redis.port),
            "postgres": (self.postgres.host, self.postgres.port),
            "mariadb": (self.mariadb.host, self.mariadb.port),
            "mosquitto": (self.mosquitto.host, self.mosquitto.port),
            "http": (self.http.host, self.http.port),
            "https": (self.https.host, self.https.port),
            "forged": (self.forged.host, self.forged.port),
            "mute": self.mute,
            "rude": self.rude,
            "denied": self.denied,
        }
        found = connections_to()
        return {name: found.get(address, 0) for name, address in addresses.items()}


def connections_to() -> dict[tuple[str, int], int]:
    """Return how many TCP connections each local address has, seen from there."""
    found: dict[tuple[str, int], int] = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        if state in (_LISTENING, _TIME_WAIT):
            continue
        host, port = local.split(":")
        address = ".".join(str(byte) for byte in reversed(bytes.fromhex(host))), int(port, 16)
        found[address] = found.get(address, 0) + 1
    return found


@contextmanager
def running_servers() -> Iterator[Servers]:
    """All servers, in processes and a thread of their own."""
    with ExitStack() as stack:
        redis = stack.enter_context(running_redis("--requirepass", REDIS_PASSWORD))
        mosquitto = stack.enter_context(running_mosquitto(users={MQTT_USER: MQTT_PASSWORD}))
        known, unknown = (stack.enter_context(certificate_authority()) for _ in range(2))
        made = unknown.issue("database")
        pair = (made.cert, made.key)
        loop = stack.enter_context(_LoopThread())

        def https(authority: Authority) -> HttpServer:
            address = free_address()
            context = authority.issue("server", f"IP:{address[0]}").server_context()
            return loop.enter(http_server(_answer, context, address))

        yield Servers(
            authority=known,
            redis=redis,
            postgres=stack.enter_context(running_postgres(certificate=pair)),
            mariadb=stack.enter_context(running_mariadb(certificate=pair)),
            mosquitto=mosquitto,
            http=loop.enter(http_server(_answer)),
            https=https(known),
            forged=https(unknown),
            mute=loop.listen(_mute),
            rude=loop.listen(_rude),
            down=free_address(),
            denied=loop.listen(_mute),
        )


async def _answer(request: Received, writer: asyncio.StreamWriter) -> bool | None:
    match request.target:
        case "/infer":
            asked = json.loads(request.body)["prompt"]
            if asked == "wait":
                await request.gone()
                return False
            usage = {"promptTokenCount": 1, "generatedTokenCount": 1}
            writer.write(response(200, json.dumps({"text": asked, "usage": usage}).encode()))
        case "/wait":
            await request.gone()
            return False
        case "/part":  # begins a body, and then nothing comes
            writer.write(response(200, b"x" * 100)[:-50])
            await request.gone()
            return False
        case "/cut":
            writer.write(response(200, b"x" * 100)[:-50])
            return False
        case "/garbage":
            writer.write(b"\0\1\2\r\n\r\n")
            return False
        case "/once":  # as if the connection could be kept
            writer.write(response(200, b"once"))
            return False
        case "/moved":
            writer.write(response(302, b"", "location: /big"))
        case "/big":
            writer.write(response(200, b"x" * (1 << 20)))
        case _:
            writer.write(response(200, request.body))
    return None


async def _mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.read(1 << 16):
            pass
    except ConnectionError:
        pass
    finally:
        writer.close()


async def _rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.read(1)
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()


class _LoopThread:
    """An event loop in a thread, and servers that run in it; all end with the ``with`` block."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers")
        self._stack = AsyncExitStack()

    def __enter__(self) -> _LoopThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._run(self._end())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enter a context in the loop."""
        return self._run(self._stack.enter_async_context(context))

    def listen(self, handler: _Handler) -> tuple[str, int]:
        """Serve connections; return where."""
        address = free_address()
        server = self._run(asyncio.start_server(handler, *address))
        self._stack.callback(server.close)
        return address

    async def _end(self) -> None:
        await self._stack.aclose()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_SECONDS)
