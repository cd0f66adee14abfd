"""What the container's environment says about serving; the reference is docs/configuration.md."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from containerd_shimkit.errors import ExitCode, InvalidArgumentError
from containerd_shimkit.workers import MAX_WORKERS

DEFAULT_ADDRESS: Final = "0.0.0.0:80"
MAX_MEMORY_SETTING: Final = "SPIN_MAX_INSTANCE_MEMORY"


class SettingError(InvalidArgumentError):
    """An environment variable has a value that cannot be used."""

    exit_code = ExitCode.MANIFEST


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
        host, port = parse_address(env.get("SPIN_HTTP_LISTEN_ADDR") or DEFAULT_ADDRESS)
        seconds = _number(env, "SPIN_HTTP_REQUEST_TIMEOUT_SECONDS", 60.0)
        memory = min(memory_limit_bytes or 4 << 30, 4 << 30)
        workers = min(processors, MAX_WORKERS)
        return cls(
            host=host,
            port=port,
            drain_seconds=_number(env, "SPIN_SHUTDOWN_TIMEOUT_SECONDS", 10.0),
            request_seconds=seconds or None,
            max_body_bytes=int(_number(env, "SPIN_HTTP_MAX_BODY_BYTES", 128 << 20)),
            max_requests=int(_number(env, "SPIN_MAX_INSTANCE_COUNT", 1000, least=1, most=10_000)),
            max_memory_bytes=int(
                _number(env, MAX_MEMORY_SETTING, memory, least=64 << 10, most=4 << 30)
            ),
            workers=int(_number(env, "SPIN_HTTP_WORKERS", workers, least=1, most=MAX_WORKERS)),
        )


def _number(
    env: Mapping[str, str], name: str, default: float, *, least: float = 0, most: float = 1e12
) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        raise SettingError(f"{name}={text!r} is not a number") from None
    if not least <= value <= most:
        raise SettingError(f"{name}={text!r} is not between {least:.0f} and {most:.0f}")
    return value


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``0.0.0.0:80`` or ``[::]:80``. Raises SettingError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        number = int(port) if port.isascii() and port.isdigit() else -1
    except ValueError:
        number = -1
    if not colon or not 0 <= number <= 65535:
        raise SettingError(
            f"SPIN_HTTP_LISTEN_ADDR={text!r} is not an IP address and port, like 0.0.0.0:80"
        )
    return host, number
