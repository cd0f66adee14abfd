"""A provider behind a memory of some seconds."""

from __future__ import annotations

import asyncio
from typing import Final

from containerd_shim_spin_v1.variables.values import Provider
from containerd_shimkit.tasks import take_exception

SECONDS: Final = 10.0
"""How old a value may be. A component may ask at every request, a server takes milliseconds."""


class CachedProvider:
    """Keeps what another provider said, also that it does not know a variable.

    Whoever asks for what is being asked already waits for the same answer. Failures are not kept.
    """

    def __init__(self, provider: Provider, seconds: float = SECONDS) -> None:
        self._provider = provider
        self._seconds = seconds
        # Names come from the manifest, so there are no more than it has variables.
        self._known: dict[str, tuple[float, str | None]] = {}
        self._asking: dict[str, asyncio.Task[str | None]] = {}

    async def get(self, name: str) -> str | None:
        """See ``Provider``."""
        due, value = self._known.get(name, (0.0, None))
        if asyncio.get_running_loop().time() < due:
            return value
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(self._ask(name))
            task.add_done_callback(take_exception)
        # One who gives up does not take the answer from the others. ``shield`` would log what
        # becomes of it then, with a traceback.
        await asyncio.wait((task,))
        return task.result()

    async def close(self) -> None:
        """See ``Provider``."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._provider.close()

    async def _ask(self, name: str) -> str | None:
        try:
            value = await self._provider.get(name)
        finally:
            del self._asking[name]
        self._known[name] = (asyncio.get_running_loop().time() + self._seconds, value)
        return value
