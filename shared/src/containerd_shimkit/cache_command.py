"""The ``cache`` command: what the node's cache of compiled modules holds, for people."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from containerd_shimkit.runtime import cache_directory
from containerd_shimkit.wasm.cache import (
    CompiledModuleCache,
    Entry,
    Label,
    cpu_fingerprint,
    is_in_use,
    read_label,
)
from containerd_shimkit.wasm.engine import COMPILER_FINGERPRINT

_HEADINGS: Final = ("DIGEST", "SIZE", "USED", "WASMTIME", "STATE")


@dataclass(frozen=True, slots=True)
class Described:
    """What ``list`` says of an entry; the fields of its ``--json``."""

    digest: str
    """Of the ``.wasm`` file; empty if the entry is damaged."""
    size: int
    """Bytes of the compiled module."""
    used: str
    """When a container was started with it last, RFC 3339."""
    wasmtime: str
    state: str
    """``current``, ``stale`` (of another wasmtime, setting or processor) or ``damaged``."""
    in_use: bool


def define_cache_command(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the arguments that ``run_cache_command`` takes."""
    parser.description = f"Look at the compiled modules of this node: {cache_directory()}."
    parser.add_argument(
        "action",
        choices=("list", "verify", "empty"),
        help="list entries; verify them all and remove what is damaged; remove all that is unused",
    )
    parser.add_argument("-json", "--json", action="store_true", help="list: as a JSON array")


def run_cache_command(options: argparse.Namespace) -> int:
    """Do it and return the exit code. Raises OSError."""
    cache = CompiledModuleCache(Path(cache_directory()))
    if options.action == "list":
        _list(cache, as_json=options.json)
        return 0
    if options.action == "verify":
        return _verify(cache)
    return _empty(cache)


def _list(cache: CompiledModuleCache, *, as_json: bool) -> None:
    entries = [_describe(entry) for entry in reversed(cache.entries())]
    if as_json:
        sys.stdout.write(json.dumps([asdict(entry) for entry in entries], indent=2) + "\n")
        return
    rows = [_HEADINGS, *(_row(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _row(entry: Described) -> tuple[str, ...]:
    state = f"{entry.state}, in use" if entry.in_use else entry.state
    return (entry.digest or "-", str(entry.size), entry.used, entry.wasmtime or "-", state)


def _describe(entry: Entry) -> Described:
    used = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.used))
    label = _label_of(entry)
    if label is None:
        return Described("", entry.size, used, "", "damaged", False)
    ours = label.compiler == COMPILER_FINGERPRINT and label.cpu == cpu_fingerprint()
    return Described(
        digest=f"sha256:{label.wasm}",
        size=entry.size,
        used=used,
        wasmtime=label.compiler.partition(" ")[0].removeprefix("wasmtime="),
        state="current" if ours else "stale",
        in_use=is_in_use(entry.path),
    )


def _label_of(entry: Entry) -> Label | None:
    """Return the label of an intact entry. It does not count as used."""
    try:
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        data = read_label(descriptor, entry.key)
        label = None if data is None else Label.decode(data)
    except (OSError, ValueError, TypeError):
        return None
    finally:
        os.close(descriptor)
    return label if label is not None and label.key == entry.key else None


def _verify(cache: CompiledModuleCache) -> int:
    """Return 1 if any entry was damaged."""
    cache.sweep()
    entries = cache.entries()
    damaged = [entry for entry in entries if _label_of(entry) is None]
    for entry in damaged:
        gone = _remove_damaged(entry)
        sys.stdout.write(f"{entry.path}: damaged, {'removed' if gone else 'cannot be removed'}\n")
    sys.stdout.write(f"{len(entries)} entries, {len(damaged)} damaged\n")
    return 1 if damaged else 0


def _remove_damaged(entry: Entry) -> bool:
    import shutil

    if entry.path.is_dir() and not entry.path.is_symlink():
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            entry.path.unlink()
    return not os.path.lexists(entry.path)


def _empty(cache: CompiledModuleCache) -> int:
    cache.sweep()
    entries = cache.entries()
    kept = [entry for entry in entries if not cache.remove_unused(entry.path)]
    kept = [entry for entry in kept if is_in_use(entry.path) or not _remove_damaged(entry)]
    size = sum(entry.size for entry in entries) - sum(entry.size for entry in kept)
    sys.stdout.write(
        f"{len(entries) - len(kept)} entries removed, {size} bytes; {len(kept)} in use\n"
    )
    return 0
