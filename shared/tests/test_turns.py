"""Long lists do not keep others from being served."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from containerd_shimkit.turns import map_in_turns


def test_others_are_served_between_slices() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def main() -> None:
        turning = asyncio.create_task(turn())
        assert await map_in_turns(str, range(200_000)) == [str(n) for n in range(200_000)]
        turning.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert turns >= 3


def test_an_exception_ends_it() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        asyncio.run(map_in_turns(int, ["1", "x"]))
