"""What takes minutes: ``make soak``. It is no part of ``make test``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytestmark = [pytest.mark.root, pytest.mark.containerd]


@pytest.mark.timeout(1200)
def test_200_containers_leave_nothing(soak: Callable[[int], None]) -> None:
    soak(200)
