"""What the container's environment says about serving; the reference is docs/configuration.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from containerd_shimkit.environment import SettingError, parse_address, read_number

ADDRESS_SETTING: Final = "SLIGHT_HTTP_LISTEN_ADDR"


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of an app."""

    address: tuple[str, int] | None
    """Where the app's first server listens; None is where the guest says."""
    drain_seconds: float
    request_seconds: float | None
    """A request may take this long, the reading of its body included; None is no limit. The guest
    that sets the app up may take as long."""
    max_body_bytes: int
    max_requests: int
    """Requests in flight; beyond it 503."""
    max_memory_bytes: int
    """Linear memory of one instance."""

    @classmethod
    def load(cls, env: Mapping[str, str], memory_limit_bytes: int | None) -> Settings:
        """Read ``env``. memory_limit_bytes: of the container.

        Raises SettingError naming the variable, its value and the rule.
        """
        memory = min(memory_limit_bytes or 4 << 30, 4 << 30)
        count = read_number(env, "SLIGHT_MAX_INSTANCE_COUNT", 1000, least=1, most=10_000)
        limit = read_number(env, "SLIGHT_MAX_INSTANCE_MEMORY", memory, least=64 << 10, most=4 << 30)
        return cls(
            address=_address(env.get(ADDRESS_SETTING) or ""),
            drain_seconds=read_number(env, "SLIGHT_SHUTDOWN_TIMEOUT_SECONDS", 10.0),
            request_seconds=read_number(env, "SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS", 60.0) or None,
            max_body_bytes=int(read_number(env, "SLIGHT_HTTP_MAX_BODY_BYTES", 128 << 20)),
            max_requests=int(count),
            max_memory_bytes=int(limit),
        )


def _address(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    try:
        return parse_address(text)
    except ValueError:
        raise SettingError(
            f"{ADDRESS_SETTING}={text!r} is not an IP address and port, like 0.0.0.0:3000"
        ) from None
