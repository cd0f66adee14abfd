"""Requests that succeed, fail and are abandoned leave nothing in the process."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
import uvloop
from spin_load.app import files
from spin_load.kinds import all_kinds, connecting, quick
from spin_load.servers import Servers
from spin_load.traffic import DEADLINE, cut_off, environment, run_rounds

from containerd_shim_spin_v1.host import mqtt
from containerd_shim_spin_v1.host.http import ChainedRequest, ChainedResponse
from containerd_shim_spin_v1.host.instance import Instance
from containerd_shim_spin_v1.host.key_value import KeyValueSession
from containerd_shim_spin_v1.host.mqtt import MqttSession
from containerd_shim_spin_v1.host.mysql import MysqlSession
from containerd_shim_spin_v1.host.postgres import PostgresSession
from containerd_shim_spin_v1.host.redis import RedisSession
from containerd_shim_spin_v1.host.sqlite import SqliteHost, SqliteSession
from containerd_shimkit.http_client.client import OpenResponse
from containerd_shimkit.http_client.exchange import HttpRequest
from containerd_shimkit.mqtt.connection import MqttConnection
from containerd_shimkit.pool import Pool
from containerd_shimkit.redis_client.pool import RedisPool
from containerd_shimkit.testing.apps import eventually
from containerd_shimkit.testing.leftovers import open_files
from containerd_shimkit.wasm.guest import Guest

Image = Any  # of conftest.py

ROUNDS = 2
OF_ONE_GUEST = (
    *(Guest, Instance, HttpRequest, OpenResponse, ChainedRequest, ChainedResponse),
    *(KeyValueSession, MqttSession, MysqlSession, PostgresSession, RedisSession, SqliteSession),
)


@pytest.fixture(autouse=True)
def forgotten_logs() -> Iterator[None]:
    """pytest keeps what is logged, and so what exceptions were raised in."""
    loggers = [
        logging.getLogger(name) for name in ("containerd_shim_spin_v1", "containerd_shimkit")
    ]
    handler = logging.StreamHandler(io.StringIO())
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    yield
    for logger in loggers:
        logger.propagate = True
        logger.removeHandler(handler)


def of_guests() -> Counter[str]:
    """Return how many objects there are that belong to one guest each."""
    gc.collect()
    return Counter(
        type(found).__name__
        for found in gc.get_objects()
        if type(found) in OF_ONE_GUEST
        or (isinstance(found, Exception) and type(found).__module__.startswith("containerd_shim"))
    )


def in_use() -> Counter[str]:
    """Return how many connections are lent to guests, of each kind."""
    counts: Counter[str] = Counter()
    for found in gc.get_objects():
        match found:
            case Pool():
                counts["databases"] += len(found._lent)
            case RedisPool():
                counts["redis"] += found._taken
            case SqliteHost():
                counts["sqlite"] += len(found._open)
            case MqttConnection():
                counts["mqtt"] += found.publishing
            case aiohttp.TCPConnector():
                counts["http"] += len(found._acquired)
    return +counts


async def all_done(but: set[asyncio.Task[Any]]) -> None:
    """Return when the tasks of all requests have ended, those that nobody waits for too."""
    async with asyncio.timeout(DEADLINE * 5):
        while rest := asyncio.all_tasks() - but:
            await asyncio.wait(rest)


@pytest.fixture
def app(image: Image, traffic_servers: Servers) -> Image:
    for name, data in files(traffic_servers).items():
        path = image.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return image


@contextmanager
def leaving_nothing(servers: Servers, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """AssertionError if this process or a server has more open afterwards than before."""
    descriptors, threads = open_files(os.getpid()), set(threading.enumerate())
    yield
    gc.collect()
    assert open_files(os.getpid()) == descriptors
    # An engine's thread parks for good.
    more = [thread for thread in set(threading.enumerate()) - threads if thread.name != "epoch"]
    assert not more
    eventually(servers.all_closed, "all connections are closed")
    assert not caplog.text  # asyncio's, of tasks whose exceptions nobody has asked for


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        own = asyncio.all_tasks()
        await main()
        assert asyncio.all_tasks() == own

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())


@pytest.fixture
def warm(app: Image, traffic_servers: Servers) -> None:
    """What a process needs once is there, as the runtime of wasmtime's WASI."""

    async def main() -> None:
        async with app.serving(**environment()) as port:
            await run_rounds("127.0.0.1", port, quick(all_kinds(traffic_servers)), 1)

    run(main)
    gc.collect()


def test_traffic_leaves_nothing(
    app: Image,
    traffic_servers: Servers,
    warm: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # A connection goes on being made when nobody waits for it any more.
    monkeypatch.setattr(mqtt, "CONNECT_SECONDS", DEADLINE + 1)

    async def main() -> None:
        async with app.serving(**environment()) as port:
            tasks, others = asyncio.all_tasks(), of_guests()  # of other tests in this process
            await run_rounds("127.0.0.1", port, all_kinds(traffic_servers), ROUNDS)
            await all_done(but=tasks)
            assert not of_guests() - others
            assert not in_use()

    with leaving_nothing(traffic_servers, caplog):
        run(main)


def test_an_end_while_guests_wait_leaves_nothing(
    app: Image, traffic_servers: Servers, warm: None, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = connecting(all_kinds(traffic_servers))

    async def stop() -> None:
        await asyncio.to_thread(eventually, lambda: traffic_servers.have(len(kinds)))
        app.stop.set()

    async def main() -> None:
        async with app.serving(**environment(60), SPIN_SHUTDOWN_TIMEOUT_SECONDS="0.1") as port:
            await cut_off("127.0.0.1", port, kinds, stop)

    with leaving_nothing(traffic_servers, caplog):
        run(main)
