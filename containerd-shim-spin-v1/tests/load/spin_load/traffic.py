"""Making the requests."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count, cycle
from typing import Final

from containerd_shimkit.testing.http import connected
from spin_load.kinds import Kind

DEADLINE: Final = 5.0
"""A request's, in seconds: what need not wait is through by then on a busy machine, too."""

_PATIENCE: Final = 0.1  # of a client that leaves
_numbers: Final = count()
_AT_ONCE: Final = 64


def environment(deadline: float = DEADLINE) -> dict[str, str]:
    """Return that of the app's container. deadline: of a request, in seconds."""
    return {
        "SPIN_HTTP_REQUEST_TIMEOUT_SECONDS": f"{deadline:g}",
        "SPIN_HTTP_WORKERS": "1",
        "SPIN_MAX_INSTANCE_COUNT": "400",
    }


async def run_rounds(host: str, port: int, kinds: Sequence[Kind], rounds: int) -> int:
    """Make each kind of request in each round, many at once; return how many that were.

    Raises AssertionError with all that was not answered as it has to be.
    """
    waiting = iter([kind for number in range(rounds) for kind in kinds if number % kind.every == 0])
    faults: Counter[str] = Counter()
    done = 0

    async def go_on() -> None:
        nonlocal done
        for kind in waiting:
            try:
                await request(host, port, kind)
            except Exception as exc:
                faults[f"{kind.name}: {type(exc).__name__} {exc}"[:400]] += 1
            done += 1

    await asyncio.gather(*(go_on() for _ in range(_AT_ONCE)))
    assert not faults, "\n".join(f"{count} x {fault}" for fault, count in faults.items())
    return done


async def request(host: str, port: int, kind: Kind) -> None:
    """Make one request, on a connection of its own. Raises AssertionError."""
    async with connected(port, host) as connection:
        await connection.send(_data(kind))
        if kind.status is not None:
            kind.check(await connection.response())
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                response = await connection.response()
                raise AssertionError(f"{kind.name}: nobody waits: {response}")


async def cut_off(
    host: str, port: int, kinds: Sequence[Kind], stop: Callable[[], Awaitable[None]]
) -> None:
    """Make all requests at once, for which guests wait; the app ends meanwhile, by ``stop``.

    Raises AssertionError unless each has its answer.
    """
    cut = [replace(kind, status=503, answer="the app stops") for kind in kinds]
    requests = [asyncio.create_task(request(host, port, kind)) for kind in cut]
    await stop()
    await asyncio.gather(*requests)


async def keep_asking(host: str, port: int, kinds: Sequence[Kind], until: float) -> list[float]:
    """Make requests one after another on one connection; return how long each took, in seconds.

    until: when to stop, of ``time.monotonic``.  Raises AssertionError.
    """
    taken = []
    async with connected(port, host) as connection:
        for kind in cycle(kinds):
            began = time.monotonic()
            if began > until:
                break
            await connection.send(_data(kind))
            kind.check(await connection.response())
            taken.append(time.monotonic() - began)
    return taken


def _data(kind: Kind) -> bytes:
    number = str(next(_numbers))
    body = kind.body.replace("{number}", number).encode()
    headers = {"host": "test", "content-length": str(len(body))} | dict(kind.headers)
    lines = [f"POST {kind.path} HTTP/1.1", *(f"{n}: {v}" for n, v in headers.items()), "", ""]
    head = "\r\n".join(lines).replace("{number}", number)
    return head.encode() + body
