"""A guest and what the host has open for it, ended together."""

from __future__ import annotations

from typing import Protocol

from containerd_shimkit.wasm.guest import Guest


class Instance(Protocol):
    """What imports find as a guest's ``state``."""

    @property
    def has_open(self) -> bool:
        """Whether there is anything to close."""

    async def close(self) -> None:
        """Close what the guest left open."""


class RunningGuest:
    """An asynchronous context manager that gives the guest, and ends both."""

    __slots__ = ("_guest", "_instance")

    def __init__(self, guest: Guest, instance: Instance) -> None:
        self._guest = guest
        self._instance = instance

    async def __aenter__(self) -> Guest:
        return self._guest

    async def __aexit__(self, *_: object) -> None:
        self._guest.close()
        if self._instance.has_open:
            await self._instance.close()
