"""Time limits of requests: who is late ends, whoever else cancels is not mistaken for it."""

from __future__ import annotations

import asyncio

import pytest

from containerd_shimkit.http.deadlines import Deadlines


def test_late_task_gets_a_timeout_error() -> None:
    async def main() -> None:
        deadlines = Deadlines(0.01)
        with pytest.raises(TimeoutError), deadlines.limit():
            await asyncio.Event().wait()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(main())


def test_each_ends_at_its_own_time() -> None:
    async def main() -> None:
        deadlines, ended, loop = Deadlines(0.05), [], asyncio.get_running_loop()

        async def wait(name: str) -> None:
            began = loop.time()
            try:
                with deadlines.limit():
                    await asyncio.Event().wait()
            except TimeoutError:
                ended.append((name, loop.time() - began))

        first = asyncio.create_task(wait("first"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await first
        # Cancelled from outside: it is not late, and the timer goes on for those behind it.
        await asyncio.gather(wait("second"), wait("third"))
        assert [name for name, _ in ended] == ["second", "third"]
        assert all(seconds >= 0.05 for _, seconds in ended)

    asyncio.run(main())


def test_cancelled_task_is_cancelled() -> None:
    async def main() -> None:
        deadlines = Deadlines(20)

        async def wait() -> None:
            with deadlines.limit():
                await asyncio.Event().wait()

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_no_limit_is_no_limit() -> None:
    async def main() -> None:
        with Deadlines(None).limit():
            await asyncio.sleep(0)

    asyncio.run(main())
