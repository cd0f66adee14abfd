"""One wasmtime engine per container: its settings, and the ticker that makes guests yield."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import wasmtime

from containerd_shimkit.errors import EngineError
from containerd_shimkit.wasm import native

TICK_SECONDS: Final = 0.01
_IDLE_TICKS: Final = 100  # park the ticker after a second without a guest call

_WASM_STACK_BYTES: Final = 512 << 10  # wasmtime's default, stated because fibers must exceed it
_FIBER_STACK_BYTES: Final = 1 << 20
_KEEP_RESIDENT_BYTES: Final = 64 << 10  # of a slot, zeroed by memset: cheaper than madvise
# Address space of a slot: a memory of 4 GiB and its guard of 32 MiB, wasmtime's defaults, which
# the compiled code relies on; two stacks, two tables and the instance.
_SLOT_BYTES: Final = (4 << 30) + (32 << 20) + (5 << 20)
_PROT_NONE: Final = 0  # <sys/mman.h>

WASMTIME_VERSION: Final = version("wasmtime")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine may spend on guests."""

    max_instances: int = 1000
    """Instances alive at once; a pool slot each (address space, not memory)."""
    max_memory_bytes: int = 4 << 30
    """Linear memory of one instance, at most 4 GiB."""


def compiler_config() -> wasmtime.Config:
    """Return the settings that shape compiled code; the cache key covers them."""
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.cranelift_opt_level = "speed"
    config.max_wasm_stack = _WASM_STACK_BYTES
    config.wasm_threads = False  # a shared memory could block the event loop in atomic.wait
    return config


COMPILER_FINGERPRINT: Final = (
    f"wasmtime={WASMTIME_VERSION} epoch=1 opt=speed stack={_WASM_STACK_BYTES} threads=0"
)
"""Names everything in ``compiler_config``; change both together."""


def fit_instances(wanted: int) -> int:
    """Return how many instances, at most ``wanted``, this process has address space for.

    It is short under RLIMIT_AS and on kernels with 39 bits of it, as many on arm64 are: 512 GiB.
    Tried are ``wanted``, its half, and so on, each with an eighth more for all else that the
    process maps; 0 if not even one fits.
    """
    while wanted and not _can_reserve((wanted + 1) * _SLOT_BYTES * 9 // 8):
        wanted //= 2
    return wanted


def fit_requests(wanted: int, setting: str, *, others: int = 0) -> int:
    """Return how many requests at once, at most ``wanted``, this process has address space for.

    setting: what asks for them, which is named in the log if they are fewer.  others: instances
    beside those of requests.
    """
    # None at all is an error of create_engine.
    fit = max(fit_instances(wanted + others) - others, 1)
    if fit < wanted:
        log.warning(
            "at most %d requests at once, not %d (%s): the address space has no room for more",
            *(fit, wanted, setting),
        )
    return fit


def _can_reserve(size: int) -> bool:
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=_PROT_NONE).close()
    except OSError as exc:
        if exc.errno != errno.ENOMEM:
            raise
        return False
    return True


def create_engine(settings: EngineSettings) -> wasmtime.Engine:
    """Return an engine that runs guests from a pool and never compiles.

    The pool makes a store and instance cost a few microseconds: slots are reserved once and
    reset, not mapped and unmapped. Figures are in docs/performance.md.
    Raises EngineError if there is no address space for the pool, where wasmtime would abort.
    """
    count = settings.max_instances
    if fit_instances(count) < count:
        raise EngineError(
            f"cannot reserve {count * _SLOT_BYTES >> 30} GiB of address space"
            f" for {count} instances: the kernel or RLIMIT_AS allows less"
        )
    # wasmtime-wasi does file I/O on a tokio runtime, which starts a thread for each processor of
    # the node unless it is told otherwise.
    os.environ["TOKIO_WORKER_THREADS"] = "1"
    config = compiler_config()
    config.parallel_compilation = False  # no thread but the ticker in a container
    native.set_async_stack_size(config, _FIBER_STACK_BYTES)
    native.use_pooling_allocator(
        config,
        {
            "total_core_instances": count,
            "total_memories": count,
            "total_tables": count * 2,
            "total_stacks": count * 2,  # one more where an import calls the guest's allocator
            "max_memory_size": settings.max_memory_bytes,
            "max_tables_per_module": 2,
            "table_elements": 100_000,
            "max_core_instance_size": 1 << 20,
            "linear_memory_keep_resident": _KEEP_RESIDENT_BYTES,
            "table_keep_resident": 4 << 10,
            "async_stack_keep_resident": 16 << 10,
            "max_unused_warm_slots": 16,
        },
    )
    return wasmtime.Engine(config)


log = logging.getLogger(__name__)


class Ticker:
    """Increments an engine's epoch every 10 ms while guests run; a daemon thread.

    Parks itself when no guest ran for a second, so that an idle pod wakes no processor.
    """

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._engine = native.address(engine)
        self._keep = engine
        self._calls = 0
        self._parked = True
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def stop(self) -> None:
        """End the thread: no guest will run any more. Until then it keeps the engine alive."""
        self._stopped = True
        self._wake.set()

    def note_call(self) -> None:
        """Say that guest code is about to run. Called for every poll: it must be cheap."""
        self._calls += 1
        if self._parked:
            self._parked = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="epoch", daemon=True)
                self._thread.start()
            self._wake.set()

    def _run(self) -> None:
        seen, idle = -1, 0
        while not self._stopped:
            time.sleep(TICK_SECONDS)
            native.increment_epoch(self._engine)
            # A poll that lasts longer than a tick ends at this very increment, and the next
            # poll is counted: an unchanged count means that no guest runs.
            idle = idle + 1 if self._calls == seen else 0
            seen = self._calls
            if idle >= _IDLE_TICKS:
                self._wake.clear()
                self._parked = True
                if self._calls != seen:  # a call slipped in before it could see _parked
                    self._parked = False
                    continue
                self._wake.wait()
                idle = 0
