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
    entries = [_describe(entry, label) for entry, label in reversed(_labelled(cache.entries()))]
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


def _describe(entry: Entry, label: Label | None) -> Described:
    used = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.used))
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


def _labelled(entries: list[Entry]) -> list[tuple[Entry, Label | None]]:
    """Return the entries with their labels, without those that are gone by now."""
    found = []
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            found.append((entry, _label_of(entry)))
    return found


def _label_of(entry: Entry) -> Label | None:
    """Return the label of an intact entry. It does not count as used. Raises FileNotFoundError."""
    try:
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
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
    entries = _labelled(cache.entries())
    damaged = [entry for entry, label in entries if label is None]
    for entry in damaged:
        why = _remove_damaged(entry)
        done = "removed" if why is None else f"cannot be removed: {why}"
        sys.stdout.write(f"{entry.path}: damaged, {done}\n")
    sys.stdout.write(f"{len(entries)} entries, {len(damaged)} damaged\n")
    return 1 if damaged else 0


def _remove_damaged(entry: Entry) -> str | None:
    """Remove whatever is there; return why it cannot be removed, None if it is gone."""
    import shutil

    try:
        if entry.path.is_dir() and not entry.path.is_symlink():
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink(missing_ok=True)
    except FileNotFoundError:
        return None
    except OSError as exc:
        return exc.strerror or str(exc)
    return None


def _empty(cache: CompiledModuleCache) -> int:
    """Return 1 if anything that is not in use cannot be removed."""
    cache.sweep()
    entries = cache.entries()
    kept = [entry for entry in entries if not cache.remove_unused(entry.path)]
    in_use = [entry for entry in kept if is_in_use(entry.path)]
    stuck = []
    for entry in kept:
        if entry not in in_use and (why := _remove_damaged(entry)) is not None:
            sys.stderr.write(f"{entry.path}: cannot be removed: {why}\n")
            stuck.append(entry)
    left = in_use + stuck
    size = sum(entry.size for entry in entries) - sum(entry.size for entry in left)
    said = f"{len(entries) - len(left)} entries removed, {size} bytes; {len(in_use)} in use"
    if stuck:
        said += f"; {len(stuck)} cannot be removed"
    sys.stdout.write(said + "\n")
    return 1 if stuck else 0
