"""An app that uses every host interface, through containerd; ``make soak`` is longer."""

from __future__ import annotations

import asyncio

import pytest
from spin_load.container import Container
from spin_load.kinds import all_kinds, connecting
from spin_load.servers import Servers
from spin_load.traffic import cut_off

from containerd_shim_spin_v1.host.sqlite import MAX_GUESTS
from containerd_shimkit.testing.apps import Node, eventually

pytestmark = [pytest.mark.root, pytest.mark.containerd]


def test_connections_end_with_requests_and_container(node: Node, traffic_servers: Servers) -> None:
    container = Container(node, traffic_servers)
    kinds = all_kinds(traffic_servers)
    container.make(kinds, 1)
    before = container.figures()
    container.make(kinds, 2)
    after = container.figures()
    print(f"{before}\n{after}")
    assert after.descriptors == before.descriptors
    assert after.database_files <= MAX_GUESTS + 1
    container.stop()


def test_a_stop_while_guests_wait_ends_connections(node: Node, traffic_servers: Servers) -> None:
    more = {"SPIN_SHUTDOWN_TIMEOUT_SECONDS": "0.1"}
    container = Container(node, traffic_servers, 60, more)
    kinds = connecting(all_kinds(traffic_servers))

    async def stop() -> None:
        def wait_and_stop() -> None:
            eventually(lambda: traffic_servers.have(len(kinds)), "all guests wait")
            container.stop()

        await asyncio.to_thread(wait_and_stop)

    asyncio.run(cut_off(*container.app.address, kinds, stop))
