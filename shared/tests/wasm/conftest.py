"""One engine for all tests of a process: each would cost a thread and address space of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from containerd_shimkit.testing.guests import GuestHost, running_compiler
from containerd_shimkit.wasm import guest, imports
from containerd_shimkit.wasm.module import Compile


@pytest.fixture(scope="session")
def host() -> GuestHost:
    return GuestHost()


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compile]:
    with running_compiler(tmp_path_factory.mktemp("cache")) as compile_:
        yield compile_


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """However a guest ended, nothing is kept of it."""
    yield
    assert guest._guests == {}
    assert imports._pending == {}
