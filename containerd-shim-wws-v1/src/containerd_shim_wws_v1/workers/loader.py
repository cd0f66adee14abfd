"""Getting workers ready: one after another, but first whichever is asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Final

from containerd_shim_wws_v1.services import Services
from containerd_shim_wws_v1.workers.base import Worker
from containerd_shimkit.errors import ShimError
from containerd_shimkit.wasm.native import GuestError

_AT_ONCE: Final = 2  # one that loops does not hold up those that are asked for
LOADING_INSTANCES: Final = 2 * _AT_ONCE
"""Guests at once that load: the one that evaluates a source, one to compare its memory with."""

log = logging.getLogger(__name__)


class Loader:
    """Loads each worker once; one that cannot be loaded answers 500, as upstream's does."""

    def __init__(
        self, workers: Collection[Worker], services: Services, seconds: float | None
    ) -> None:
        """seconds: what each may take; None is no limit."""
        self._workers = workers
        self._services = services
        self._seconds = seconds
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def load_all(self) -> None:
        """Load one after another."""
        for worker in self._workers:
            await self.wait_for(worker)

    async def wait_for(self, worker: Worker) -> None:
        """Return when a worker is loaded, or cannot be.

        Cancelling this leaves it to be loaded: others may wait for it.
        """
        file = worker.identity.file
        task = self._tasks.get(file)
        if task is None:
            task = self._tasks[file] = asyncio.create_task(self._load(worker))
        if not task.done():
            await asyncio.wait((task,))

    async def _load(self, worker: Worker) -> None:
        file = worker.identity.file
        async with self._places:
            try:
                async with asyncio.timeout(self._seconds):
                    await worker.load(self._services)
            except (GuestError, ShimError) as exc:
                log.error("%s cannot be loaded, and is answered 500: %s", file, exc)
            except TimeoutError:
                seconds = self._seconds
                log.error("%s takes more than %g s to load, and is answered 500", file, seconds)

    async def close(self) -> None:
        """End whatever is being loaded."""
        tasks = [task for task in self._tasks.values() if not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
