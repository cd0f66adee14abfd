"""Ten thousand requests that open, fail and abandon connections leave nothing."""

from __future__ import annotations

import asyncio
import time

import pytest
from spin_load.container import Container, Figures
from spin_load.kinds import all_kinds, quick
from spin_load.servers import Servers
from spin_load.traffic import keep_asking

from containerd_shim_spin_v1.host.sqlite import MAX_GUESTS
from containerd_shimkit.testing.apps import Node, eventually

pytestmark = [pytest.mark.root, pytest.mark.containerd]

REQUESTS = 12_000
STEPS = 6
DEADLINE = 3.0  # of a request, in seconds
IDLE_SECONDS = 90.0  # more than any connection is kept that nobody uses
MORE_BYTES = 4 << 20
MORE_THREADS = 8  # there are up to 64 for SQLite, which start when they are needed

CLIENTS = 50
LOAD_SECONDS = 20.0


@pytest.mark.timeout(3600)
def test_requests_leave_nothing(node: Node, traffic_servers: Servers) -> None:
    container = Container(node, traffic_servers, DEADLINE)
    kinds = all_kinds(traffic_servers)
    rounds = REQUESTS // STEPS // len([kind for kind in kinds if kind.every == 1]) + 1

    def idle() -> Figures:
        eventually(traffic_servers.all_closed, "all connections are closed", IDLE_SECONDS)
        return container.figures()

    made, all_figures = 0, []
    for step in range(STEPS):
        began = time.monotonic()
        made += container.make(kinds, rounds)
        figures = container.figures()
        print(f"{made} requests, {time.monotonic() - began:.0f} s: {figures}")
        if step in (STEPS // 2 - 1, STEPS - 1):
            all_figures.append(idle())
            print(f"idle: {all_figures[-1]}")
    middle, end = all_figures
    container.stop()
    assert made >= REQUESTS
    assert end.descriptors == middle.descriptors
    assert end.database_files <= MAX_GUESTS + 1
    assert end.threads <= middle.threads + MORE_THREADS
    assert end.pss_bytes <= middle.pss_bytes + MORE_BYTES


@pytest.mark.timeout(300)
def test_50_clients_at_once(node: Node, traffic_servers: Servers) -> None:
    """Nothing fails that need not."""
    container = Container(node, traffic_servers)
    kinds = quick(all_kinds(traffic_servers))

    async def load() -> list[float]:
        until = time.monotonic() + LOAD_SECONDS
        clients = [
            keep_asking(*container.app.address, kinds[number % len(kinds) :] + kinds, until)
            for number in range(CLIENTS)
        ]
        return [seconds for some in await asyncio.gather(*clients) for seconds in some]

    taken = sorted(asyncio.run(load()))
    print(f"{len(taken) / LOAD_SECONDS:.0f} requests a second of {len(kinds)} kinds")
    print(f"50 %: {taken[len(taken) // 2]:.3f} s, 99 %: {taken[len(taken) * 99 // 100]:.3f} s")
    print(container.figures())
    container.stop()
