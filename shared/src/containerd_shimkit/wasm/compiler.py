"""Having a module compiled, outside of the container.

The container's init has no access to the cache and no business with the compiler: it passes the
descriptor of a ``.wasm`` file over a socket pair and gets back the descriptor of the compiled
one. At the other end is ``compiling``.

A request is one message with one descriptor; the reply is ``b"ok"`` with one descriptor, or
``b"error: …"``.
"""

from __future__ import annotations

import socket
from typing import Final

from containerd_shimkit.errors import EngineError, ModuleError

MAX_MESSAGE: Final = 4096


def request_compiled(connection: socket.socket, wasm: int, name: str) -> int:
    """Return a descriptor of the compiled form of the file open as ``wasm``.

    name: what messages call the file. Raises ModuleError if it does not compile, EngineError if the
    compiler is gone.
    """
    try:
        socket.send_fds(connection, [b"compile"], [wasm])
        reply, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 1)
    except OSError as exc:
        raise EngineError(f"{name}: the compiler is gone: {exc}") from exc
    if reply == b"ok" and descriptors:
        return descriptors[0]
    if not reply:
        raise EngineError(f"{name}: the compiler ended without an answer")
    raise ModuleError(f"{name}: {reply.decode(errors='replace').removeprefix('error: ')}")
