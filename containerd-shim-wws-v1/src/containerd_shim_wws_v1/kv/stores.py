"""Which store an app has: ``WWS_KV``.

``memory``, the default; ``directory:/path`` of the container, which a volume may be; or the
address of a Redis server, ``redis://[user:password@]host[:port][/database]``, or ``rediss://``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from containerd_shim_wws_v1.kv.base import Store
from containerd_shim_wws_v1.kv.memory import MemoryStore
from containerd_shimkit.environment import SettingError
from containerd_shimkit.tls import TrustedCertificates

MEMORY: Final = "memory"

MakeStore = Callable[[], Store]
"""To be called in the event loop that serves."""


def choose_store(text: str, certificates: TrustedCertificates) -> MakeStore:
    """Return what makes the store that ``WWS_KV`` says. Raises SettingError."""
    if text == MEMORY:
        return MemoryStore
    raise SettingError("WWS_KV is neither memory, nor directory:/path, nor redis://host")
