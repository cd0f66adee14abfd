"""Blocking work in a forked child."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from containerd_shimkit.errors import BundleError, InvalidArgumentError, ShimError, Status
from containerd_shimkit.reaper import Reaper
from containerd_shimkit.task.errand import run_errand
from containerd_shimkit.testing import in_clean_process

SECONDS = 20.0


@in_clean_process
async def test_errand_returns_its_warnings() -> None:
    assert await run_errand(Reaper(), lambda: ["one", "two"]) == ["one", "two"]
    assert await run_errand(Reaper(), lambda: None) == []


@in_clean_process
async def test_loop_goes_on_while_an_errand_waits() -> None:
    read, write = os.pipe()
    errand = asyncio.create_task(run_errand(Reaper(), lambda: [os.read(read_again, 1).decode()]))
    read_again = 0  # the one descriptor that the child keeps
    os.dup2(read, read_again)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not errand.done()
    os.write(write, b"!")
    async with asyncio.timeout(SECONDS):
        assert await errand == ["!"]


@in_clean_process
async def test_errand_that_fails_is_raised_with_its_status() -> None:
    def errand() -> None:
        raise BundleError("cpu: no value")

    with pytest.raises(ShimError, match=r"^cpu: no value$") as caught:
        await run_errand(Reaper(), errand)
    assert caught.value.status is Status.INVALID_ARGUMENT is InvalidArgumentError.status


@in_clean_process
async def test_errand_that_is_killed_is_said() -> None:
    def errand() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ShimError, match="ended with 137 before it said why"):
        await run_errand(Reaper(), errand)
