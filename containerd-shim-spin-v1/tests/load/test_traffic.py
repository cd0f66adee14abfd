"""Requests that succeed, fail and are abandoned leave nothing in the process."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp
import pytest
import uvloop
from spin_load.app import files
from spin_load.kinds import Kind, all_kinds, quick
from spin_load.servers import Servers
from spin_load.traffic import DEADLINE, environment, run_rounds

from containerd_shim_spin_v1.host import mqtt
from containerd_shim_spin_v1.host.http import ChainedRequest, ChainedResponse, HttpRequest
from containerd_shim_spin_v1.host.http_client import OpenResponse
from containerd_shim_spin_v1.host.instance import Instance
from containerd_shim_spin_v1.host.key_value import KeyValueSession
from containerd_shim_spin_v1.host.mqtt import MqttSession
from containerd_shim_spin_v1.host.mqtt_connection import MqttConnection
from containerd_shim_spin_v1.host.mysql import MysqlSession
from containerd_shim_spin_v1.host.pool import Pool
from containerd_shim_spin_v1.host.postgres import PostgresSession
from containerd_shim_spin_v1.host.redis import RedisSession
from containerd_shim_spin_v1.host.sqlite import SqliteHost, SqliteSession
from containerd_shim_spin_v1.redis_client.pool import RedisPool
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


def test_traffic_leaves_nothing(
    image: Image,
    traffic_servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # A connection goes on being made when nobody waits for it any more.
    monkeypatch.setattr(mqtt, "CONNECT_SECONDS", DEADLINE + 1)
    for name, data in files(traffic_servers).items():
        path = image.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    kinds = all_kinds(traffic_servers)

    async def serve(kinds: Sequence[Kind], rounds: int) -> None:
        own = asyncio.all_tasks()
        async with image.serving(**environment()) as port:
            tasks = asyncio.all_tasks()
            await run_rounds("127.0.0.1", port, kinds, rounds)
            await all_done(but=tasks)
            assert not of_guests()
            assert not in_use()
        assert asyncio.all_tasks() == own

    def run(kinds: Sequence[Kind], rounds: int) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(kinds, rounds))
        gc.collect()

    # What a process needs once, as the runtime of wasmtime's WASI.
    run(quick(kinds), 1)
    descriptors, threads = open_files(os.getpid()), set(threading.enumerate())
    run(kinds, ROUNDS)
    assert open_files(os.getpid()) == descriptors
    # An engine's, which parks for good.
    more = [thread for thread in set(threading.enumerate()) - threads if thread.name != "epoch"]
    assert not more
    eventually(traffic_servers.all_closed, "all connections are closed")
    assert not caplog.text  # asyncio's, of tasks whose exceptions nobody has asked for
