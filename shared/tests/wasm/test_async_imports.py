"""Asynchronous imports: what passes between guest and host, and how a host call may end."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from containerd_shimkit.testing.guests import GuestHost
from containerd_shimkit.wasm.guest import Guest
from containerd_shimkit.wasm.imports import AsyncImport, AsyncImports
from containerd_shimkit.wasm.native import GuestTrap

DEADLINE = 20.0  # seconds

TEXT = """(module
  (import "test" "f" (func $f (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "once") (param i32) (result i32) (call $f (local.get 0)))
  (func (export "twice") (param i32) (result i32) (call $f (call $f (local.get 0)))))"""

WIDE = """(module
  (import "test" "f" (func $f (param i64 i32 i64) (result i32)))
  (memory (export "memory") 1)
  (func (export "once") (param i32) (result i32)
    (call $f (i64.const -1) (local.get 0) (i64.const 0x123456789abcdef0))))"""


def call(
    host: GuestHost,
    implementation: AsyncImport,
    *,
    name: bytes = b"once",
    argument: int = 0,
    text: str = TEXT,
    parameters: str = "i",
) -> int:
    template = host.template(text, {"f": (parameters, implementation)})

    async def run() -> int:
        with host.guest(template) as guest:
            async with asyncio.timeout(DEADLINE):
                return await guest.call(guest.export(name), argument)

    return asyncio.run(run())


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("value", [0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
def test_argument_and_result_are_unsigned(host: GuestHost, value: int, suspends: bool) -> None:
    seen = []

    async def f(_guest: Guest, argument: int) -> int:
        seen.append(argument)
        if suspends:
            await asyncio.sleep(0)
        return argument

    assert call(host, f, argument=value) == value
    assert seen == [value]


@pytest.mark.parametrize(("given", "got"), [(-1, 0xFFFF_FFFF), (1 << 32, 0), ((1 << 33) + 5, 5)])
def test_result_is_cut_to_32_bits(host: GuestHost, given: int, got: int) -> None:
    async def f(_guest: Guest, _argument: int) -> int:
        return given

    assert call(host, f) == got


def test_i64_parameters_are_whole(host: GuestHost) -> None:
    seen: list[tuple[int, ...]] = []

    async def f(_guest: Guest, *arguments: int) -> int:
        seen.append(arguments)
        return 3

    assert call(host, f, text=WIDE, parameters="lil", argument=0xFFFF_FFFE) == 3
    assert seen == [(0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFE, 0x1234_5678_9ABC_DEF0)]


def test_import_is_called_again_with_its_own_result(host: GuestHost) -> None:
    async def f(_guest: Guest, argument: int) -> int:
        await asyncio.sleep(0)
        return argument + 3

    assert call(host, f, name=b"twice", argument=10) == 16


def test_import_sees_the_memory_of_its_caller(host: GuestHost) -> None:
    async def f(guest: Guest, argument: int) -> int:
        guest.write(argument, b"from the host")
        await asyncio.sleep(0)
        return guest.read(argument + 5, 1)[0]

    assert call(host, f, argument=100) == ord("t")


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize(
    "exception", [ValueError("not äcceptable"), KeyError("x"), RuntimeError(""), TimeoutError()]
)
def test_exception_becomes_a_trap(host: GuestHost, exception: Exception, suspends: bool) -> None:
    async def f(_guest: Guest, _argument: int) -> int:
        if suspends:
            await asyncio.sleep(0)
        raise exception

    with pytest.raises(GuestTrap, match="the host call failed") as caught:
        call(host, f)
    assert str(exception) in str(caught.value)
    assert caught.value.code is None


@pytest.mark.parametrize("result", [None, "1", 1.5])
def test_result_that_is_no_integer_becomes_a_trap(host: GuestHost, result: Any) -> None:
    async def f(_guest: Guest, _argument: int) -> int:
        return result  # type: ignore[no-any-return]

    with pytest.raises(GuestTrap, match="the host call failed"):
        call(host, f)


def test_bad_pointer_in_an_import_becomes_a_trap(host: GuestHost) -> None:
    async def f(guest: Guest, argument: int) -> int:
        return len(guest.read(argument, 4))

    with pytest.raises(GuestTrap, match="4 bytes at 0xffffffff"):
        call(host, f, argument=0xFFFF_FFFF)


def test_call_that_is_cancelled_twice_waits_for_its_import(host: GuestHost) -> None:
    ended: list[str] = []

    async def f(_guest: Guest, _argument: int) -> int:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            ended.append("import")
        return 0

    template = host.template(TEXT, {"f": ("i", f)})

    async def call_once() -> None:
        with host.guest(template) as guest:
            try:
                await guest.call(guest.export(b"once"), 0)
            finally:
                ended.append("call")

    async def run() -> None:
        calling = asyncio.create_task(call_once())
        for _ in range(2):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            calling.cancel()
        async with asyncio.timeout(DEADLINE):
            await asyncio.wait((calling,))
        assert calling.cancelled()

    asyncio.run(run())
    assert ended == ["import", "call"]


def test_import_that_cancels_itself_becomes_a_trap(host: GuestHost) -> None:
    async def f(_guest: Guest, _argument: int) -> int:
        raise asyncio.CancelledError

    with pytest.raises(GuestTrap, match="cancelled"):
        call(host, f)


def test_failed_import_leaves_the_next_guest_alone(host: GuestHost) -> None:
    async def f(_guest: Guest, argument: int) -> int:
        if argument == 1:
            raise ValueError("one")
        return argument

    template = host.template(TEXT, {"f": ("i", f)})

    async def run() -> list[Any]:
        results: list[Any] = []
        for argument in (1, 2, 1, 3):
            with host.guest(template) as guest:
                try:
                    results.append(await guest.call(guest.export(b"once"), argument))
                except GuestTrap:
                    results.append("trap")
        return results

    assert asyncio.run(run()) == ["trap", 2, "trap", 3]


def test_cancelled_import_may_end_in_its_own_way(host: GuestHost) -> None:
    """It is awaited before the guest's memory goes away."""
    ended = []

    async def main() -> None:
        entered = asyncio.Event()

        async def f(guest: Guest, _argument: int) -> int:
            entered.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.sleep(0)
                ended.append(guest.read(0, 4))
            return 0

        template = host.template(TEXT, {"f": ("i", f)})
        with host.guest(template) as guest:
            task = asyncio.create_task(guest.call(guest.export(b"once"), 0))
            async with asyncio.timeout(DEADLINE):
                await entered.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    asyncio.run(main())
    assert ended == [bytes(4)]


FINISHING = """(module
  (import "test" "text" (func $text (param f32 f64 i32)))
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 1024))
  (func (export "allocate") (param i32 i32 i32 i32) (result i32)
    (global.set $free (i32.add (global.get $free) (local.get 3)))
    (i32.sub (global.get $free) (local.get 3)))
  (func (export "loop") (param i32 i32 i32 i32) (result i32) (loop $l (br $l)) unreachable)
  (func (export "call") (param i32 i32 i32 i32) (result i32)
    (call $text (f32.const 0) (f64.const 0) (i32.const 8)) (i32.const 0))
  (func (export "trap") (param i32 i32 i32 i32) (result i32) unreachable)
  (func (export "run") (param i32) (result i32)
    (call $text (f32.const 1.5) (f64.const -2.25) (i32.const 8))
    (call $text (f32.const 1.5) (f64.const -2.25) (i32.const 16))
    (i32.load (i32.add (i32.const 8) (local.get 0)))))"""


def call_finishing(
    host: GuestHost, allocator: bytes, *, waits: bool, pauses: int = 0
) -> tuple[int, list[Any]]:
    """Call an import whose result is text, which the host puts where the guest says."""
    seen: list[Any] = []

    async def begin(_guest: Guest, *arguments: float) -> bytes:
        seen.append(arguments)
        if waits:
            await asyncio.sleep(0)
        return b"text"

    def finish(
        guest: Guest, value: bytes, arguments: tuple[Any, ...]
    ) -> Generator[None, None, int]:
        for _ in range(pauses):
            yield
        pointer = guest.call_short(guest.export(allocator), 0, 0, 1, len(value))
        guest.write(pointer, value)
        guest.write(arguments[2], pointer.to_bytes(4, "little"))
        return 0

    def define(imports: AsyncImports) -> None:
        imports.define("test", "text", "fdi", begin, finish, result=False)

    template = host.template(FINISHING, define=define)

    async def run() -> int:
        with host.guest(template) as guest:
            async with asyncio.timeout(DEADLINE):
                return await guest.call(guest.export(b"run"), 8)

    return asyncio.run(run()), seen


@pytest.mark.parametrize("pauses", [0, 1, 3])
@pytest.mark.parametrize("waits", [False, True])
def test_the_allocator_is_called_while_the_guest_waits(
    host: GuestHost, waits: bool, pauses: int
) -> None:
    second, seen = call_finishing(host, b"allocate", waits=waits, pauses=pauses)
    assert second == 1024 + len(b"text")
    assert seen == [(1.5, -2.25, 8), (1.5, -2.25, 16)]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    ("allocator", "message"),
    [
        (b"loop", "waits where it must not"),
        (b"call", "calls an import where it must not"),
        (b"trap", "unreachable"),
    ],
)
def test_an_allocator_that_does_not_return(
    host: GuestHost, allocator: bytes, message: str, waits: bool
) -> None:
    with pytest.raises(GuestTrap, match=message):
        call_finishing(host, allocator, waits=waits)


