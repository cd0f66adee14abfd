"""Room for many pods."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from containerd_shimkit.testing.apps import eventually
from containerd_shimkit.testing.cri import Cri, bridge_network


@pytest.fixture(scope="session")
def network(running: Cri, cni_plugins: None) -> Iterator[None]:
    """Addresses for 253 pods."""
    with bridge_network(running.daemon, prefix_length=24):
        eventually(running.network_ready, "CRI has a network")
        yield
