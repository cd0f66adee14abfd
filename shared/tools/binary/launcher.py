"""The program at the head of each binary, compiled, and the file it makes with its payloads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from binary.places import BUILD, LAUNCHER, digest_of, run

_TRAILER_MAGIC: Final = "wasmshim"
_FLAGS: Final = (
    *("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s"),
    *("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-Wl,--build-id=none"),
)


def compile_launcher() -> bytes:
    """Compile the launcher unless that was done already; return the program."""
    sources = sorted(LAUNCHER.glob("*.c"))
    compiler = run(["gcc", "--version"])
    libraries = [
        Path(run(["gcc", f"-print-file-name={n}"]).strip()) for n in ("libc.a", "libzstd.a")
    ]
    digest = digest_of(compiler, " ".join(_FLAGS), [*sources, LAUNCHER / "launcher.h", *libraries])
    program = BUILD / f"launcher-{digest}"
    if not program.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        temporary = BUILD / f"launcher-{digest}.new-{os.getpid()}"
        run(["gcc", *_FLAGS, "-o", temporary, *sources, "-lzstd"])
        temporary.rename(program)
    return program.read_bytes()


def write_binary(
    destination: Path,
    launcher: bytes,
    payloads: list[tuple[str, str, bytes, int]],
    fields: dict[str, str],
    version_text: str,
) -> None:
    """Write an executable: the launcher, payloads, what it has to know, and the trailer.

    payloads: key, name of the directory, packed bytes, size of the archive. fields: other lines.
    """
    lines = [f"{key} {value}\n" for key, value in fields.items()]
    body = [launcher]
    offset = len(launcher)
    for key, name, packed, size in payloads:
        lines.append(f"{key} {name} {offset} {len(packed)} {size}\n")
        body.append(packed)
        offset += len(packed)
    header = f"{''.join(lines)}\n{version_text}".encode()
    trailer = f"{_TRAILER_MAGIC}{offset:12}{len(header):12}".encode()
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f"{destination.name}.new-{os.getpid()}")
    temporary.write_bytes(b"".join([*body, header, trailer]))
    temporary.chmod(0o755)
    temporary.rename(destination)
