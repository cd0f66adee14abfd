"""Stands before a real server and holds back what clients send: till the test opens, or for a time.

It runs in the test's own event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from containerd_shimkit.testing.apps import free_address

_AT_ONCE_BYTES = 1 << 16


class Proxy:
    """Listens for as long as ``holding_proxy`` or ``delaying_proxy`` runs."""

    def __init__(
        self, target: tuple[str, int], address: tuple[str, int], delay_seconds: float = 0.0
    ) -> None:
        self.host, self.port = address
        self.held = 0
        """Connections that have sent something, which is not yet let through."""
        self._target = target
        self._delay_seconds = delay_seconds
        self._changed = asyncio.Event()
        self._opened = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def holds(self, count: int) -> None:
        """Return when so many connections are held."""
        while self.held < count:
            self._changed.clear()
            await self._changed.wait()

    def open(self) -> None:
        """Let everything through, from now on."""
        self._opened.set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one more connection."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Close every connection."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            data = await reader.read(_AT_ONCE_BYTES)
            self.held += 1
            self._changed.set()
            await self._opened.wait()
            self.held -= 1
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            try:
                await asyncio.sleep(self._delay_seconds)
                server_writer.write(data)
                async with asyncio.TaskGroup() as group:
                    group.create_task(_copy(reader, server_writer, self._delay_seconds))
                    group.create_task(_copy(server_reader, writer, 0.0))
            finally:
                server_writer.close()
        except (OSError, ExceptionGroup):
            pass  # one side has left
        finally:
            writer.close()


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_seconds: float
) -> None:
    while data := await reader.read(_AT_ONCE_BYTES):
        await asyncio.sleep(delay_seconds)
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def holding_proxy(
    target: tuple[str, int], address: tuple[str, int] | None = None
) -> AsyncIterator[Proxy]:
    """A proxy before the server ``target``. address: its own, see ``free_address``."""
    async with _running(Proxy(target, address or free_address())) as proxy:
        yield proxy


@asynccontextmanager
async def delaying_proxy(
    target: tuple[str, int], address: tuple[str, int], seconds: float
) -> AsyncIterator[Proxy]:
    """A proxy that passes each thing that a client sends on ``seconds`` later."""
    async with _running(Proxy(target, address, seconds)) as proxy:
        proxy.open()
        yield proxy


@asynccontextmanager
async def _running(proxy: Proxy) -> AsyncIterator[Proxy]:
    # Everybody may come at once.
    listener = await asyncio.start_server(proxy.accept, proxy.host, proxy.port, backlog=1024)
    try:
        yield proxy
    finally:
        listener.close()
        await proxy.stop()
