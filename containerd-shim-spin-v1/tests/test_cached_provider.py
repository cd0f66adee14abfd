"""A provider is asked once for what many want at once, and again when what it said is old."""

from __future__ import annotations

import asyncio
import gc

import pytest

from containerd_shim_spin_v1.variables.cached import CachedProvider
from containerd_shim_spin_v1.variables.values import ProviderError


class Slow:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.values: dict[str, str | ProviderError | None] = {}
        self.go = asyncio.Event()
        self.closed = False

    async def get(self, name: str) -> str | None:
        self.asked.append(name)
        await self.go.wait()
        value = self.values.get(name)
        if isinstance(value, ProviderError):
            raise value
        return value

    async def close(self) -> None:
        self.closed = True


def test_many_who_ask_at_once_make_one_question() -> None:
    async def main() -> None:
        slow = Slow()
        slow.values["a"] = "x"
        cached = CachedProvider(slow)
        tasks = [asyncio.create_task(cached.get("a")) for _ in range(10)]
        await asyncio.sleep(0)
        tasks[0].cancel()  # also where the first of them gives up
        slow.go.set()
        assert await asyncio.gather(*tasks[1:]) == ["x"] * 9
        assert await cached.get("a") == "x"
        assert slow.asked == ["a"]

    asyncio.run(main())


@pytest.mark.parametrize("value", ["x", "", None])
def test_what_is_known_is_not_asked_again_until_it_is_old(value: str | None) -> None:
    async def main() -> None:
        slow = Slow()
        slow.go.set()
        slow.values["a"] = value
        for seconds, questions in ((60.0, 1), (0.0, 2)):
            slow.asked.clear()
            cached = CachedProvider(slow, seconds)
            assert [await cached.get("a"), await cached.get("a")] == [value, value]
            assert len(slow.asked) == questions

    asyncio.run(main())


def test_failure_is_everybodys_who_waits_and_is_not_kept() -> None:
    async def main() -> None:
        slow = Slow()
        slow.values["a"] = ProviderError("down")
        cached = CachedProvider(slow)
        tasks = [asyncio.create_task(cached.get("a")) for _ in range(3)]
        await asyncio.sleep(0)
        slow.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(result) for result in results] == ["down"] * 3
        slow.values["a"] = "x"
        assert await cached.get("a") == "x"

    asyncio.run(main())


def test_close_ends_what_is_being_asked() -> None:
    async def main() -> None:
        slow = Slow()
        cached = CachedProvider(slow)
        task = asyncio.create_task(cached.get("a"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await cached.close()
        assert slow.closed
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_failure_that_nobody_waits_for_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        slow = Slow()
        slow.values["a"] = ProviderError("down")
        cached = CachedProvider(slow)
        task = asyncio.create_task(cached.get("a"))
        await asyncio.sleep(0)
        (asking,) = asyncio.all_tasks() - {task, asyncio.current_task()}
        task.cancel()
        slow.go.set()
        await asyncio.wait((asking, task))
        del asking
        gc.collect()

    asyncio.run(main())
    assert not caplog.records
