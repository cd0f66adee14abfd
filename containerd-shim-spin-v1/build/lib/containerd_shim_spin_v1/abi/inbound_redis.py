"""The ABI of components that take messages of Redis channels.

Source: Spin 1.5 wit/ephemeral/spin-redis.wit, wit/preview2/inbound-redis.wit; the layout is that of
``expected<unit, error>``, an enum in a byte after the byte that says which of both it is.
"""

from __future__ import annotations

from typing import Final

from containerd_shim_spin_v1.abi.exports import Handler
from containerd_shim_spin_v1.abi.http import MEMORY
from containerd_shimkit.wasm.guest import Guest
from containerd_shimkit.wasm.interfaces import CURRENT_REALLOC, REALLOC

HANDLERS: Final = (
    Handler(b"handle-redis-message", REALLOC, (("i32",) * 2, ("i32",))),
    Handler(
        b"fermyon:spin/inbound-redis#handle-message", CURRENT_REALLOC, (("i32",) * 2, ("i32",))
    ),
)


class MessageFailedError(Exception):
    """The guest says that it could not handle a message."""


async def handle_message(guest: Guest, handler: Handler, payload: bytes) -> None:
    """Call the guest's handler.

    Raises MessageFailedError, GuestTrap, GuestExit, GuestMemoryError.
    """
    guest.use_memory(guest.export(MEMORY))
    (at,) = guest.allocate(guest.export(handler.realloc), [(1, len(payload))])
    guest.write(at, payload)
    result = await guest.call(guest.export(handler.function), at, len(payload))
    is_error, error = guest.read(result, 2)
    # An error of case ``success`` is none, as Spin has it.
    if is_error and error != 0:
        raise MessageFailedError("the component returned an error")
