"""Guests: calls, memory, limits, time slices, and every way to end early."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from containerd_shimkit.testing.guests import GuestHost
from containerd_shimkit.wasm.engine import EngineSettings
from containerd_shimkit.wasm.guest import Guest, GuestMemoryError, GuestTemplate, put, take
from containerd_shimkit.wasm.native import GuestTrap

PAGE = 65536
DEADLINE = 20.0  # seconds

SUM16 = "(local.get 0)" + "".join(f"(i32.add (local.get {n}))" for n in range(1, 16))
TEXT = f"""(module
  (memory (export "memory") 1)
  (global $state (mut i32) (i32.const 0))
  (func (export "nothing"))
  (func (export "seven") (result i32) (i32.const 7))
  (func (export "subtract") (param i32 i32) (result i32)
    (i32.sub (local.get 0) (local.get 1)))
  (func (export "sum16") (param {"i32 " * 16}) (result i32) {SUM16})
  (func (export "count") (result i32)
    (global.set $state (i32.add (global.get $state) (i32.const 1))) (global.get $state))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "loop") (result i32) (loop (br 0)) (i32.const 0))
  (func (export "trap") (result i32) unreachable)
  (func $recurse (export "recurse") (result i32) (i32.add (call $recurse) (i32.const 1)))
  (func (export "spin") (param i32) (result i32)
    (loop (local.set 0 (i32.sub (local.get 0) (i32.const 1))) (br_if 0 (local.get 0)))
    (i32.const 1)))"""

WAITING = f"""(module
  (import "test" "wait" (func $wait (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "seven") (result i32) (i32.const 7))
  (func (export "loop") (result i32) (loop (br 0)) (i32.const 0))
  (func $recurse (export "recurse") (result i32) (i32.add (call $recurse) (i32.const 1)))
  (func (export "sum16") (param {"i32 " * 16}) (result i32) {SUM16})
  (func (export "wait") (param i32) (result i32) (call $wait (local.get 0)))
  (func (export "wait_twice") (result i32)
    (i32.add (call $wait (i32.const 1)) (call $wait (i32.const 2)))))"""


async def never(_guest: Guest, _argument: int) -> int:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("unreachable")


async def double(_guest: Guest, argument: int) -> int:
    await asyncio.sleep(0)
    return argument * 2


@pytest.fixture(scope="session")
def plain(host: GuestHost) -> GuestTemplate:
    return host.template(TEXT)


@pytest.fixture(scope="session")
def suspending(host: GuestHost) -> GuestTemplate:
    return host.template(WAITING, {"wait": ("i", double)})


@pytest.fixture(params=["plain", "suspending"])
def either(request: pytest.FixtureRequest) -> GuestTemplate:
    """A template without and one with asynchronous imports: their short calls differ."""
    template: GuestTemplate = request.getfixturevalue(request.param)
    return template


def short(host: GuestHost, template: GuestTemplate, name: bytes, *arguments: int) -> int:
    with host.guest(template) as guest:
        return guest.call_short(guest.export(name), *arguments)


def run(
    host: GuestHost, template: GuestTemplate, name: bytes, *arguments: int, results: int = 1
) -> int:
    async def call() -> int:
        with host.guest(template) as guest:
            async with asyncio.timeout(DEADLINE):
                return await guest.call(guest.export(name), *arguments, results=results)

    return asyncio.run(call())


# Calls


def test_may_suspend_says_whether_an_import_may_wait(
    plain: GuestTemplate, suspending: GuestTemplate
) -> None:
    assert not plain.may_suspend
    assert suspending.may_suspend


@pytest.mark.parametrize("calling", [short, run])
def test_call_passes_sixteen_arguments(
    host: GuestHost, either: GuestTemplate, calling: Callable[..., int]
) -> None:
    arguments = [1 << n for n in range(16)]
    assert calling(host, either, b"sum16", *arguments) == 0xFFFF


@pytest.mark.parametrize("calling", [short, run])
def test_call_refuses_seventeen_arguments(
    host: GuestHost, plain: GuestTemplate, calling: Callable[..., int]
) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        calling(host, plain, b"sum16", *range(17))
    assert not isinstance(caught.value, AssertionError)


@pytest.mark.parametrize("calling", [short, run])
@pytest.mark.parametrize(
    ("left", "right", "result"),
    [(5, 3, 2), (0, 1, 0xFFFF_FFFF), (0xFFFF_FFFF, 0, 0xFFFF_FFFF), (0x8000_0000, 0, 0x8000_0000)],
)
def test_values_are_unsigned(
    host: GuestHost,
    plain: GuestTemplate,
    calling: Callable[..., int],
    left: int,
    right: int,
    result: int,
) -> None:
    assert calling(host, plain, b"subtract", left, right) == result


def test_call_without_result_returns_zero(host: GuestHost, plain: GuestTemplate) -> None:
    assert run(host, plain, b"nothing", results=0) == 0


def test_missing_export_is_none(host: GuestHost, plain: GuestTemplate) -> None:
    with host.guest(plain) as guest:
        assert guest.export(b"missing") is None
        assert guest.export(b"") is None


def test_each_guest_has_its_own_state(host: GuestHost, plain: GuestTemplate) -> None:
    with host.guest(plain) as first, host.guest(plain) as second:
        counts = [g.call_short(g.export(b"count")) for g in (first, first, second)]
    assert counts == [1, 2, 1]


def test_memory_is_zero_in_each_new_guest(host: GuestHost, plain: GuestTemplate) -> None:
    for _ in range(40):  # more than the pool has slots
        with host.guest(plain) as guest:
            assert guest.read(0, PAGE) == bytes(PAGE)
            guest.write(0, b"secret" * 10_000)


def test_closing_twice_is_harmless(host: GuestHost, plain: GuestTemplate) -> None:
    guest = host.guest(plain)
    guest.close()
    guest.close()


# Memory


@pytest.mark.parametrize(
    ("pointer", "length"), [(0, 0), (0, PAGE), (PAGE - 1, 1), (PAGE, 0), (1, PAGE - 1)]
)
def test_memory_reaches_to_its_end(
    host: GuestHost, plain: GuestTemplate, pointer: int, length: int
) -> None:
    data = bytes(n % 251 for n in range(length))
    with host.guest(plain) as guest:
        guest.write(pointer, data)
        assert guest.read(pointer, length) == data
        put(guest.memory(), pointer, data[::-1])
        assert take(guest.memory(), pointer, length) == data[::-1]


OUTSIDE = [
    (PAGE, 1),
    (PAGE - 1, 2),
    (0, PAGE + 1),
    (0, 0xFFFF_FFFF),
    (0xFFFF_FFFF, 1),
    (0xFFFF_FFFF, 0xFFFF_FFFF),
    (0x8000_0000, 0x8000_0000),
    (-1, 1),
    (-1, 2),
    (0, -1),
    (10, -5),
    (PAGE, -1),
    (-PAGE, PAGE),
    (1 << 64, 1),
    (-(1 << 63), 1),
]


@pytest.mark.parametrize(("pointer", "length"), OUTSIDE)
def test_read_outside_of_memory_is_refused(
    host: GuestHost, plain: GuestTemplate, pointer: int, length: int
) -> None:
    with host.guest(plain) as guest, pytest.raises(GuestMemoryError, match="ends at 0x10000"):
        guest.read(pointer, length)


@pytest.mark.parametrize(("pointer", "length"), [(p, n) for p, n in OUTSIDE if 0 <= n <= PAGE + 1])
def test_write_outside_of_memory_is_refused(
    host: GuestHost, plain: GuestTemplate, pointer: int, length: int
) -> None:
    with host.guest(plain) as guest, pytest.raises(GuestMemoryError, match="ends at 0x10000"):
        guest.write(pointer, bytes(length))


@pytest.mark.parametrize("pointer", [-1, PAGE + 1, 0xFFFF_FFFF])
def test_nothing_is_found_anywhere(host: GuestHost, plain: GuestTemplate, pointer: int) -> None:
    """Guests give any address to what is empty."""
    with host.guest(plain) as guest:
        assert guest.read(pointer, 0) == b""


@pytest.mark.parametrize("pointer", [0, 1, 0xFFFF_FFFF])
def test_memory_without_a_page(host: GuestHost, pointer: int) -> None:
    with host.guest(host.template('(module (memory (export "memory") 0))')) as guest:
        assert guest.read(0, 0) == b""
        with pytest.raises(GuestMemoryError, match="ends at 0x0"):
            guest.read(pointer, 1)
        with pytest.raises(GuestMemoryError, match="ends at 0x0"):
            guest.write(pointer, b"x")


def test_allocate_returns_a_pointer_for_each_request(host: GuestHost) -> None:
    text = """(module %s (memory (export "memory") 1)
      (func (export "realloc") (param i32 i32 i32 i32) (result i32)
        (i32.add (i32.mul (local.get 2) (i32.const 1000)) (i32.add (local.get 3)
          (i32.add (local.get 0) (local.get 1))))))"""
    wait = '(import "test" "wait" (func (param i32) (result i32)))'
    for imports in ("", wait):
        template = host.template(text % imports, {"wait": ("i", double)})
        with host.guest(template) as guest:
            realloc = guest.export(b"realloc")
            requests = [(1, 5), (4, 0), (8, 0xFFFF)]
            assert guest.allocate(realloc, requests) == [1005, 4000, 8000 + 0xFFFF]
            assert guest.allocate(realloc, []) == []


@pytest.mark.parametrize("body", ["unreachable", "(loop (br 0)) (i32.const 0)"])
def test_allocator_that_fails_is_a_trap(host: GuestHost, body: str) -> None:
    text = f"""(module (memory (export "memory") 1)
      (func (export "realloc") (param i32 i32 i32 i32) (result i32) {body}))"""
    with host.guest(host.template(text)) as guest, pytest.raises(GuestTrap):
        guest.allocate(guest.export(b"realloc"), [(1, 1), (1, 1)])


def test_memory_that_grew_can_be_reached(host: GuestHost, plain: GuestTemplate) -> None:
    with host.guest(plain) as guest:
        assert guest.call_short(guest.export(b"grow"), 1) == 1
        guest.write(PAGE * 2 - 4, b"last")
        assert guest.read(PAGE * 2 - 4, 4) == b"last"
        with pytest.raises(GuestMemoryError):
            guest.read(PAGE * 2, 1)


# Limits


def test_memory_grows_to_the_limit_and_no_further(host: GuestHost, plain: GuestTemplate) -> None:
    with host.guest(plain, max_memory_bytes=4 * PAGE) as guest:
        grow = guest.export(b"grow")
        answers = [guest.call_short(grow, n) for n in (4, 3, 1, 0xFFFF_FFFF)]
        assert answers == [0xFFFF_FFFF, 1, 0xFFFF_FFFF, 0xFFFF_FFFF]
        assert guest.call_short(guest.export(b"seven")) == 7


def test_memory_that_the_host_grows(host: GuestHost, plain: GuestTemplate) -> None:
    with host.guest(plain, max_memory_bytes=4 * PAGE) as guest:
        for size, result in ((0, 1), (PAGE, 1), (PAGE + 1, 2), (4 * PAGE, 4)):
            guest.grow_memory(size)
            assert len(guest.memory()) == result * PAGE
        assert not any(guest.memory())
        with pytest.raises(GuestTrap):
            guest.grow_memory(4 * PAGE + 1)
        assert guest.call_short(guest.export(b"seven")) == 7


def test_memory_too_large_from_the_start_is_refused(host: GuestHost) -> None:
    template = host.template('(module (memory (export "memory") 8))')
    with pytest.raises(GuestTrap, match="memory"):
        host.guest(template, max_memory_bytes=4 * PAGE)


def test_pool_exhaustion_is_an_error_like_any_other(plain: GuestTemplate) -> None:
    small = GuestHost(EngineSettings(max_instances=3, max_memory_bytes=1 << 20))
    template = small.template(TEXT)
    guests = [small.guest(template) for _ in range(3)]
    for _ in range(3):
        with pytest.raises(GuestTrap, match="limit"):
            small.guest(template)
    guests.pop().close()
    guests.append(small.guest(template))
    assert guests[-1].call_short(guests[-1].export(b"seven")) == 7
    for guest in guests:
        guest.close()


# Traps


@pytest.mark.parametrize("calling", [short, run])
def test_trap_leaves_the_next_guest_alone(
    host: GuestHost, plain: GuestTemplate, calling: Callable[..., int]
) -> None:
    for _ in range(20):
        with pytest.raises(GuestTrap, match="unreachable"):
            calling(host, plain, b"trap")
    assert calling(host, plain, b"seven") == 7


@pytest.mark.parametrize("calling", [short, run])
def test_endless_recursion_traps(
    host: GuestHost, either: GuestTemplate, calling: Callable[..., int]
) -> None:
    with pytest.raises(GuestTrap, match="call stack exhausted"):
        calling(host, either, b"recurse")


@pytest.mark.parametrize("start", ["unreachable", "(loop (br 0))", "(call $wait)"])
def test_start_function_that_fails_is_a_trap(host: GuestHost, start: str) -> None:
    """Also one that loops, and one that waits in an import: neither may hold up the loop."""
    text = f"""(module (import "test" "wait" (func $import (param i32) (result i32)))
      (memory (export "memory") 1)
      (func $wait (drop (call $import (i32.const 1)))) (func $start {start}) (start $start))"""
    template = host.template(text, {"wait": ("i", never)})

    async def instantiate() -> None:
        for _ in range(3):
            with pytest.raises(GuestTrap):
                host.guest(template)

    asyncio.run(instantiate())


@pytest.mark.parametrize("start", ["unreachable", "(loop (br 0))"])
def test_start_function_that_fails_without_fiber_is_a_trap(host: GuestHost, start: str) -> None:
    text = f'(module (memory (export "memory") 1) (func $start {start}) (start $start))'
    template = host.template(text)
    with pytest.raises(GuestTrap):
        host.guest(template)


def test_short_call_that_loops_is_cut(host: GuestHost, either: GuestTemplate) -> None:
    async def call() -> None:
        with host.guest(either) as guest, pytest.raises(GuestTrap):
            guest.call_short(guest.export(b"loop"))

    asyncio.run(call())


def test_short_call_that_waits_is_a_trap(host: GuestHost) -> None:
    """An allocator that calls an asynchronous import."""
    template = host.template(WAITING, {"wait": ("i", never)})

    async def call() -> None:
        for _ in range(3):
            with host.guest(template) as guest, pytest.raises(GuestTrap, match="allocator"):
                guest.call_short(guest.export(b"wait"), 1)

    asyncio.run(call())


CLEAN_PROGRAM = """
import asyncio
from containerd_shimkit.testing.guests import GuestHost
from containerd_shimkit.wasm.native import GuestTrap

TEXT = '''(module (import "test" "wait" (func $wait (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1) START
  (func $run (export "run") (result i32) CALL))'''
CALLS = ["(call $wait (i32.const 1))",
  "(call $poll (i32.const 0) (i32.const 99) (i32.const 1) (i32.const 90))"]

async def never(guest, argument):
    await asyncio.get_running_loop().create_future()

async def main():
    host = GuestHost()
    for call in CALLS:
        for start in ["", "(func $start (drop (call $run))) (start $start)"]:
            template = host.template(TEXT.replace("START", start).replace("CALL", call),
                {"wait": ("i", never)})
            try:
                with host.guest(template) as guest:
                    guest.write(16, b"\\0" * 8 + b"\\xff" * 8)
                    guest.call_short(guest.export(b"run"))
            except GuestTrap as exc:
                print("trap:", exc)
asyncio.run(main())
"""


def test_waiting_outside_of_a_call_does_not_abort_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROGRAM], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trap:") == 4, done.stdout + done.stderr
    assert done.stderr == ""


# Time slices


def test_looping_guest_yields_and_is_cut_at_its_deadline(
    host: GuestHost, either: GuestTemplate
) -> None:
    """Another coroutine goes on all the while."""
    progress = 0

    async def count() -> None:
        nonlocal progress
        while True:
            await asyncio.sleep(0)
            progress += 1

    async def loop() -> None:
        counting = asyncio.create_task(count())
        with host.guest(either) as guest, pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await guest.call(guest.export(b"loop"))
        counting.cancel()

    asyncio.run(loop())
    assert progress > 3


def test_looping_guests_share_the_loop(host: GuestHost, plain: GuestTemplate) -> None:
    """A long computation ends although another guest loops forever."""

    async def both() -> int:
        with host.guest(plain) as looping, host.guest(plain) as computing:
            forever = asyncio.create_task(looping.call(looping.export(b"loop")))
            async with asyncio.timeout(DEADLINE):
                result = await computing.call(computing.export(b"spin"), 50_000_000)
            assert not forever.done()
            forever.cancel()
            await asyncio.gather(forever, return_exceptions=True)
        return result

    assert asyncio.run(both()) == 1


def test_cancelling_a_computing_guest_ends_it(host: GuestHost, either: GuestTemplate) -> None:
    async def cancel() -> None:
        with host.guest(either) as guest:
            task = asyncio.create_task(guest.call(guest.export(b"loop")))
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                async with asyncio.timeout(DEADLINE):
                    await task

    asyncio.run(cancel())


def test_cancelling_a_suspended_guest_cancels_its_import(host: GuestHost) -> None:
    events: list[str] = []

    async def wait(_guest: Guest, _argument: int) -> int:
        entered.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            events.append("import ended")
        return 0

    async def cancel() -> None:
        with host.guest(template) as guest:
            task = asyncio.create_task(guest.call(guest.export(b"wait"), 1))
            async with asyncio.timeout(DEADLINE):
                await entered.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        events.append("closed")

    entered = asyncio.Event()
    template = host.template(WAITING, {"wait": ("i", wait)})
    asyncio.run(cancel())
    assert events == ["import ended", "closed"]


def test_timeout_cuts_a_suspended_guest(host: GuestHost) -> None:
    template = host.template(WAITING, {"wait": ("i", never)})

    async def wait() -> None:
        with host.guest(template) as guest, pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await guest.call(guest.export(b"wait"), 1)

    asyncio.run(wait())


def test_guest_closed_while_suspended_cancels_its_import(host: GuestHost) -> None:
    """The loop ends with requests in flight: as when the container is stopped."""
    template = host.template(WAITING, {"wait": ("i", never)})
    entered = asyncio.Event()

    async def wait(guest: Guest, argument: int) -> int:
        entered.set()
        return await never(guest, argument)

    template = host.template(WAITING, {"wait": ("i", wait)})

    async def request() -> None:
        with host.guest(template) as guest:
            await guest.call(guest.export(b"wait"), 1)

    async def main() -> None:
        task = asyncio.create_task(request())
        async with asyncio.timeout(DEADLINE):
            await entered.wait()
        assert not task.done()  # asyncio.run cancels it

    asyncio.run(main())


def test_many_guests_wait_at_once(host: GuestHost) -> None:
    waiting = 0
    all_wait: Any = None

    async def wait(_guest: Guest, argument: int) -> int:
        nonlocal waiting
        waiting += 1
        if waiting == 10:
            all_wait.set()
        await all_wait.wait()
        return argument + 1

    template = host.template(WAITING, {"wait": ("i", wait)})

    async def one(number: int) -> int:
        with host.guest(template) as guest:
            return await guest.call(guest.export(b"wait"), number)

    async def main() -> list[int]:
        nonlocal all_wait
        all_wait = asyncio.Event()
        async with asyncio.timeout(DEADLINE):
            return list(await asyncio.gather(*map(one, range(10))))

    assert asyncio.run(main()) == list(range(1, 11))
