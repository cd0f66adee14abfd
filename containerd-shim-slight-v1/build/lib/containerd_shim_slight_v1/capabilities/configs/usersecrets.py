"""``configs.usersecrets``: the secrets of ``[[secret_settings]]`` in the slightfile.

They are encrypted by the key in the file ``$TMPDIR/.slightkey``, by default in ``/tmp``, best
mounted. What a guest sets is kept in memory for all guests of the app, until it ends; upstream
writes it into the slightfile.

Source: SpiderLightning 0.5 crates/runtime-configs/src/implementors/usersecrets.rs,
crates/core/src/secret.rs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from containerd_shim_slight_v1.capabilities.configs.base import (
    ConfigNotFoundError,
    ConfigsBackend,
    ConfigsIoError,
    InvalidConfigError,
)
from containerd_shim_slight_v1.capabilities.configs.short_crypt import UndecryptableError, decrypt
from containerd_shim_slight_v1.capabilities.context import AppContext
from containerd_shimkit.errors import ManifestError
from containerd_shimkit.text.image_files import read_text

KEY_FILE: Final = ".slightkey"
MAX_SET_BYTES: Final = 1 << 20
"""All names and values that guests have set."""


class Backend(ConfigsBackend):
    """See the module."""

    def __init__(self, app: AppContext) -> None:
        super().__init__(app)
        # Where it is said now: a guest may set the variable.
        self._key_file = Path("/", app.environment.get("TMPDIR") or "tmp", KEY_FILE)
        self._set: dict[str, bytes] = {}
        self._set_bytes = 0

    async def get(self, key: str) -> bytes:
        if (value := self._set.get(key)) is not None:
            return value
        encrypted = self.app.slightfile.secrets.get(key)
        if encrypted is None:
            raise ConfigNotFoundError(key)
        try:
            return decrypt(self._read_key(), encrypted)
        except UndecryptableError as exc:
            raise InvalidConfigError(
                f"secret {key!r} cannot be decrypted by {self._key_file}: {exc}"
            ) from None

    async def set(self, key: str, value: bytes) -> None:
        old = self._set.get(key)
        grown = len(value) - len(old) if old is not None else len(key.encode()) + len(value)
        if self._set_bytes + grown > MAX_SET_BYTES:
            raise InvalidConfigError(f"more than {MAX_SET_BYTES} bytes of secrets are set")
        self._set_bytes += grown
        self._set[key] = value

    def _read_key(self) -> str:
        try:
            text = read_text(self._key_file, str(self._key_file))
        except ManifestError as exc:
            raise ConfigsIoError(str(exc)) from None
        if text is None:
            raise ConfigsIoError(f"{self._key_file}: no such file, which has the key of secrets")
        return text.rstrip("\n")
