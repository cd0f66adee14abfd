"""The engine's threads: a ticker that sleeps when no guest runs, and hardly anything else."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import wasmtime

from containerd_shimkit.errors import EngineError
from containerd_shimkit.testing import in_clean_process
from containerd_shimkit.testing.guests import GuestHost
from containerd_shimkit.wasm import engine, native
from containerd_shimkit.wasm.engine import EngineSettings, Ticker, create_engine, fit_instances

DEADLINE = 20.0  # seconds


class WatchedEvent(threading.Event):
    """Tells when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self.waited_for.release()
        return super().wait(timeout)


def test_ticker_parks_when_idle_and_wakes_again(
    host: GuestHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_IDLE_TICKS", 3)
    monkeypatch.setattr(engine, "TICK_SECONDS", 0.001)
    ticks = threading.Semaphore(0)
    increment = native.increment_epoch

    def tick(pointer: int) -> None:
        increment(pointer)
        if threading.current_thread() is ticker._thread:
            ticks.release()

    monkeypatch.setattr(native, "increment_epoch", tick)
    ticker = Ticker(host.engine)
    ticker._wake = wake = WatchedEvent()
    assert ticker._thread is None  # none until a guest runs: a fork before it is safe
    for _ in range(3):
        ticker.note_call()
        assert wake.waited_for.acquire(timeout=DEADLINE)
        assert ticker._parked
        while ticks.acquire(blocking=False):
            pass
        ticker.note_call()
        for _ in range(3):
            assert ticks.acquire(timeout=DEADLINE)
        assert wake.waited_for.acquire(timeout=DEADLINE)
    assert ticker._parked


def test_ticker_goes_on_while_guests_run(host: GuestHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_IDLE_TICKS", 2)
    monkeypatch.setattr(engine, "TICK_SECONDS", 0.0001)
    done = threading.Event()
    increment, count = native.increment_epoch, 0

    def tick(pointer: int) -> None:
        nonlocal count
        increment(pointer)
        if threading.current_thread() is ticker._thread:
            count += 1
            if count < 50:
                ticker.note_call()
            else:
                done.set()

    monkeypatch.setattr(native, "increment_epoch", tick)
    ticker = Ticker(host.engine)
    ticker._wake = wake = WatchedEvent()
    ticker.note_call()
    assert done.wait(DEADLINE)
    assert wake.waited_for.acquire(timeout=DEADLINE)
    assert not wake.waited_for.acquire(blocking=False)


def test_tokio_gets_one_thread(host: GuestHost) -> None:
    assert os.environ["TOKIO_WORKER_THREADS"] == "1"


THREADS = r"""
import asyncio, os, struct, sys
from containerd_shimkit.testing.guests import GuestHost
from containerd_shimkit.wasm.engine import EngineSettings
from containerd_shimkit.wasm.preview1 import WasiTemplate

TEXT = r'''(module
  (import "wasi_snapshot_preview1" "path_open" (func $open
    (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "file") (data (i32.const 16) "\40\00\00\00\10")
  (func (export "run") (result i32)
    (drop (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0)
      (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 32)))
    (drop (call $read (i32.load (i32.const 32)) (i32.const 16) (i32.const 1) (i32.const 36)))
    (i32.load (i32.const 36))))'''

def threads():
    return len(os.listdir("/proc/self/task"))

async def main():
    host = GuestHost(EngineSettings())
    print(threads())
    template = host.template(TEXT)
    wasi = WasiTemplate(directories=[(sys.argv[1], "/")])
    async def request():
        with host.guest(template, wasi=wasi) as guest:
            return await guest.call(guest.export(b"run"))
    results = await asyncio.gather(*(request() for _ in range(100)))
    assert set(results) == {7}, results
    print(threads())
asyncio.run(main())
"""


def test_serving_process_has_few_threads(tmp_path: Path) -> None:
    """Before a guest runs it has one, and may be forked; with files in use a handful."""
    (tmp_path / "file").write_bytes(b"content")
    environment = {k: v for k, v in os.environ.items() if k != "TOKIO_WORKER_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", THREADS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert before == 1
    assert after <= 8, after  # ours, the ticker, tokio's worker, and a few that read files


def shorten_address_space(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size, hard))


@in_clean_process
def test_instances_fit_a_short_address_space() -> None:
    """As on kernels with 39 bits of it."""
    assert fit_instances(1000) == 1000
    shorten_address_space(512 << 30)
    assert fit_instances(1000) == 62
    create_engine(EngineSettings(max_instances=62))


@in_clean_process
def test_engine_without_the_address_space_is_refused() -> None:
    shorten_address_space(16 << 30)
    with pytest.raises(EngineError, match="cannot reserve 4036 GiB of address space for 1000 inst"):
        create_engine(EngineSettings())
    shorten_address_space(2 << 30)
    assert fit_instances(1) == 0


def test_a_ticker_that_is_stopped_lets_the_engine_go() -> None:
    found = wasmtime.Engine()
    kept = weakref.ref(found)
    ticker = Ticker(found)
    ticker.note_call()
    thread = ticker._thread
    assert thread is not None
    ticker.stop()
    thread.join(20)
    assert not thread.is_alive()
    del found, ticker, thread
    gc.collect()
    assert kept() is None
