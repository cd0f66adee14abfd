"""The reaper, in a process without threads: the tests fork."""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from containerd_shimkit import events
from containerd_shimkit.events import ContainerdPublisher
from containerd_shimkit.linux.syscalls import set_child_subreaper
from containerd_shimkit.proto.events_pb2 import TaskExit
from containerd_shimkit.reaper import Exit, Reaper
from containerd_shimkit.testing import in_clean_process


def fork(body: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            body()
        finally:
            os._exit(0)
    return pid


async def soon(future: asyncio.Future[Exit]) -> Exit:
    return await asyncio.wait_for(future, 20)


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110 - reaping is seen in /proc only
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("code", [0, 1, 70, 255])
@in_clean_process
async def test_exit_code(code: int) -> None:
    pid = fork(lambda: os._exit(code))
    assert (await soon(Reaper().watch(pid))).status == code
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
@in_clean_process
async def test_signal(number: int) -> None:
    pid = fork(lambda: os.kill(os.getpid(), number))
    assert (await soon(Reaper().watch(pid))).status == 128 + number


@in_clean_process
async def test_stopped_child_has_not_ended() -> None:
    reaper = Reaper()
    pid = fork(lambda: signal.pause())
    future = reaper.watch(pid)
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    await asyncio.sleep(0)
    assert not future.done()
    os.kill(pid, signal.SIGKILL)
    assert (await soon(future)).status == 137


@in_clean_process
async def test_time_of_the_exit() -> None:
    before = time.time_ns()
    exit_ = await soon(Reaper().watch(fork(lambda: None)))
    assert before <= exit_.time_ns <= time.time_ns()


@in_clean_process
async def test_child_that_ended_before_it_was_watched() -> None:
    pid = fork(lambda: os._exit(7))
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert (await soon(Reaper().watch(pid))).status == 7


@in_clean_process
async def test_many_children_keep_their_codes() -> None:
    reaper = Reaper()
    futures = [reaper.watch(fork(lambda n=n: os._exit(n))) for n in range(50)]  # type: ignore[misc]
    exits = await asyncio.wait_for(asyncio.gather(*futures), 20)
    assert [exit_.status for exit_ in exits] == list(range(50))


@in_clean_process
async def test_no_such_process() -> None:
    reaper = Reaper()
    pid = fork(lambda: None)
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        reaper.watch(pid)


@in_clean_process
async def test_descriptors_are_given_back() -> None:
    reaper = Reaper()
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are what is wanted
    for _ in range(5):
        await soon(reaper.watch(fork(lambda: None)))
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def orphan(writer: int) -> None:
    """Be the parent that dies first; tell the grandchild's pid."""
    os.write(writer, b"%d" % fork(lambda: None))


@in_clean_process
async def test_orphans_are_reaped() -> None:
    set_child_subreaper(True)
    reaper = Reaper()
    reader, writer = os.pipe()
    parent = reaper.watch(fork(lambda: orphan(writer)))
    await soon(parent)
    await until_gone(int(os.read(reader, 32)))


@in_clean_process
async def test_grandchild_can_be_watched_before_its_parent_ends() -> None:
    set_child_subreaper(True)
    reaper = Reaper()
    reader, writer = os.pipe()

    def parent() -> None:
        pid = fork(lambda: os._exit(7))
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.write(writer, b"%d" % pid)
        signal.pause()

    pid = fork(parent)
    ended_parent = reaper.watch(pid)
    grandchild = reaper.watch(int(os.read(reader, 32)))
    ended_child = reaper.watch(fork(lambda: None))
    await soon(ended_child)  # the loop has looked at everything that is ready
    assert not grandchild.done()
    os.kill(pid, signal.SIGKILL)
    assert (await soon(grandchild)).status == 7
    assert (await soon(ended_parent)).status == 137


@in_clean_process
async def test_orphan_is_kept_while_its_pid_may_be_told() -> None:
    set_child_subreaper(True)
    reaper = Reaper()
    reader, writer = os.pipe()
    with reaper.keeping_orphans():
        await soon(reaper.watch(fork(lambda: orphan(writer))))
        pid = int(os.read(reader, 32))
        async with asyncio.timeout(20):
            while "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert (await soon(reaper.watch(pid))).status == 0
    await until_gone(pid)


@in_clean_process
async def test_orphans_kept_are_reaped_afterwards() -> None:
    set_child_subreaper(True)
    reaper = Reaper()
    reader, writer = os.pipe()
    with reaper.keeping_orphans():
        await soon(reaper.watch(fork(lambda: orphan(writer))))
        pid = int(os.read(reader, 32))
    await until_gone(pid)


@in_clean_process
async def test_failure_of_the_publish_binary_is_seen_beside_a_reaper(tmp_path: Path) -> None:
    """The exit status of a child comes from the one who reaps all of them."""
    reaper = Reaper()
    binary = tmp_path / "containerd"
    binary.write_text(f"#!/bin/sh\necho >> {tmp_path}/tries\nexit 3\n")
    binary.chmod(0o755)
    events.RETRY_TIMEOUT = 0.0
    log = logging.getLogger("test.publish")
    handler = logging.handlers.BufferingHandler(1000)
    log.addHandler(handler)
    for _ in range(20):
        publisher = ContainerdPublisher("n", "", str(binary), "/run/c.sock", reaper, log)
        publisher.publish(TaskExit())
        await publisher.close()
    assert len((tmp_path / "tries").read_text().splitlines()) == 20
    messages = [record.getMessage() for record in handler.buffer]
    assert len([m for m in messages if "publish ended with 3" in m]) == 20, messages
