"""Measure guests that wait: 1,000 requests, 200 in flight, 100 ms each in an import.

Prints JSON. ``measure`` is for the bench and for the test of the same promise.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import asdict, dataclass
from typing import Final

import uvloop

from containerd_shimkit.testing.guests import GuestHost
from containerd_shimkit.wasm.engine import EngineSettings
from containerd_shimkit.wasm.guest import Guest

REQUESTS: Final = 1000
IN_FLIGHT: Final = 200
WAIT_SECONDS: Final = 0.1

# The host's import is entered and left on the thread that runs the guest.
_MODULE: Final = """(module
  (import "test" "wait" (func $wait (param i32) (result i32)))
  (import "test" "thread" (func $thread (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "handle") (param i32) (result i32)
    (i32.store (i32.const 16) (local.get 0))
    (drop (call $wait (local.get 0)))
    (drop (call $thread (i32.const 0)))
    (i32.add (i32.load (i32.const 16)) (i32.const 1))))"""


@dataclass(frozen=True, slots=True)
class FiberFigures:
    """What was measured."""

    requests: int
    succeeded: int
    """Requests whose guest answered with its own number plus one."""
    most_waiting: int
    """Guests that waited in the import at one time."""
    threads: int
    """Threads on which imports were entered, which is where guests ran."""
    seconds: float


def measure(
    requests: int = REQUESTS, in_flight: int = IN_FLIGHT, wait_seconds: float = WAIT_SECONDS
) -> FiberFigures:
    """Run the requests in an event loop of this thread. A new instance for each request."""
    waiting = most_waiting = succeeded = 0
    threads: set[int] = set()

    async def wait(_guest: Guest, _number: int) -> int:
        nonlocal waiting, most_waiting
        waiting += 1
        most_waiting = max(most_waiting, waiting)
        await asyncio.sleep(wait_seconds)
        waiting -= 1
        return 0

    async def thread(_guest: Guest, _number: int) -> int:
        threads.add(threading.get_ident())
        return 0

    host = GuestHost(EngineSettings(max_instances=in_flight))
    template = host.template(_MODULE, {"wait": ("i", wait), "thread": ("i", thread)})

    async def work(numbers: list[int]) -> None:
        nonlocal succeeded
        while numbers:
            number = numbers.pop()
            with host.guest(template) as guest:
                answer = await guest.call(guest.export(b"handle"), number)
            succeeded += answer == number + 1

    async def main() -> float:
        numbers = list(range(requests))
        started = time.perf_counter()
        await asyncio.gather(*(work(numbers) for _ in range(in_flight)))
        return time.perf_counter() - started

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seconds = runner.run(main())
    return FiberFigures(requests, succeeded, most_waiting, len(threads), round(seconds, 4))


if __name__ == "__main__":
    print(json.dumps(asdict(measure()), indent=2))
