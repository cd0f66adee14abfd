"""Archives with the same bytes for the same contents: cpio's "new ASCII" format, packed by zstd.

The format is the kernel's for its initramfs; the launcher reads it in a page of C.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from binary.places import run

_LEVEL: Final = "-19"
_WINDOW: Final = "--long=27"  # all of it: libraries repeat themselves far apart


def pack(directory: Path) -> bytes:
    """Return the archive of everything below ``directory``, parents before children."""
    parts = [
        _entry(str(path.relative_to(directory)), path.lstat().st_mode, _data(path))
        for path in sorted(directory.rglob("*"), key=lambda path: path.parts)
    ]
    return b"".join([*parts, _entry("TRAILER!!!", 0, b"")])


def compress(data: bytes, destination: Path) -> bytes:
    """Return ``data`` as one zstd frame with its checksum; the file keeps it."""
    if not destination.exists():
        # Several builds may run at once.
        plain = destination.with_suffix(f".{os.getpid()}.cpio")
        packed = destination.with_suffix(f".{os.getpid()}.new")
        plain.write_bytes(data)
        # Two workers, however many cores: their number is part of what the bytes depend on.
        run(["zstd", "-q", "-f", _LEVEL, _WINDOW, "-T2", "--check", plain, "-o", packed])
        plain.unlink()
        packed.rename(destination)
    return destination.read_bytes()


def _data(path: Path) -> bytes:
    if path.is_symlink():
        return bytes(path.readlink())
    return b"" if path.is_dir() else path.read_bytes()


def _entry(name: str, mode: int, data: bytes) -> bytes:
    if stat.S_ISLNK(mode):
        mode = stat.S_IFLNK | 0o777
    elif stat.S_ISREG(mode):
        mode = stat.S_IFREG | (0o755 if mode & 0o100 else 0o644)
    elif stat.S_ISDIR(mode):
        mode = stat.S_IFDIR | 0o755
    assert "\n" not in name, "a line of the launcher's manifest"
    raw = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, two devices of two numbers, name, checksum
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + raw
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
