"""Compiled modules inside a container: opened from the descriptor the compiler handed over."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import wasmtime

from containerd_shimkit.errors import MissingFileError, ModuleError

Compile = Callable[[int, str], int]
"""``(descriptor of the .wasm, name for messages) -> descriptor of the compiled file``."""


_MAX_SHOWN: Final = 200


class HasImports(Protocol):
    """What ``wasmtime.Module`` says of itself."""

    @property
    def imports(self) -> list[wasmtime.ImportType]: ...


def open_wasm(path: Path, name: str) -> int:
    """Return a descriptor of the ``.wasm`` file; a FIFO or device in an image does not hang us.

    Raises MissingFileError, ModuleError.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as exc:
        raise MissingFileError(f"{name}: no such file in the image") from exc
    except OSError as exc:
        raise ModuleError(f"{name}: cannot be opened: {exc.strerror}") from exc


def load_compiled(engine: wasmtime.Engine, descriptor: int, name: str) -> wasmtime.Module:
    """Return the module of a compiled file, mapped so that all containers share its pages.

    The descriptor stays the caller's; a copy of it lives as long as the module, which tells the
    cache that the entry is in use. Raises ModuleError.
    """
    module = _deserialize(engine, descriptor, name)
    keep = os.dup(descriptor)
    # At an exit the kernel closes it: what else runs then may have opened another under its number.
    weakref.finalize(module, os.close, keep).atexit = False
    return module


def _deserialize(engine: wasmtime.Engine, descriptor: int, name: str) -> wasmtime.Module:
    path = f"/proc/self/fd/{descriptor}"
    try:
        if Path(path).exists():
            return wasmtime.Module.deserialize_file(engine, path)
        # No /proc in this container: a private copy is the second best.
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as data:
            return wasmtime.Module.deserialize(engine, data[:])
    except wasmtime.WasmtimeError as exc:
        raise ModuleError(f"{name}: the compiled module cannot be used: {exc}") from exc


def check_imports(
    module: HasImports, linker: wasmtime.Linker, store: wasmtime.Store, name: str
) -> None:
    """Raise ModuleError naming every import of ``module`` that ``linker`` does not provide."""
    missing = [
        _shown(f"{wanted.module}.{wanted.name}")
        for wanted in module.imports
        if not _provides(linker, store, wanted)
    ]
    if missing:
        raise ModuleError(f"{name}: imports {', '.join(missing)}, which this shim does not provide")


def _shown(name: str) -> str:
    """Return a name of a module's own for messages: it may hold anything, and be of any length."""
    cut = name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _provides(linker: wasmtime.Linker, store: wasmtime.Store, wanted: wasmtime.ImportType) -> bool:
    try:
        linker.get(store, wanted.module, wanted.name or "")
    except wasmtime.WasmtimeError:
        return False
    return True
