"""The servers that a guest starts while it sets the app up.

Each is bound at once, so that the guest learns of an address that cannot be had, and answers when
the guest has done its work: connections that come before wait.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Final

from containerd_shim_slight_v1.capabilities.errors import CapabilityError
from containerd_shim_slight_v1.http.routes import Router
from containerd_shimkit.environment import parse_address
from containerd_shimkit.errors import ListenError
from containerd_shimkit.http.server import listen

MAX_SERVERS: Final = 16


class RouterError(CapabilityError):
    """A router or server cannot be had: ``unexpected-error``."""


class InvalidAddressError(RouterError):
    """An address that is none."""

    case = "invalid-url"


@dataclass(slots=True)
class Server:
    """A bound address and who answers there."""

    socket: socket.socket
    router: Router

    def stop(self) -> None:
        """Stop listening."""
        self.socket.close()


@dataclass(slots=True)
class Servers:
    """Those of an app, in the order in which they were started."""

    address: tuple[str, int] | None = None
    """Where the first one listens, whatever the guest says; None is where it says."""
    running: list[Server] = field(default_factory=list)
    _started: bool = False

    def serve(self, address: str, router: Router) -> Server:
        """Start one. Raises RouterError."""
        if len(self.running) >= MAX_SERVERS:
            raise RouterError(f"an app has at most {MAX_SERVERS} servers")
        host, port = _parse(address)
        if self.address is not None and not self._started:
            host, port = self.address
        try:
            server = Server(listen(host, port), router)
        except ListenError as exc:
            raise RouterError(str(exc)) from exc
        self._started = True
        self.running.append(server)
        return server

    def stop(self, server: Server) -> None:
        """Stop one; a second time does nothing."""
        if server in self.running:
            self.running.remove(server)
            server.stop()

    def close(self) -> None:
        """Stop all."""
        while self.running:
            self.running.pop().stop()


def _parse(address: str) -> tuple[str, int]:
    # Nothing else is looked up: the names of a container are of others.
    text = address.removeprefix("localhost:")
    if text != address:
        text = f"127.0.0.1:{text}"
    try:
        return parse_address(text)
    except ValueError:
        raise InvalidAddressError(
            f"{address!r} is not an IP address and port, like 0.0.0.0:3000"
        ) from None
