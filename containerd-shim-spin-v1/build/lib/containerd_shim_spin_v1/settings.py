"""What the container's environment says about serving; the reference is docs/configuration.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from containerd_shimkit.environment import SettingError, parse_address, read_number
from containerd_shimkit.workers import MAX_WORKERS

DEFAULT_ADDRESS: Final = "0.0.0.0:80"
MAX_MEMORY_SETTING: Final = "SPIN_MAX_INSTANCE_MEMORY"


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the HTTP trigger."""

    host: str
    port: int
    drain_seconds: float
    request_seconds: float | None
    """A request may take this long, the reading of its body included; None is no limit."""
    max_body_bytes: int
    max_requests: int
    """Requests in flight; beyond it 503."""
    max_memory_bytes: int
    """Linear memory of one instance."""
    workers: int
    """Processes that serve."""

    @classmethod
    def load(
        cls, env: Mapping[str, str], memory_limit_bytes: int | None, processors: int = 1
    ) -> Settings:
        """Read ``env``. memory_limit_bytes: of the container. processors: those it may use.

        Raises SettingError naming the variable, its value and the rule.
        """
        host, port = _listen_address(env.get("SPIN_HTTP_LISTEN_ADDR") or DEFAULT_ADDRESS)
        seconds = read_number(env, "SPIN_HTTP_REQUEST_TIMEOUT_SECONDS", 60.0)
        memory = min(memory_limit_bytes or 4 << 30, 4 << 30)
        workers = min(processors, MAX_WORKERS)
        return cls(
            host=host,
            port=port,
            drain_seconds=read_number(env, "SPIN_SHUTDOWN_TIMEOUT_SECONDS", 10.0),
            request_seconds=seconds or None,
            max_body_bytes=int(read_number(env, "SPIN_HTTP_MAX_BODY_BYTES", 128 << 20)),
            max_requests=int(
                read_number(env, "SPIN_MAX_INSTANCE_COUNT", 1000, least=1, most=10_000)
            ),
            max_memory_bytes=int(
                read_number(env, MAX_MEMORY_SETTING, memory, least=64 << 10, most=4 << 30)
            ),
            workers=int(read_number(env, "SPIN_HTTP_WORKERS", workers, least=1, most=MAX_WORKERS)),
        )


def _listen_address(text: str) -> tuple[str, int]:
    try:
        return parse_address(text)
    except ValueError:
        raise SettingError(
            f"SPIN_HTTP_LISTEN_ADDR={text!r} is not an IP address and port, like 0.0.0.0:80"
        ) from None
