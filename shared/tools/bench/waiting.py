"""One container while many guests wait, and while one never ends.

redis   500 requests at once; the guest of each waits on Redis for 200 ms, at a connection of its
        own, as the command blocks it. The first round has to connect, the second finds them open.
        The same with 200 guests of Slight, whose commands a proxy delays.
stuck   a client asks again and again for a guest that loops, and is cut off at its deadline of 1 s;
        ``wrk`` asks for hello meanwhile.
"""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.machine import REPOSITORY, BenchError, Json, progress
from bench.node import SLIGHT, SPIN, Node, Workload
from bench.probe import PROBE, import_probe_image
from bench.wrk import Case, run_wrk
from containerd_shimkit.oci.archive import ImageFile, write_image_archive
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import connected, head
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.proxy import delaying_proxy
from containerd_shimkit.testing.servers.redis import running_redis

REQUESTS = 500
SLIGHT_REQUESTS = 200
WAIT_SECONDS = 0.2
DEADLINE_SECONDS = 1.0
_ROUNDS = ("first", "second")
_TIMEOUT = 60.0  # seconds

_WAIT = replace(SPIN, image="docker.io/library/bench_redis:latest")
_WAIT_SLIGHT = replace(SLIGHT, image="docker.io/library/bench_slight_redis:latest")
_STUCK = replace(PROBE, env=(*PROBE.env, f"SPIN_HTTP_REQUEST_TIMEOUT_SECONDS={DEADLINE_SECONDS:g}"))
_SLIGHTFILE = """\
specversion = "0.2"
[[capability]]
resource = "http"
name = "api"
[[capability]]
resource = "keyvalue.redis"
name = "my-container"
[capability.configs]
REDIS_ADDRESS = "redis://{address}"
"""
_MANIFEST = """\
spin_manifest_version = "1"
name = "bench"
version = "1.0.0"
trigger = {{ type = "http", base = "/" }}

[[component]]
id = "hello"
source = "hello.wasm"
[component.trigger]
route = "/hello"

[[component]]
id = "wait"
source = "redis_wait.wasm"
environment = {{ REDIS_ADDRESS = "redis://{address}" }}
[component.trigger]
route = "/..."
"""


def measure_waiting(
    node: Node, workloads: Sequence[Workload], runs: int, seconds: int, directory: Path
) -> Json:
    """Return the seconds of each round of requests, and what wrk found beside a stuck guest."""
    found: Json = {"wait_seconds": WAIT_SECONDS}
    with running_redis() as redis:
        if SPIN in workloads:
            found |= _measure_spin(node, redis, runs, seconds, directory)
        if SLIGHT in workloads:
            found["slight"] = _measure_slight(node, redis, runs, directory)
    return found


def _measure_spin(node: Node, redis: Server, runs: int, seconds: int, directory: Path) -> Json:
    rounds: dict[str, list[float]] = {name: [] for name in _ROUNDS}
    stuck: list[Json] = []
    import_probe_image(node, directory)
    _import_image(node, directory, redis.address)

    async def ask_all(port: int) -> float:
        return await _ask_all(port, REQUESTS, lambda n: f"/wait/none-{n}/{WAIT_SECONDS}", "nothing")

    for turn in range(runs):
        progress(f"waiting {turn + 1}/{runs}")
        with node.running(_WAIT) as container:
            for name in _ROUNDS:
                rounds[name].append(asyncio.run(ask_all(container.port)))
        with node.running(_STUCK) as container:
            stuck.append(_beside_stuck(container.port, seconds))
    return {"requests": REQUESTS, "redis": rounds, "stuck": stuck}


def _measure_slight(node: Node, redis: Server, runs: int, directory: Path) -> Json:
    """Slight's guests have no command that Redis holds back: what is between delays them."""
    rounds: dict[str, list[float]] = {name: [] for name in _ROUNDS}
    address = free_address()
    _import_slight_image(node, directory, "{}:{}".format(*address))

    async def ask_all(port: int) -> None:
        async with delaying_proxy((redis.host, redis.port), address, WAIT_SECONDS):
            for name in _ROUNDS:
                seconds = await _ask_all(port, SLIGHT_REQUESTS, lambda _: "/get", "Key not found")
                rounds[name].append(seconds)

    for turn in range(runs):
        progress(f"waiting, Slight {turn + 1}/{runs}")
        with node.running(_WAIT_SLIGHT) as container:
            asyncio.run(ask_all(container.port))
    return {"requests": SLIGHT_REQUESTS, "redis": rounds}


def _import_image(node: Node, directory: Path, address: str) -> None:
    guests = REPOSITORY / "containerd-shim-spin-v1/tests/guests"
    files = [
        ImageFile("spin.toml", _MANIFEST.format(address=address).encode()),
        ImageFile("hello.wasm", (REPOSITORY / "images/spin/hello/hello.wasm").read_bytes()),
        ImageFile("redis_wait.wasm", (guests / "redis_wait.wasm").read_bytes()),
    ]
    path = directory / "redis.tar"
    write_image_archive(path, _WAIT.image, files, entrypoint=["/"])
    node.containerd.import_image(path)


def _import_slight_image(node: Node, directory: Path, address: str) -> None:
    files = [
        ImageFile("slightfile.toml", _SLIGHTFILE.format(address=address).encode()),
        ImageFile("app.wasm", (REPOSITORY / "images/slight/app.wasm").read_bytes()),
    ]
    path = directory / "slight_redis.tar"
    write_image_archive(path, _WAIT_SLIGHT.image, files, entrypoint=["/"])
    node.containerd.import_image(path)


async def _ask_all(port: int, count: int, target: Callable[[int], str], expected: str) -> float:
    """Return the seconds until the last answer; the connections are there before.

    target: returns the path of one request.  expected: what each answer is.
    """
    ready = asyncio.Barrier(count + 1)

    async def ask(number: int) -> None:
        async with connected(port) as connection:
            await ready.wait()
            await connection.send(head("GET", target(number)))
            response = await connection.response()
            if response.text != expected:
                raise BenchError(f"a request was answered {response.status} {response.text!r}")

    async with asyncio.timeout(_TIMEOUT), asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(ask(number))
        await ready.wait()
        began = time.perf_counter()
    return time.perf_counter() - began


def _beside_stuck(port: int, seconds: int) -> Json:
    """Run wrk while a guest loops, one after the other."""
    ended, cut_off = threading.Event(), []

    def ask() -> None:
        while not ended.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
            began = time.perf_counter()
            connection.request("GET", "/loop")
            status = connection.getresponse().status
            connection.close()
            if status != 504:
                raise BenchError(f"a guest that loops was answered {status}")
            cut_off.append(time.perf_counter() - began)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        result = run_wrk(port, Case("stuck", _STUCK), seconds)
    finally:
        ended.set()
        asking.join(_TIMEOUT)
    if not cut_off:
        raise BenchError("no guest that loops was cut off")
    return {**result, "cut_off_seconds": cut_off}
