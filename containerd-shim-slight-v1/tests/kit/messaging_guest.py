"""What the guest ``messaging`` of the tests answers: guests/messaging.c."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

from containerd_shimkit.testing.http import fetch


class Guest:
    """An app whose capability is named ``box``."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def ask(self, method: str, *path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Return status and body. An error of the host's is 418, its code and its text."""
        target = "".join(f"/{quote(part, safe='')}" for part in path)
        # What stands for * in a route ends before a slash.
        target += "/" if len(path) > 2 else ""
        answer = await fetch(self._port, target, method=method, body=body)
        return answer.status, answer.body

    async def publish(self, topic: str, message: bytes) -> None:
        assert await self.ask("PUT", "topic", "box", topic, body=message) == (204, b"")

    async def subscribe(self, topic: str) -> str:
        status, token = await self.ask("POST", "topic", "box", topic)
        assert status == 200, token
        return token.decode()

    async def receive(self, token: str) -> bytes:
        status, message = await self.ask("GET", "subscription", "box", token)
        assert status == 200, message
        return message

    async def receive_one(self, token: str) -> bytes:
        """Return what is not empty."""
        async with asyncio.timeout(20):
            while not (message := await self.receive(token)):
                pass
        return message
