"""How a command is handed to the zygote: the socket's place and the message.

The zygote greets with one byte and gets the message. Its fork answers that it has taken the work,
one byte, and with the exit code, one byte. The message is one packet: counts, arguments,
environment and directory, separated by NUL, which none of them can contain; the standard
descriptors travel beside it. The launcher writes it (``shared/launcher/zygote.c``).
"""

from __future__ import annotations

import os

from containerd_shimkit.runtime import ShimKind, run_directory

TAKEN = b"+"
"""From here on it is the fork's to do, and nobody else's."""


def zygote_socket(kind: ShimKind, build_id: str) -> str:
    """Return the path of the socket of this build's zygote."""
    return f"{run_directory()}/{kind.name}-{build_id}.sock"


def decode(message: bytes) -> tuple[list[str], dict[str, str], str]:
    """Return arguments, environment and working directory. Raises ValueError, IndexError."""
    parts = os.fsdecode(message).split("\0")
    count, environment_count = int(parts[0]), int(parts[1])
    arguments = parts[2 : 2 + count]
    environment = parts[2 + count : 2 + count + environment_count]
    pairs = dict(entry.split("=", 1) for entry in environment)
    return arguments, pairs, parts[2 + count + environment_count]
