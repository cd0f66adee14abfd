"""The pool of connections, with connections that go nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from containerd_shimkit import pool as pool_module
from containerd_shimkit.pool import Pool, PoolBusyError, PoolClosedError


class Fake:
    """A connection, which notes what becomes of it."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.usable = True
        self.resets = 0
        self.ended = asyncio.Event()
        self.reset_failure: Exception | None = None

    async def reset(self) -> None:
        self.resets += 1
        if self.reset_failure is not None:
            raise self.reset_failure

    async def quit(self) -> None:
        self.abort()

    def abort(self) -> None:
        self.usable = False
        self.ended.set()


class Maker:
    """Makes connections, and counts."""

    def __init__(self) -> None:
        self.made: list[Fake] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None

    async def __call__(self, key: str) -> Fake:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.made.append(connection := Fake(key))
        return connection

    @property
    def open(self) -> int:
        return sum(not connection.ended.is_set() for connection in self.made)


def run(main: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())


async def settle() -> None:
    """Let the tasks of this turn, and those they start, come to their ends."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_connection_is_reset_and_lent_again() -> None:
    async def main() -> None:
        maker = Maker()
        pool: Pool[str, Fake] = Pool(maker)
        first = await pool.take("a")
        pool.give_back("a", first)
        await settle()
        assert await pool.take("a") is first
        assert first.resets == 1
        assert await pool.take("b") is not first
        await pool.close()
        assert maker.open == 0

    run(main())


def test_what_cannot_be_reset_is_closed() -> None:
    async def main() -> None:
        maker = Maker()
        pool: Pool[str, Fake] = Pool(maker)
        first = await pool.take("a")
        first.reset_failure = OSError()
        pool.give_back("a", first)
        await first.ended.wait()
        assert await pool.take("a") is not first
        await pool.close()

    run(main())


def test_what_the_server_closed_is_not_lent() -> None:
    async def main() -> None:
        maker = Maker()
        pool: Pool[str, Fake] = Pool(maker)
        first = await pool.take("a")
        pool.give_back("a", first)
        await settle()
        first.usable = False
        assert await pool.take("a") is not first
        await pool.close()

    run(main())


def test_no_more_than_the_limit_are_open_and_turns_are_kept() -> None:
    async def main() -> None:
        maker = Maker()
        pool: Pool[str, Fake] = Pool(maker, 2)
        lent = [await pool.take("a"), await pool.take("a")]
        order: list[int] = []

        async def use(number: int) -> None:
            connection = await pool.take("a")
            order.append(number)
            pool.give_back("a", connection)

        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(use(number))
            await settle()
            assert order == []
            pool.give_back("a", lent[0])
        assert order == [0, 1, 2, 3, 4]
        assert len(maker.made) == 2
        await pool.close()

    run(main())


def test_addresses_have_their_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "ADDRESS_LIMIT", 1)

    async def main() -> None:
        pool: Pool[str, Fake] = Pool(Maker(), wait_seconds=0.05)
        await pool.take("a")
        with pytest.raises(PoolBusyError, match=r"within 0\.05 s"):
            await pool.take("a")
        await pool.take("b")
        await pool.close()

    run(main())


def test_an_idle_connection_makes_room_for_another_address() -> None:
    async def main() -> None:
        maker = Maker()
        pool: Pool[str, Fake] = Pool(maker, 1)
        first = await pool.take("a")
        waiting = asyncio.create_task(pool.take("b"))
        await settle()
        pool.give_back("a", first)
        second = await waiting
        assert (second.key, maker.open) == ("b", 1)
        await pool.close()

    run(main())


def test_idle_connections_end() -> None:
    async def main() -> None:
        maker = Maker()
        pool: Pool[str, Fake] = Pool(maker, idle_seconds=0.02)
        first = await pool.take("a")
        pool.give_back("a", first)
        await first.ended.wait()
        await settle()
        assert await pool.take("a") is not first
        await pool.close()

    run(main())


@pytest.mark.parametrize("granted", [False, True])
def test_who_is_cut_off_while_waiting_takes_no_place(granted: bool) -> None:
    async def main() -> None:
        pool: Pool[str, Fake] = Pool(Maker(), 1)
        first = await pool.take("a")
        waiting = asyncio.create_task(pool.take("a"))
        await settle()
        if granted:  # in the same turn
            pool._return_turn("a", first)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        if not granted:
            pool.give_back("a", first)
        assert await pool.take("a") is first
        await pool.close()

    run(main())


def test_who_is_cut_off_while_connecting_takes_no_place() -> None:
    async def main() -> None:
        maker = Maker()
        maker.gate.clear()
        pool: Pool[str, Fake] = Pool(maker, 1)
        connecting = asyncio.create_task(pool.take("a"))
        await settle()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        maker.gate.set()
        await pool.take("a")
        await pool.close()

    run(main())


def test_a_failed_connection_takes_no_place() -> None:
    async def main() -> None:
        maker = Maker()
        pool: Pool[str, Fake] = Pool(maker, 1)
        maker.failure = ConnectionRefusedError()
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                await pool.take("a")
        maker.failure = None
        await pool.take("a")
        await pool.close()

    run(main())


def test_connecting_is_given_up_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_CONNECT_SECONDS", 0.02)

    async def main() -> None:
        maker = Maker()
        maker.gate.clear()
        pool: Pool[str, Fake] = Pool(maker)
        with pytest.raises(TimeoutError):
            await pool.take("a")
        await pool.close()

    run(main())


def test_close_ends_lent_idle_and_new_connections() -> None:
    async def main() -> None:
        maker = Maker()
        pool: Pool[str, Fake] = Pool(maker, 3)
        lent, idle = await pool.take("a"), await pool.take("b")
        pool.give_back("b", idle)
        await settle()
        maker.gate.clear()
        connecting = asyncio.create_task(pool.take("c"))
        waiting = asyncio.create_task(pool.take("d"))
        await settle()
        await pool.close()
        maker.gate.set()
        for task in (connecting, waiting):
            with pytest.raises(PoolClosedError):
                await task
        pool.give_back("a", lent)
        assert maker.open == 0
        with pytest.raises(PoolClosedError):
            await pool.take("a")

    run(main())


def test_many_guests_share_a_few_connections() -> None:
    """Nothing is lost when guests are cut off at any time."""

    async def main() -> None:
        maker = Maker()
        pool: Pool[str, Fake] = Pool(maker, 4)

        async def use(number: int) -> None:
            key = "abc"[number % 3]
            connection = await pool.take(key)
            try:
                for _ in range(number % 5):
                    await asyncio.sleep(0)
            finally:
                pool.give_back(key, connection)

        tasks = [asyncio.create_task(use(number)) for number in range(500)]
        for number, task in enumerate(tasks):
            if number % 7 == 0:
                await asyncio.sleep(0)
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(result is None for result in results) > 300
        assert all(
            result is None or isinstance(result, asyncio.CancelledError) for result in results
        )
        await settle()
        assert maker.open <= 4
        await pool.close()
        assert maker.open == 0
        assert pool._open == 0

    run(main())
