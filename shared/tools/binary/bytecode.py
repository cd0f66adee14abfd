"""Turn a tree of sources into bytecode; run by the very Python that will execute it.

    python -IS bytecode.py DIRECTORY

Each ``name.py`` becomes ``name.pyc`` beside where it was, without its source: nothing is compared
with one at import, and tracebacks name the path below the directory, not the machine that built.
"""

from __future__ import annotations

import importlib.util
import marshal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Final

_UNCHECKED_HASH: Final = (1).to_bytes(4, "little")  # PEP 552


def main(directory: Path) -> None:
    """Compile and remove every source below ``directory``."""
    for path in sorted(directory.rglob("*.py")):
        source = path.read_bytes()
        code = compile(source, str(path.relative_to(directory)), "exec", dont_inherit=True)
        head = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + importlib.util.source_hash(source)
        path.with_suffix(".pyc").write_bytes(head + dumps(code))
        path.unlink()


def dumps(code: CodeType) -> bytes:
    """Return the code for a file, the same bytes at every time.

    marshal marks what has more than one reference, and a constant may or may not have some in
    other modules of this process: here each has.
    """
    held = list(_parts(code))
    dumped = marshal.dumps(code)
    del held
    return dumped


def _parts(value: object) -> Iterator[object]:
    yield value
    if isinstance(value, tuple | frozenset):
        for part in value:
            yield from _parts(part)
    elif isinstance(value, CodeType):
        yield from (value.co_filename, value.co_name, value.co_qualname)
        names = (value.co_names, value.co_varnames, value.co_cellvars, value.co_freevars)
        for part in (*names, value.co_consts):
            yield from _parts(part)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