def test_what_the_host_fails_in_is_a_trap(
    host: GuestHost, caplog: pytest.LogCaptureFixture
) -> None:
    """Before there is a coroutine, too: the guest ends, the process does not."""

    def begin(_guest: Guest, _argument: int) -> Any:
        raise ValueError("no such thing")

    with pytest.raises(GuestTrap, match="the host call failed: no such thing"):
        call(host, begin)
    assert "Traceback" in caplog.text


def test_what_the_guest_is_to_blame_for_is_its_trap(
    host: GuestHost, caplog: pytest.LogCaptureFixture
) -> None:
    def begin(guest: Guest, _argument: int) -> Any:
        return guest.read(0xFFFF_0000, 8)

    with pytest.raises(GuestTrap, match="the guest named 8 bytes at 0xffff0000"):
        call(host, begin)
    assert "Traceback" not in caplog.text


def test_a_start_function_that_calls_an_import(host: GuestHost) -> None:
    """What the import is to read is in a memory that is not known yet."""

    def begin(guest: Guest, argument: int) -> Any:
        return guest.read(argument, 8)

    text = TEXT.replace('(memory (export "memory") 1)', '(memory (export "memory") 1) (start $s)')
    text = text[:-1] + "(func $s (drop (call $f (i32.const 0)))))"
    with pytest.raises(GuestTrap, match="needs its memory as it starts"):
        call(host, begin, text=text)
