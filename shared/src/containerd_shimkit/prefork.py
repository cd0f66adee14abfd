"""Keep the memory of a process shared with what it will fork.

A fork shares every page until one side writes to it, and CPython writes to what it only reads:
it counts references in each object, and puts new objects into the gaps between old ones. What is
done about both, and what it saves, is in docs/performance.md.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from types import CodeType
from typing import Final

# An object with a count of 3 << 30 or more is immortal: nothing increments or decrements it. Above
# that, because references that exist at this moment are still counted down when they end.
# Source: ob_refcnt and _Py_IMMORTAL_INITIAL_REFCNT, CPython 3.14 Include/refcount.h.
_IMMORTAL: Final = 7 << 29
# pymalloc has a pool of 16 KiB for each size, in steps of 16 bytes up to 512. Source: obmalloc.c
_SMALL_STEP: Final = 16
_SMALL_MAX: Final = 512
_SMALL_FILL_BYTES: Final = 64 << 10  # more than the gaps of any size add up to
# glibc keeps lists of freed blocks for each size, in steps of 16 bytes up to 1032 (malloc.c,
# tcache), and larger blocks that it splits.
_HEAP_SIZES: Final = (*(1 << shift for shift in range(20, 10, -1)), *range(1032, 0, -16))


def seal() -> None:
    """Prepare this process, which has imported everything, for its forks.

    What exists now will live as long as the process and be left alone by the garbage collector,
    which is on from here, whether it was or not.
    """
    gc.collect()
    if can_immortalize():
        _immortalize()
    _fill_small_blocks()
    _fill_heap()
    gc.freeze()
    gc.enable()


def can_immortalize() -> bool:
    """Whether this interpreter's objects look as ``_immortalize`` expects."""
    return (
        sys.implementation.name == "cpython"
        and sys.version_info[:2] == (3, 14)
        and sys.byteorder == "little"
        and sys.maxsize > 1 << 32
        and "t" not in sys.abiflags  # free threading; the binaries have no sysconfig data
    )


def _immortalize() -> None:
    """Stop the counting of references to everything that there is."""
    is_immortal = sys._is_immortal  # type: ignore[attr-defined]  # new in 3.14
    count_at = ctypes.c_uint32.from_address  # ob_refcnt is an object's first field
    todo = gc.get_objects()
    while todo:
        item = todo.pop()
        if not is_immortal(item):
            count_at(id(item)).value = _IMMORTAL
            todo += gc.get_referents(item)
            if isinstance(item, str):
                hash(item)  # kept in the string, at first use
            elif isinstance(item, CodeType):  # which the collector does not look into
                todo += (item.co_consts, item.co_names, item.co_linetable)


def _fill_small_blocks() -> None:
    """Fill the gaps between Python's small objects, so that new ones get pages of their own."""
    allocate = ctypes.pythonapi.PyObject_Malloc
    allocate.argtypes, allocate.restype = (ctypes.c_size_t,), ctypes.c_void_p
    for size in range(_SMALL_STEP, _SMALL_MAX + 1, _SMALL_STEP):
        for _ in range(_SMALL_FILL_BYTES // size):
            allocate(size)


class _Mallinfo2(ctypes.Structure):
    """``struct mallinfo2``, <malloc.h>."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _fill_heap() -> None:
    """The same for the C library's heap; nothing is done where that is not glibc's."""
    libc = ctypes.CDLL(None)
    try:
        mallinfo2, malloc_trim, malloc, sbrk = (
            libc[name] for name in ("mallinfo2", "malloc_trim", "malloc", "sbrk")
        )
    except AttributeError:
        return
    mallinfo2.restype = _Mallinfo2
    malloc.argtypes, malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    sbrk.argtypes, sbrk.restype = (ctypes.c_ssize_t,), ctypes.c_void_p
    malloc_trim(0)
    for size in _HEAP_SIZES:
        top = sbrk(0) - mallinfo2().keepcost
        # A block from the top says that no gap is large enough.
        while (block := malloc(size)) is not None and block < top:
            pass
