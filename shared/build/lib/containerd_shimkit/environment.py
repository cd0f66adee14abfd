"""Settings in the environment of a container."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from containerd_shimkit.errors import ExitCode, InvalidArgumentError


class SettingError(InvalidArgumentError):
    """An environment variable has a value that cannot be used."""

    exit_code = ExitCode.MANIFEST


def read_number(
    env: Mapping[str, str], name: str, default: float, *, least: float = 0, most: float = 1e12
) -> float:
    """Return the number that a variable says, ``default`` if it is not set or empty.

    Raises SettingError naming the variable, its value and the rule.
    """
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
    """Return host and port of ``0.0.0.0:80`` or ``[::]:80``. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    ipaddress.ip_address(host)
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    if not colon or not 0 <= number <= 65535:
        raise ValueError(f"{port!r} is no port")
    return host, number
