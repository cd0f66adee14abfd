"""What takes minutes: ``make soak``. It is no part of ``make test``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytestmark = [pytest.mark.root, pytest.mark.containerd]


@pytest.mark.timeout(1200)
def test_200_containers_leave_nothing(soak: Callable[[int], None]) -> None:
    soak(200)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("host_network", [True, False], ids=["host", "cni"])
def test_100_pods_at_once(burst: Callable[[int, bool], None], host_network: bool) -> None:
    burst(100, host_network)
