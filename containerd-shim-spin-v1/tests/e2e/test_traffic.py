"""An app that uses every host interface, through containerd; ``make soak`` is longer."""

from __future__ import annotations

import pytest
from spin_load.container import Container
from spin_load.kinds import all_kinds
from spin_load.servers import Servers

from containerd_shimkit.testing.apps import Node

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
    container.stop()
