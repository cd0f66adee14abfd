"""Which shared libraries a file needs, and which of them this process has.

The loader finds by its name what is loaded already, and everything else by paths that are the
image's in a container. So what a file needs is loaded first, from where we know it to be.

Source: elf(5), link.h; ld.so(8) for the order of the directories.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

_PT_LOAD: Final = 1
_PT_DYNAMIC: Final = 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 14, 15, 29
_IDENT: Final = b"\x7fELF\x02\x01"  # 64 bits, little-endian: what there are binaries for


class LibraryError(Exception):
    """A shared library is not to be had, or is none."""


@dataclass(frozen=True, slots=True)
class Dynamic:
    """What a shared object says of itself and of others."""

    soname: str
    """Empty if it has none."""
    needed: tuple[str, ...]
    search: tuple[str, ...]
    """Directories that it looks into, ``$ORIGIN`` being its own."""


class _Segment(NamedTuple):
    """A program header: its type, and where the file has what belongs to an address."""

    kind: int
    offset: int
    address: int
    size: int
    """In the file, in bytes."""


class _LinkMap(ctypes.Structure):
    """``struct link_map``, <link.h>."""


_LinkMap._fields_ = (
    ("l_addr", ctypes.c_size_t),
    ("l_name", ctypes.c_char_p),
    ("l_ld", ctypes.c_void_p),
    ("l_next", ctypes.POINTER(_LinkMap)),
    ("l_prev", ctypes.POINTER(_LinkMap)),
)


def loaded_libraries() -> set[str]:
    """Return the file names of all shared objects of this process."""
    # A handle of dlopen is a pointer to this structure; that of the program is the first of all.
    names = set()
    entry = ctypes.cast(ctypes.CDLL(None)._handle, ctypes.POINTER(_LinkMap))
    while entry:
        names.add(os.fsdecode(entry.contents.l_name or b"").rpartition("/")[2])
        entry = entry.contents.l_next
    return names


def load_needed(path: str, directories: Sequence[str], allowed: Callable[[str], bool]) -> None:
    """Load what the shared object at ``path`` needs and this process has not.

    directories: where to look, after those that the object names. allowed: whether a library may
    come from a path. Raises LibraryError, naming what is missing.
    """
    _load_needed(Path(path), directories, allowed, loaded_libraries())


def _load_needed(
    path: Path, directories: Sequence[str], allowed: Callable[[str], bool], loaded: set[str]
) -> None:
    dynamic = read_dynamic(path)
    directories = (*dynamic.search, *directories)  # those it names are its libraries', too
    for name in dynamic.needed:
        if name in loaded:
            continue
        loaded.add(name)  # before its own: they may need each other
        places = [f"{directory}/{name}" for directory in directories]
        found = next((Path(p) for p in places if allowed(p) and Path(p).is_file()), None)
        # By its soname the loader knows later that it has been loaded: that has to be the name.
        if "/" in name or found is None or read_dynamic(found).soname != name:
            raise LibraryError(f"{path.name} needs {name}, which is not here")
        _load_needed(found, directories, allowed, loaded)
        try:
            ctypes.CDLL(str(found))
        except OSError as exc:
            raise LibraryError(str(exc)) from None


def read_dynamic(path: Path) -> Dynamic:
    """Return what the dynamic section of a file says. Raises LibraryError."""
    try:
        return _parse(path.read_bytes(), str(path.parent))
    except OSError as exc:
        raise LibraryError(f"{path.name}: {exc.strerror}") from None
    except (struct.error, ValueError, KeyError):
        raise LibraryError(f"{path.name} is no shared object") from None


def _parse(data: bytes, origin: str) -> Dynamic:
    if not data.startswith(_IDENT):
        raise ValueError
    segments = list(_segments(data))
    [(offset, size)] = [(s.offset, s.size) for s in segments if s.kind == _PT_DYNAMIC]
    values: dict[int, list[int]] = {}
    for tag, value in struct.iter_unpack("<qQ", data[offset : offset + size // 16 * 16]):
        if tag == _DT_NULL:
            break
        values.setdefault(tag, []).append(value)
    strings = _file_offset(segments, values[_DT_STRTAB][0])

    def texts(tag: int) -> list[str]:
        starts = [strings + value for value in values.get(tag, ())]
        return [os.fsdecode(data[start : data.index(b"\0", start)]) for start in starts]

    search = ":".join(texts(_DT_RUNPATH) or texts(_DT_RPATH))
    search = search.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)
    return Dynamic(
        soname="".join(texts(_DT_SONAME)),
        needed=tuple(texts(_DT_NEEDED)),
        search=tuple(directory for directory in search.split(":") if directory),
    )


def _segments(data: bytes) -> Iterator[_Segment]:
    (start,) = struct.unpack_from("<Q", data, 32)
    entry_bytes, count = struct.unpack_from("<HH", data, 54)
    for index in range(count):
        kind, _, offset, address, _, size = struct.unpack_from(
            "<IIQQQQ", data, start + index * entry_bytes
        )
        yield _Segment(kind, offset, address, size)


def _file_offset(segments: list[_Segment], address: int) -> int:
    for segment in segments:
        offset = address - segment.address
        if segment.kind == _PT_LOAD and 0 <= offset < segment.size:
            return segment.offset + offset
    raise ValueError
