"""What the bytes of a binary are for, as the table of docs/binary.md."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from binary.runtime import Runtime


def size_table(runtime: Runtime, launcher: int) -> str:
    """Return Markdown: each part unpacked, and what it takes packed by itself."""
    rows = [("the launcher, with zstd's decoder and its C library", launcher, launcher)]
    for title, paths in _groups(runtime.tree):
        size = sum(path.stat().st_size for path in paths)
        rows.append((title, size, _packed_size(paths)))
    lines = ["| part | unpacked | packed |", "|---|---|---|"]
    lines += [
        f"| {name} | {_megabytes(size)} | {_megabytes(packed)} |" for name, size, packed in rows
    ]
    return "\n".join(lines)


def _groups(tree: Path) -> list[tuple[str, list[Path]]]:
    groups: dict[str, list[Path]] = {}
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            groups.setdefault(_group(path.relative_to(tree)), []).append(path)
    return sorted(groups.items(), key=lambda item: -sum(p.stat().st_size for p in item[1]))


def _group(path: Path) -> str:
    if path.parts[0] == "bin":
        return "CPython, with most extension modules"
    if path.parts[0] == "licenses":
        return "licenses"
    if len(path.parts) == 2:
        return "loader, C library and other shared libraries of Debian's"
    if path.parts[2] != "site-packages":
        return "Python's standard library, bytecode"
    name = path.parts[3]
    wheel = re.sub(r"-[0-9.]+\.dist-info$|\.pyc$", "", name)
    return {"google": "protobuf"}.get(wheel, wheel)


def _packed_size(paths: Iterable[Path]) -> int:
    with tempfile.TemporaryFile() as joined:
        for path in paths:
            joined.write(path.read_bytes())
        joined.seek(0)
        command = ["zstd", "-q", "-19", "--long=27", "-T2", "-c"]
        return len(subprocess.run(command, stdin=joined, capture_output=True, check=True).stdout)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size < 10_000_000 else f"{size / 1e6:.1f} MB"
