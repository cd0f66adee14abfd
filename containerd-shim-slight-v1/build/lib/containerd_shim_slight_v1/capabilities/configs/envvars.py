"""``configs.envvars``: the container's environment.

What a guest sets in it is seen by all guests of the app until it ends, and by nobody else.

Source: SpiderLightning 0.5 crates/runtime-configs/src/implementors/envvars.rs.
"""

from __future__ import annotations

from typing import Final

from containerd_shim_slight_v1.capabilities.configs.base import (
    ConfigNotFoundError,
    ConfigsBackend,
    InvalidConfigError,
)

MAX_SET_BYTES: Final = 1 << 20
"""All names and values that guests have set."""


class Backend(ConfigsBackend):
    """See the module."""

    _set_bytes = 0

    async def get(self, key: str) -> bytes:
        value = self.app.environment.get(key)
        if value is None:
            raise ConfigNotFoundError(key)
        return value.encode(errors="surrogateescape")

    async def set(self, key: str, value: bytes) -> None:
        if not key or "=" in key or "\0" in key:
            raise InvalidConfigError(f"{key!r} cannot be the name of a variable")
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise InvalidConfigError("the value is not UTF-8") from None
        if "\0" in text:
            raise InvalidConfigError("the value has a NUL character")
        old = self.app.environment.get(key)
        grown = len(value) - len(old) if old is not None else len(key) + len(value)
        if self._set_bytes + grown > MAX_SET_BYTES:
            raise InvalidConfigError(f"more than {MAX_SET_BYTES} bytes of variables are set")
        self._set_bytes += grown
        self.app.environment[key] = text
