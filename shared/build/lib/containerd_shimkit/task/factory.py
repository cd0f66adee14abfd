"""Which kind of container a request is for."""

from __future__ import annotations

from containerd_shimkit.control import SandboxRequest
from containerd_shimkit.reaper import Reaper
from containerd_shimkit.task.guest_container import GuestContainer, OrdinaryContainer
from containerd_shimkit.task.linux_container import LinuxContainer
from containerd_shimkit.task.options import RuntimeOptions
from containerd_shimkit.task.process import Container
from containerd_shimkit.task.streams import held_open


class ContainerFactory:
    """Makes the containers of one shim."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper

    async def create(self, request: SandboxRequest, options: RuntimeOptions) -> Container:
        """Return a created container. Raises ShimError; nothing is left then.

        Each begins as one of ours: its init sees the image first, and says whether the command is
        an ordinary program.
        """
        with held_open(request.stdio):
            guest = GuestContainer(request, self._reaper)
            try:
                await guest.create()
            except OrdinaryContainer:
                pass
            else:
                return guest
            ordinary = LinuxContainer(request, self._reaper, options)
            await ordinary.create()
            return ordinary
