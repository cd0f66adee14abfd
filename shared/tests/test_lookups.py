"""Addresses of hosts, by the system and by a function that the test holds back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from containerd_shimkit.lookups import Lookups


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


class Held:
    """Looks up when it is let, and counts."""

    def __init__(self, failure: OSError | None = None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.let = asyncio.Event()
        self._failure = failure

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        await self.let.wait()
        if self._failure is not None:
            raise self._failure
        return [f"192.0.2.{len(self.asked)}"]


def test_system() -> None:
    async def main() -> None:
        lookups = Lookups()
        assert "127.0.0.1" in await lookups.resolve("localhost", 80)
        assert await lookups.resolve("192.0.2.1", 80) == ["192.0.2.1"]
        assert await lookups.resolve("::1", 80) == ["::1"]
        with pytest.raises(socket.gaierror):
            await lookups.resolve("no.such.host.invalid", 80)

    run(main())


def test_all_who_ask_at_once_share_a_lookup() -> None:
    async def main() -> None:
        held = Held()
        lookups = Lookups(held)
        asking = [asyncio.create_task(lookups.resolve("host", 80)) for _ in range(200)]
        other = asyncio.create_task(lookups.resolve("other", 80))
        await asyncio.sleep(0)
        asking.pop(0).cancel()  # the first, who began it
        await asyncio.sleep(0)
        held.let.set()
        assert await asyncio.gather(*asking) == [["192.0.2.2"]] * 199
        assert await other == ["192.0.2.2"]
        assert held.asked == [("host", 80), ("other", 80)]
        # Who comes later asks again.
        assert await lookups.resolve("host", 80) == ["192.0.2.3"]

    run(main())


def test_failure_is_told_to_all(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        held = Held(OSError("no such host"))
        lookups = Lookups(held)
        asking = [asyncio.create_task(lookups.resolve("host", 80)) for _ in range(3)]
        gone = asyncio.create_task(lookups.resolve("other", 80))
        await asyncio.sleep(0)
        gone.cancel()
        held.let.set()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert [str(each) for each in found] == ["no such host"] * 3

    run(main())
    assert caplog.text == ""
