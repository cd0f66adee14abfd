"""The command trigger: a component that runs once, as a program.

Its arguments are the container's, all of them: the first is what the program is called, as a
shell's would be (``/`` where the image's entrypoint is that). Its standard input is empty. There
is no time limit, and no signal reaches a guest: when the app is to stop, the program is cut off.

Source: Spin 3.6 crates/trigger/src/cli.rs for ``guest_args``; containerd-shim-spin 0.17 and later
for the arguments of the container.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from containerd_shim_spin_v1.abi.exports import check_command
from containerd_shim_spin_v1.abi.http import MEMORY
from containerd_shim_spin_v1.component import LinkedComponent
from containerd_shimkit.errors import ShimError
from containerd_shimkit.wasm.native import GuestError, GuestExit
from containerd_shimkit.wasm.program import STOPPED, TRAPPED, run_until

ENTRYPOINT: Final = "_start"

log = logging.getLogger(__name__)


class CommandRun:
    """A component that runs once."""

    def __init__(self, linked: LinkedComponent, arguments: Sequence[str]) -> None:
        """arguments: of the container.  Raises ModuleError unless the module is a program."""
        self._linked = linked
        self._arguments = list(arguments) or [linked.id]
        check_command(linked.exports, ENTRYPOINT, "the command to run", linked.name)

    async def run(self, stop: asyncio.Event) -> int:
        """Return the exit code of the program, which ends at the latest when ``stop`` is set."""
        code = await run_until(stop, self._run())
        if code is None:
            log.warning("component %r is cut off: the app stops", self._linked.id)
            return STOPPED
        return code

    async def _run(self) -> int:
        linked = self._linked
        config = linked.wasi.config(
            linked.stdout, linked.stderr, stdin=b"", arguments=self._arguments
        )
        try:
            async with linked.start(config) as guest:
                guest.use_memory(guest.export(MEMORY))
                await guest.call(guest.export(ENTRYPOINT.encode()), results=0)
        except GuestExit as exc:
            return exc.status & 0xFF
        except (GuestError, ShimError) as exc:
            log.error("component %r failed: %s", linked.id, exc)
            return TRAPPED
        return 0
