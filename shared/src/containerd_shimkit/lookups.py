"""Addresses of hosts, looked up once for all who ask for the same at the same moment.

The event loop has two threads for lookups. A hundred connections to one server, all made at once,
would wait for a hundred of them in turn.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

LookUp: TypeAlias = Callable[[str, int], Coroutine[Any, Any, list[str]]]


class Lookups:
    """Those of an app; see ``redis_client.connection.Resolver``."""

    active = True

    def __init__(self, look_up: LookUp | None = None) -> None:
        """look_up: returns a host's addresses; None asks the system."""
        self._look_up = look_up or _ask_system
        self._under_way: dict[tuple[str, int], asyncio.Task[list[str]]] = {}

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host, those to try first first. Raises OSError."""
        if _is_address(host):
            return [host]
        task = self._under_way.get((host, port))
        if task is None:
            task = asyncio.create_task(self._look_up(host, port))
            self._under_way[host, port] = task
            task.add_done_callback(lambda done: self._done((host, port), done))
        # Whoever is cut off leaves it to the others.
        return await asyncio.shield(task)

    def _done(self, key: tuple[str, int], task: asyncio.Task[list[str]]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # nobody need be left who is told


async def _ask_system(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
