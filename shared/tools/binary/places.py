"""Where the build finds its sources and keeps what it can use again."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1]
LAUNCHER = TOOLS.parent / "launcher"
REPOSITORY = TOOLS.parents[1]
BUILD = REPOSITORY / "build"
DOWNLOADS = REPOSITORY / ".cache"

MACHINE = platform.machine()
"""``x86_64`` or ``aarch64``: binaries are built for the machine that builds them."""


class BuildError(Exception):
    """The build cannot go on; the message is one sentence for the user."""


def digest_of(*parts: bytes | str | Iterable[Path]) -> str:
    """Return 16 hexadecimal digits that stand for the parts; paths count by what they hold."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            part = part.encode()
        if isinstance(part, bytes):
            digest.update(len(part).to_bytes(8, "big") + part)
            continue
        for path in part:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def run(command: Sequence[str | Path], **options: str) -> str:
    """Run a tool; return what it printed. Raises BuildError."""
    environment = {"PATH": f"{_path()}:/usr/sbin:/sbin", "LC_ALL": "C", **options}
    try:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, env=environment
        )
    except OSError as exc:
        raise BuildError(f"cannot run {command[0]}: {exc.strerror}") from exc
    if done.returncode:
        raise BuildError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _path() -> str:
    return ":".join(
        {str(Path(found).parent): None for name in ("gcc", "zstd") if (found := shutil.which(name))}
        | {"/usr/local/bin": None, "/usr/bin": None, "/bin": None}
    )
