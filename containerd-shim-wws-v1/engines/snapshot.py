"""Make a module that begins where another one has got to: its memory becomes its data.

A reactor is initialised once, here, and what its memory holds then is written into the module's
data segments. An instance of the result has it at no cost: hosts map data segments, and copy a page
when it is written to.

What is below the stack pointer is dead, and left out. Nothing but memory is kept, so the module may
have no mutable global but the stack pointer, and change no table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import wasmtime

# Section numbers of the binary format.
_MEMORY: Final = 5
_GLOBAL: Final = 6
_CODE: Final = 10
_DATA: Final = 11
_DATA_COUNT: Final = 12
_CUSTOM: Final = 0

_GAP: Final = 32  # zeros that cost less in a segment than another segment would


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--prepare", type=Path, help="a file whose bytes `prepare` is called with")
    arguments = parser.parse_args()
    wasm = arguments.module.read_bytes()
    prepare = arguments.prepare.read_bytes() if arguments.prepare else None
    try:
        memory = run(wasm, prepare)
    except (wasmtime.WasmtimeError, wasmtime.Trap, RuntimeError) as exc:
        print(f"{arguments.module}: {exc}", file=sys.stderr)
        return 1
    arguments.result.write_bytes(rewrite(wasm, memory))
    return 0


def run(wasm: bytes, prepare: bytes | None) -> bytes:
    """Return the memory of an initialised instance.

    Raises RuntimeError if ``prepare`` returned an error; what it printed went to stderr.
    """
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    wasi = wasmtime.WasiConfig()
    wasi.inherit_stderr()
    store.set_wasi(wasi)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    module = wasmtime.Module(engine, wasm)
    linker.define_unknown_imports_as_traps(module)
    exports: Any = linker.instantiate(store, module).exports(store)
    exports["_initialize"](store)
    memory: wasmtime.Memory = exports["memory"]
    if prepare is not None:
        place = exports["allocate"](store, len(prepare))
        memory.write(store, prepare, place)
        if exports["prepare"](store, place, len(prepare)):
            raise RuntimeError("prepare failed")
    return bytes(memory.read(store))


def rewrite(wasm: bytes, memory: bytes) -> bytes:
    """Return the module with ``memory`` as its data, without names and other custom sections."""
    result = bytearray(wasm[:8])
    dead = 0
    for number, content in _sections(wasm):
        if number == _GLOBAL:
            dead = _stack_pointer(content)
        if number == _MEMORY:
            content = b"\x01\x00" + _leb(len(memory) >> 16)
        if number not in (_DATA, _DATA_COUNT, _CUSTOM):
            result += _section(number, content)
        if number == _CODE:
            segments = list(_segments(memory, dead))
            data = b"".join(
                b"\x00\x41" + _signed_leb(start) + b"\x0b" + _leb(end - start) + memory[start:end]
                for start, end in segments
            )
            result += _section(_DATA, _leb(len(segments)) + data)
    return bytes(result)


def _segments(memory: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges from ``start`` on that are not zero."""
    zeros = bytes(_GAP)
    while True:
        while start < len(memory) and not memory[start]:
            # In strides first: most of what is left out is large.
            start += _GAP if memory[start : start + _GAP] == zeros else 1
        if start >= len(memory):
            return
        end = memory.find(zeros, start)
        if end < 0:
            end = len(memory)
        yield start, end
        start = end


def _stack_pointer(globals_section: bytes) -> int:
    """Return the initial value of the first global, which linkers make the stack pointer."""
    count, place = _read_leb(globals_section, 0)
    assert count
    assert globals_section[place : place + 3] == b"\x7f\x01\x41"  # i32, mutable, i32.const
    value, _ = _read_leb(globals_section, place + 3)
    return value


def _sections(wasm: bytes) -> Iterator[tuple[int, bytes]]:
    position = 8
    while position < len(wasm):
        number = wasm[position]
        size, position = _read_leb(wasm, position + 1)
        yield number, wasm[position : position + size]
        position += size


def _section(number: int, content: bytes) -> bytes:
    return bytes([number]) + _leb(len(content)) + content


def _read_leb(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        shift, position = shift + 7, position + 1
        if not byte & 0x80:
            return value, position


def _leb(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])


def _signed_leb(value: int) -> bytes:
    """Encode an address: not negative, so that its last byte's sign bit must be clear."""
    result = bytearray()
    while value > 0x3F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])


if __name__ == "__main__":
    sys.exit(main())
