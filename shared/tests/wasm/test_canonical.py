"""The canonical ABI: layouts, values that survive, and what a hostile guest may pass."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shimkit.testing.guests import GuestHost
from containerd_shimkit.testing.turns import longest_turn
from containerd_shimkit.wasm.canonical import (
    BOOL,
    BYTES,
    F32,
    F64,
    MAX_ELEMENTS,
    S8,
    S16,
    S32,
    S64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    AbiError,
    Blocks,
    Enum,
    Lifting,
    List,
    Option,
    Record,
    Result,
    Type,
    Variant,
)
from containerd_shimkit.wasm.guest import Guest, GuestMemoryError
from containerd_shimkit.wasm.imports import AsyncImports
from containerd_shimkit.wasm.interfaces import Function, Interface, hand_over
from containerd_shimkit.wasm.native import GuestTrap

DEADLINE = 20.0  # seconds

ERROR = Variant(no_such_key=None, io=STRING)
VALUE = Variant(integer=S64, real=F64, text=STRING, blob=BYTES, null=None)
ROWS = Record(List(STRING), List(List(VALUE)))


def memory_of(type_: Type, value: Any) -> tuple[memoryview, int]:
    """Return a memory that holds a value, and where."""
    area, blocks = bytearray(type_.size), Blocks()
    type_.lower(blocks, area, 0, value)
    memory = bytearray(16)
    addresses = []
    for content, align in zip(blocks.contents, blocks.aligns, strict=True):
        memory += bytes(-len(memory) % align)
        addresses.append(len(memory))
        memory += content
    blocks.resolve(addresses)
    # The blocks were copied before their pointers were there.
    for address, content in zip(addresses, blocks.contents, strict=True):
        memory[address : address + len(content)] = content
    memory += bytes(-len(memory) % type_.align)
    at = len(memory)
    return memoryview(bytes(memory + area)), at


def returned(type_: Type, value: Any) -> Any:
    """Return what comes back of a value that went through a memory."""
    memory, at = memory_of(type_, value)
    return type_.load(Lifting(memory), bytes(memory), at)


# The sizes and offsets that wit-bindgen 0.2 was seen to use.
@pytest.mark.parametrize(
    ("type_", "size", "align", "flat"),
    [
        (U8, 1, 1, "i"),
        (U64, 8, 8, "l"),
        (F32, 4, 4, "f"),
        (STRING, 8, 4, "ii"),
        (List(VALUE), 8, 4, "ii"),
        (Enum("a", "b"), 1, 1, "i"),
        (VALUE, 16, 8, ""),
        (ERROR, 12, 4, ""),
        (Record(STRING, U8), 12, 4, "iii"),
        (Record(U8, U64, U16), 24, 8, "ili"),
        (Option(BYTES), 12, 4, "iii"),
        (Option(Record(U32, F32)), 12, 4, "iif"),
        (Result(None, Enum("success", "error")), 2, 1, ""),
        (Result(BYTES, Enum("success", "error")), 12, 4, ""),
        (Result(S64, Enum("success", "error")), 16, 8, ""),
        (Result(BYTES, ERROR), 16, 4, ""),
        (Result(BOOL, ERROR), 16, 4, ""),
        (Result(ROWS, ERROR), 20, 4, ""),
        (Result(U64, ERROR), 24, 8, ""),
    ],
)
def test_layout(type_: Type, size: int, align: int, flat: str) -> None:
    assert (type_.size, type_.align, type_.flat) == (size, align, flat)


def test_result_in_bytes() -> None:
    area, blocks = bytearray(20), Blocks()
    Result(ROWS, ERROR).lower(
        blocks, area, 0, (True, (["id"], [[("integer", -5), ("null", None)]]))
    )
    assert blocks.contents == [
        struct.pack("<II", 0, 2),
        b"id",
        struct.pack("<II", 0, 2),
        struct.pack("<B7xqB15x", 0, -5, 4),
    ]
    blocks.resolve([0x100, 0x200, 0x300, 0x400])
    assert area == struct.pack("<B3xIIII", 0, 0x100, 1, 0x300, 1)
    assert blocks.contents[2] == struct.pack("<II", 0x400, 2)
    area = bytearray(16)
    Result(BYTES, ERROR).lower(Blocks(), area, 0, (False, ("no-such-key", None)))
    assert area == struct.pack("<B3xB11x", 1, 0)


VALUES = st.one_of(
    st.tuples(st.just("integer"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("real"), st.floats(allow_nan=False)),
    st.tuples(st.just("text"), st.text()),
    st.tuples(st.just("blob"), st.binary()),
    st.just(("null", None)),
)


@given(st.lists(st.text()), st.lists(st.lists(VALUES)))
def test_what_is_lowered_can_be_lifted(columns: list[str], rows: list[list[Any]]) -> None:
    # A lone surrogate is no text that a guest could be given.
    columns = [name.encode(errors="replace").decode() for name in columns]
    assert returned(ROWS, (columns, rows)) == (columns, rows)


@pytest.mark.parametrize(
    ("type_", "least", "most"),
    [(S8, -128, 127), (S16, -32768, 32767), (S32, -(2**31), 2**31 - 1), (U16, 0, 65535)],
)
def test_numbers_are_cut_as_flat_arguments(type_: Type, least: int, most: int) -> None:
    lifting = Lifting(memoryview(b""))
    for value in (least, most, 0):
        assert type_.lift(lifting, iter([value & 0xFFFF_FFFF])) == value
        assert returned(type_, value) == value
    junk_above = (most & 0xFFFF_FFFF) | (0xFFFF_FFFF << type_.size * 8 & 0xFFFF_FFFF)
    assert type_.lift(lifting, iter([junk_above])) == most


@dataclass
class Point:
    x: int
    y: float


def test_records_are_made_and_read_by_names() -> None:
    type_ = Record(S32, F64, make=Point, names=("x", "y"))
    assert returned(type_, Point(-3, 0.5)) == Point(-3, 0.5)
    assert type_.lift(Lifting(memoryview(b"")), iter([7, 1.5])) == Point(7, 1.5)


def test_options_pass_over_what_is_not_there() -> None:
    type_ = Record(Option(Record(U32, F32)), U8)
    lifting = Lifting(memoryview(b""))
    assert type_.lift(lifting, iter([0, 9, 9.0, 3])) == (None, 3)
    assert type_.lift(lifting, iter([1, 9, 9.0, 3])) == ((9, 9.0), 3)
    assert returned(Option(STRING), None) is None


# Hostile guests


@pytest.mark.parametrize(
    ("type_", "values", "message"),
    [
        (STRING, [0, 1 << 20], "the guest named 1048576 bytes at 0x0"),
        (STRING, [0xFFFF_FFFF, 8], "0xffffffff"),
        (STRING, [0, 1], "not UTF-8"),
        (Enum("a", "b"), [2], "case 2 of 2"),
        (Option(U8), [2, 0], "neither none nor some"),
        (List(U8), [0, MAX_ELEMENTS + 1], "more than 100000 elements"),
        (List(STRING), [0, 0xFFFF_FFFF], "more than 100000 elements"),
        (List(VALUE), [8, 1], "case 255 of 5"),
        (List(Option(U8)), [8, 1], "neither none nor some"),
    ],
)
def test_what_is_no_value_traps(type_: Type, values: list[int], message: str) -> None:
    memory = memoryview(b"\xff" * (1 << 19))
    with pytest.raises((AbiError, GuestMemoryError), match=message):
        type_.lift(Lifting(memory), iter(values))


def test_the_same_bytes_many_times_trap() -> None:
    """Each of a thousand strings is all of the memory."""
    memory = bytearray(1 << 16)
    count = 1000
    for n in range(count):
        struct.pack_into("<II", memory, n * 8, 0, len(memory))
    with pytest.raises(AbiError, match="parts of it repeatedly"):
        List(BYTES).lift(Lifting(memoryview(memory)), iter([0, count]))


def test_elements_of_all_lists_are_counted_together() -> None:
    memory = bytearray(1 << 20)
    for n in range(100):
        struct.pack_into("<II", memory, n * 8, 0, 2000)
    with pytest.raises(AbiError, match="elements"):
        List(List(U8)).lift(Lifting(memoryview(memory)), iter([0, 100]))


# Interfaces, called by a guest

TEXT = """(module
  (import "store" "get" (func $get (param i32 i32 i32)))
  (import "store" "close" (func $close (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 8) "key")
  (global $free (mut i32) (i32.const 4096))
  (func (export "canonical_abi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $at) (local.get 3)))
    (block $fits
      (br_if $fits (i32.lt_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
      (drop (memory.grow (i32.add (i32.const 1) (i32.div_u (local.get 3) (i32.const 65536))))))
    (local.get $at))
  (func (export "run") (param i32) (result i32)
    (call $close (i32.const 7))
    (call $get (i32.const 8) (i32.const 3) (local.get 0))
    (local.get 0)))"""


class StoreError(Exception):
    """Of the host below."""


def call_store(host: GuestHost, values: Any, text: str = TEXT) -> tuple[bytes, list[Any]]:
    """Call ``get``, which returns a list of strings; return the guest's memory and the calls."""
    calls: list[Any] = []

    async def get(state: str, key: str) -> list[str]:
        calls.append((state, key))
        await asyncio.sleep(0)
        if isinstance(values, Exception):
            raise values
        return values  # type: ignore[no-any-return]

    async def close(state: str, handle: int) -> None:
        calls.append((state, handle))

    def error(exc: Exception) -> Any:
        return ("io", str(exc)) if isinstance(exc, StoreError) else None

    def report(state: str, name: str, exc: Exception, has_text: bool) -> None:
        calls.append((state, name, str(exc), has_text))

    interface = Interface(
        "store",
        [
            Function("get", [STRING], Result(List(STRING), ERROR), get),
            Function("close", [U32], None, close),
        ],
        error,
        report=report,
    )

    def define(imports: AsyncImports) -> None:
        for name in ("get", "close"):
            interface.define(imports, name)

    template = host.template(text, define=define)

    async def run() -> bytes:
        with host.guest(template, state="state") as guest:
            async with asyncio.timeout(DEADLINE):
                await guest.call(guest.export(b"run"), 256)
            return bytes(guest.memory())

    return asyncio.run(run()), calls


def test_a_guest_gets_its_result(host: GuestHost) -> None:
    memory, calls = call_store(host, ["a", "", "größer"])
    assert calls == [("state", 7), ("state", "key")]
    found = Result(List(STRING), ERROR)
    assert memory[256] == 0
    assert List(STRING).load(Lifting(memoryview(memory)), memory, 260) == ["a", "", "größer"]
    assert found.size == 16


def test_a_guest_gets_an_error(host: GuestHost) -> None:
    memory, calls = call_store(host, StoreError("it is away"))
    assert memory[256] == 1
    assert ERROR.load(Lifting(memoryview(memory)), memory, 260) == ("io", "it is away")
    assert calls[-1] == ("state", "store.get", "it is away", True)


def test_an_error_of_nobody_is_a_trap(host: GuestHost) -> None:
    with pytest.raises(Exception, match="the host call failed: a bug"):
        call_store(host, ValueError("a bug"))


def test_a_guest_without_allocator(host: GuestHost) -> None:
    text = TEXT.replace("canonical_abi_realloc", "other")
    with pytest.raises(Exception, match="exports no function 'canonical_abi_realloc'"):
        call_store(host, ["a"], text)


@pytest.mark.parametrize(
    "other",
    [
        '(export "canonical_abi_realloc" (memory 0))',
        '(table (export "canonical_abi_realloc") 1 funcref)',
        '(global (export "canonical_abi_realloc") i64 (i64.const 0x7f0012345678))',
    ],
)
def test_an_allocator_that_is_no_function(host: GuestHost, other: str) -> None:
    text = TEXT.replace('(export "canonical_abi_realloc")', "")
    text = text.replace('(data (i32.const 8) "key")', f'(data (i32.const 8) "key") {other}')
    with pytest.raises(Exception, match="exports no function 'canonical_abi_realloc'"):
        call_store(host, ["a"], text)


@pytest.mark.parametrize(
    "type_", ["(param i32 i32 i32) (result i32)", "(param i64 i32 i32 i32) (result i32)"]
)
def test_an_allocator_of_another_type(host: GuestHost, type_: str) -> None:
    text = TEXT.replace("canonical_abi_realloc", "other").replace(
        "(func (export",
        f'(func (export "canonical_abi_realloc") {type_} unreachable)\n(func (export',
        1,
    )
    with pytest.raises(GuestTrap, match="expected"):
        call_store(host, ["a"], text)


def test_memory_that_grows_while_a_result_is_handed_over(host: GuestHost) -> None:
    values = [f"{n:>1000}" for n in range(3000)]
    memory, _ = call_store(host, values)
    assert len(memory) > 3_000_000
    assert List(STRING).load(Lifting(memoryview(memory)), memory, 260) == values


def test_a_guest_gets_a_handle(host: GuestHost) -> None:
    async def prepare(state: str, size: int) -> int:
        return size + 1 if size else -1

    def define(imports: AsyncImports) -> None:
        functions = [Function("prepare", [U32], U32, prepare)]
        Interface("store", functions, lambda _: None).define(imports, "prepare")

    template = host.template(
        """(module
          (import "store" "prepare" (func $prepare (param i32) (result i32)))
          (memory (export "memory") 1)
          (func (export "run") (param i32) (result i32) (call $prepare (local.get 0))))""",
        define=define,
    )

    async def run(size: int) -> int:
        with host.guest(template) as guest:
            async with asyncio.timeout(DEADLINE):
                return await guest.call(guest.export(b"run"), size)

    assert asyncio.run(run(41)) == 42
    assert asyncio.run(run(0)) == 0xFFFF_FFFF


def test_others_are_served_while_a_large_result_is_handed_over(host: GuestHost) -> None:
    """In the time of 100,000 calls of an allocator the loop turns many times."""
    turns = pauses = 0
    count = 100_000

    def finish(guest: Guest, value: Any, _arguments: Any) -> Generator[None, None, int]:
        nonlocal pauses
        area, blocks = bytearray(8), Blocks()
        List(STRING).lower(blocks, area, 0, value)
        for _ in hand_over(guest, b"canonical_abi_realloc", blocks, area, 256):
            pauses += 1
            yield
        return 0

    async def begin(_guest: Guest, *_arguments: int) -> list[str]:
        return [""] * count

    async def ignore(_guest: Guest, *_arguments: int) -> None:
        pass

    def define(imports: AsyncImports) -> None:
        imports.define("store", "get", "iii", begin, finish, result=False)
        imports.define("store", "close", "i", ignore, result=False)

    template = host.template(TEXT, define=define)

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def run() -> None:
        turning = asyncio.create_task(turn())
        with host.guest(template) as guest:
            async with asyncio.timeout(DEADLINE):
                await guest.call(guest.export(b"run"), 256)
            assert guest.read(260, 4) == count.to_bytes(4, "little")
        turning.cancel()

    asyncio.run(run())
    assert pauses >= 3
    assert turns >= pauses // 2


def test_others_are_served_while_a_large_result_is_lowered(host: GuestHost) -> None:
    """Whatever is done with a long list, others wait for a small part of the time."""

    async def get(_state: Any, _key: str) -> list[str]:
        return [""] * 200_000

    async def close(_state: Any, _handle: int) -> None:
        pass

    interface = Interface(
        "store",
        [
            Function("get", [STRING], Result(List(STRING), ERROR), get),
            Function("close", [U32], None, close),
        ],
        lambda _: None,
    )

    def define(imports: AsyncImports) -> None:
        for name in ("get", "close"):
            interface.define(imports, name)

    template = host.template(TEXT, define=define)

    async def run() -> float:
        with host.guest(template) as guest:
            async with asyncio.timeout(DEADLINE):
                return await longest_turn(guest.call(guest.export(b"run"), 256))

    assert asyncio.run(run()) < 1 / 4
