"""One container while many guests wait, and while one never ends.

redis   500 requests at once; the guest of each waits on Redis for 200 ms, at a connection of its
        own, as the command blocks it. The first round has to connect, the second finds them open.
stuck   a client asks again and again for a guest that loops, and is cut off at its deadline of 1 s;
        ``wrk`` asks for hello meanwhile.
"""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.machine import REPOSITORY, BenchError, Json, progress
from bench.node import SPIN, Node, Workload
from bench.probe import PROBE, import_probe_image
from bench.wrk import Case, run_wrk
from containerd_shimkit.oci.archive import ImageFile, write_image_archive
from containerd_shimkit.testing.http import connected, head
from containerd_shimkit.testing.servers.redis import running_redis

REQUESTS = 500
WAIT_SECONDS = 0.2
DEADLINE_SECONDS = 1.0
_ROUNDS = ("first", "second")
_TIMEOUT = 60.0  # seconds

_WAIT = replace(SPIN, image="docker.io/library/bench_redis:latest")
_STUCK = replace(PROBE, env=(*PROBE.env, f"SPIN_HTTP_REQUEST_TIMEOUT_SECONDS={DEADLINE_SECONDS:g}"))
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
    if SPIN not in workloads:
        return {}
    rounds: dict[str, list[float]] = {name: [] for name in _ROUNDS}
    stuck: list[Json] = []
    import_probe_image(node, directory)
    with running_redis() as redis:
        _import_image(node, directory, redis.address)
        for turn in range(runs):
            progress(f"waiting {turn + 1}/{runs}")
            with node.running(_WAIT) as container:
                for name in _ROUNDS:
                    rounds[name].append(asyncio.run(_ask_all(container.port)))
            with node.running(_STUCK) as container:
                stuck.append(_beside_stuck(container.port, seconds))
    return {"requests": REQUESTS, "wait_seconds": WAIT_SECONDS, "redis": rounds, "stuck": stuck}


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


async def _ask_all(port: int) -> float:
    """Return the seconds until the last answer; the connections are there before."""
    ready = asyncio.Barrier(REQUESTS + 1)

    async def ask(number: int) -> None:
        async with connected(port) as connection:
            await ready.wait()
            await connection.send(head("GET", f"/wait/none-{number}/{WAIT_SECONDS}"))
            response = await connection.response()
            if (response.status, response.text) != (200, "nothing"):
                raise BenchError(f"a request was answered {response.status} {response.text!r}")

    async with asyncio.timeout(_TIMEOUT), asyncio.TaskGroup() as group:
        for number in range(REQUESTS):
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
