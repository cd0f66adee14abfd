"""How many connections a turn of the loop takes."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from containerd_shimkit.http.acceptor import Acceptor
from containerd_shimkit.http.server import listen

WAITING = 5


@pytest.mark.parametrize("most", [1, 2, 64])
def test_connections_of_a_turn(most: int) -> None:
    accepted = 0

    class Counting(Acceptor):
        def _accept(self) -> None:
            super()._accept()
            turns.append(accepted)

        async def _connect(self, connection: socket.socket) -> None:
            connection.close()

        def _accept_one(self) -> bool:
            nonlocal accepted
            before = len(self._tasks)
            more = super()._accept_one()
            accepted += len(self._tasks) - before
            if accepted == WAITING:
                all_accepted.set()
            return more

    turns: list[int] = []
    all_accepted = asyncio.Event()

    async def main() -> None:
        server = listen("127.0.0.1", 0)
        with contextlib.ExitStack() as stack:
            for _ in range(WAITING):
                stack.enter_context(socket.create_connection(server.getsockname()))
            acceptor = Counting(server, asyncio.Protocol, most)
            async with asyncio.timeout(20):
                await all_accepted.wait()
            acceptor.close()

    asyncio.run(main())
    assert turns[0] == min(most, WAITING)
