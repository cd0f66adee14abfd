"""What a guest has open, and how it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvloop

from containerd_shim_slight_v1.abi import http_server, sql
from containerd_shim_slight_v1.capabilities import handles as handles_module
from containerd_shim_slight_v1.capabilities.errors import TooManyHandlesError
from containerd_shim_slight_v1.capabilities.handles import HandleTable
from containerd_shim_slight_v1.capabilities.instance import Instance
from containerd_shim_slight_v1.capabilities.messaging.subscriptions import Subscriptions
from containerd_shimkit.wasm.canonical import AbiError


class Closing:
    """Ends when all of them are ending; the first fails then."""

    def __init__(self, number: int, barrier: asyncio.Barrier) -> None:
        self._number = number
        self._barrier = barrier
        self.closed = False

    async def close(self) -> None:
        await self._barrier.wait()
        self.closed = True
        if not self._number:
            raise ValueError("no luck today")


def run(main: Any) -> None:
    async def within_a_minute() -> None:
        async with asyncio.timeout(60):
            await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(within_a_minute())


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Instance:
    """One whose handles hold 1000 characters."""
    monkeypatch.setattr(handles_module, "MAX_HELD_CHARACTERS", 1000)
    services: Any = None
    return Instance(services)


def test_handles_hold_no_more_than_the_guest_could_pass(instance: Instance) -> None:
    table = instance.handles
    first = table.add(1, "a" * 400, "b" * 200)
    with pytest.raises(TooManyHandlesError, match="more than 1000 characters"):
        table.add(2, "c" * 401)
    table.add(3)
    run(table.drop(first))
    table.add(4, "d" * 1000)


def test_the_same_statement_again_and_again(instance: Instance) -> None:
    async def main() -> None:
        for _ in range(10):
            await sql._prepare(instance, "SELECT $1", ["p" * 91])
        with pytest.raises(AbiError, match="more than 1000 characters"):
            await sql._prepare(instance, "SELECT $1", ["p" * 91])

    run(main())


def test_routers_hold_all_of_their_routes(instance: Instance) -> None:
    """Also those of routers that were dropped."""

    async def main() -> None:
        table = instance.handles
        router = await http_server._new_with_base(instance, "/" + "b" * 58)
        get = http_server._adds("GET")
        for _ in range(7):
            longer = await get(instance, router, "/", "h")
            await table.drop(router)
            router = longer
        with pytest.raises(TooManyHandlesError):
            await get(instance, router, "/", "h")

    run(main())


def test_everything_is_closed_at_once_whatever_fails() -> None:
    async def main() -> None:
        barrier = asyncio.Barrier(3)
        opened = [Closing(number, barrier) for number in range(3)]
        table = HandleTable()
        for each in opened:
            table.add(each)
        await table.close()
        assert all(each.closed for each in opened)
        assert not len(table)

    run(main())


def test_subscriptions_end_at_once() -> None:
    async def main() -> None:
        barrier = asyncio.Barrier(3)
        opened = [Closing(number, barrier) for number in range(3)]
        subscriptions: Subscriptions[Closing] = Subscriptions()

        async def make() -> Closing:
            return opened.pop()

        for _ in range(3):
            await subscriptions.add(make)
        await subscriptions.close()

    run(main())
