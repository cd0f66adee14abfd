"""Which store an app has: ``WWS_KV``.

``memory``, the default; ``directory:/path`` of the container, which a volume may be; or the
address of a Redis server, ``redis://[user:password@]host[:port][/database]``, or ``rediss://``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from containerd_shim_wws_v1.kv.base import Store
from containerd_shim_wws_v1.kv.directory import DirectoryStore
from containerd_shim_wws_v1.kv.memory import MemoryStore
from containerd_shim_wws_v1.kv.redis import RedisStore
from containerd_shimkit.environment import SettingError
from containerd_shimkit.redis_client.address import AddressError, RedisAddress
from containerd_shimkit.tls import TrustedCertificates

MEMORY: Final = "memory"
_DIRECTORY: Final = "directory:"

MakeStore = Callable[[], Store]
"""To be called in the event loop that serves."""


def choose_store(text: str, certificates: TrustedCertificates) -> MakeStore:
    """Return what makes the store that ``WWS_KV`` says. Raises SettingError.

    It is not shown in messages: it may hold a password.
    """
    if text == MEMORY:
        return MemoryStore
    if text.startswith(_DIRECTORY):
        return partial(DirectoryStore, _directory(text.removeprefix(_DIRECTORY)))
    if text.lower().startswith(("redis:", "rediss:")):
        try:
            return partial(RedisStore, RedisAddress.parse(text), certificates)
        except AddressError as exc:
            raise SettingError(f"WWS_KV: {exc}") from None
    raise SettingError("WWS_KV is neither memory, nor directory:/path, nor redis://host")


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\0" in text:
        raise SettingError(f"WWS_KV: {text!r} is no absolute path")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise SettingError(f"WWS_KV: {path}: {exc.strerror}") from exc
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise SettingError(f"WWS_KV: {path}: the container's user may not write to it")
    return path
