"""A component as the Redis trigger calls it."""

from __future__ import annotations

import logging

from containerd_shim_spin_v1.abi import inbound_redis
from containerd_shim_spin_v1.abi.exports import find_handler
from containerd_shim_spin_v1.abi.inbound_redis import MessageFailedError
from containerd_shim_spin_v1.component import LinkedComponent
from containerd_shim_spin_v1.manifest.model import RedisTrigger
from containerd_shimkit.errors import ShimError
from containerd_shimkit.http.deadlines import Deadlines
from containerd_shimkit.wasm.native import GuestError

log = logging.getLogger(__name__)


class MessageComponent:
    """A component and the trigger that names its channel."""

    def __init__(self, linked: LinkedComponent, trigger: RedisTrigger) -> None:
        """Raises ModuleError unless the module takes messages."""
        self.trigger = trigger
        self._linked = linked
        self._handler = find_handler(linked.exports, inbound_redis.HANDLERS, "Redis", linked.name)

    async def handle(self, payload: bytes, deadlines: Deadlines) -> None:
        """Have a message handled; what goes wrong is logged, and the next message comes."""
        linked = self._linked
        what = f"component {linked.id!r}: a message of channel {self.trigger.channel!r}"
        try:
            with deadlines.limit():
                config = linked.wasi.config(linked.stdout, linked.stderr)
                async with linked.start(config) as guest:
                    await inbound_redis.handle_message(guest, self._handler, payload)
        except TimeoutError:
            log.error("%s took more than %g s", what, deadlines.seconds)
        except (GuestError, MessageFailedError, ShimError) as exc:
            log.error("%s failed: %s", what, exc)
