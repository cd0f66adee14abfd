"""Write CPython's library and the prelude as data to link: modules.bin, modules.c, modules.s.

    python3.11 freeze.py LIB PRELUDE OUT [MODULE...]

With modules, only these of the prelude. Run by the same version of Python, whose bytecode it is;
docstrings and assertions of the library are left out. Code objects name their module
(`<frozen json>`), never a file: there is none.
"""

from __future__ import annotations

import marshal
import sys
from collections.abc import Iterator
from pathlib import Path

VERSION = (3, 11)

# What cannot work without processes, threads, sockets, a terminal or shared libraries; what is for
# developing programs; and what is there in C.
LEFT_OUT = frozenset(
    (
        *("__hello__", "__phello__", "_aix_support", "_bootsubprocess", "_osx_support"),
        *("_pydecimal", "_pyio", "antigravity", "asynchat", "asyncore", "bz2", "cProfile"),
        *("cgitb", "concurrent.futures.process", "crypt", "ctypes", "curses", "dbm", "distutils"),
        *("doctest", "ensurepip", "ftplib", "idlelib", "imaplib", "lib2to3", "lzma", "msilib"),
        *("multiprocessing", "nntplib", "pdb", "poplib", "profile", "pstats", "pty", "pydoc"),
        *("pydoc_data", "shelve", "site-packages", "smtpd", "sqlite3", "ssl", "telnetlib", "test"),
        *("this", "tkinter", "tty", "turtle", "turtledemo", "unittest.__main__", "unittest.test"),
        *("venv", "webbrowser", "xmlrpc.server", "zipapp"),
        # Replaced by the prelude's.
        "asyncio.unix_events",
        # Only for Windows.
        *("asyncio.windows_events", "asyncio.windows_utils", "encodings.mbcs", "encodings.oem"),
        "encodings.cp65001",
        # Frozen by CPython's own build as objects, which takes no memory.
        *("_collections_abc", "_sitebuiltins", "abc", "codecs", "genericpath", "io"),
        *("importlib._bootstrap", "importlib._bootstrap_external", "importlib.machinery"),
        *("importlib.util", "ntpath", "os", "posixpath", "runpy", "site", "stat", "zipimport"),
    )
)

# Modules of the library -> the prelude's module that changes them, imported at their end.
ADDED = {"random": "_random_seeds", "urllib.request": "_urllib_fetch"}
# Files of the prelude -> the module that they are, if it is not called so.
PLACED = {"_asyncio_events": "asyncio.unix_events"}


def library(root: Path) -> Iterator[tuple[str, Path, bool]]:
    """Yield (module, file, whether it is a package), sorted by module."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        package = parts[-1] == "__init__"
        names = parts[:-1] if package else parts
        name = ".".join(names)
        if not any(".".join(names[:n]) in LEFT_OUT for n in range(1, len(names) + 1)):
            yield name, path, package


def modules(lib: Path, own: list[Path]) -> Iterator[tuple[str, bytes, bool]]:
    """Yield (module, source, whether it is a package)."""
    stems = {path.stem for path in own}
    for name, path, package in library(lib):
        source = path.read_bytes()
        if ADDED.get(name) in stems:
            source += f"\nimport {ADDED[name]}\n".encode()
        yield name, source, package
    for path in own:
        yield PLACED.get(path.stem, path.stem), path.read_bytes(), False


def main() -> None:
    if sys.version_info[:2] != VERSION:
        raise SystemExit(f"freeze.py: needs Python 3.11, this is {sys.version}")
    lib, prelude, out = map(Path, sys.argv[1:4])
    chosen = sys.argv[4:]
    own = [path for path in sorted(prelude.glob("*.py")) if not chosen or path.stem in chosen]
    data = bytearray()
    table = []
    for name, source, package in modules(lib, own):
        code = compile(source, f"<frozen {name}>", "exec", dont_inherit=True, optimize=2)
        dumped = marshal.dumps(code)
        table.append(f'    {{"{name}", wws_modules + {len(data)}, {len(dumped)}, {package:d}, 0}},')
        data += dumped
    (out / "modules.bin").write_bytes(data)
    (out / "modules.s").write_text(
        '.section .rodata.wws_modules,"",@\n.globl wws_modules\nwws_modules:\n'
        f'.incbin "modules.bin"\n.size wws_modules, {len(data)}\n'
    )
    (out / "modules.c").write_text(
        "#include <Python.h>\nextern const unsigned char wws_modules[];\n"
        "const struct _frozen wws_frozen_modules[] = {\n" + "\n".join(table) + "\n    {0},\n};\n"
    )
    print(f"{len(table)} modules, {len(data):,} bytes")


main()
