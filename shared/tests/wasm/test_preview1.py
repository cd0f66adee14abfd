"""WASI preview 1: our ``poll_oneoff``, and what wasmtime's own lets a guest see and do."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from containerd_shimkit.errors import EngineError
from containerd_shimkit.testing.guests import GuestHost
from containerd_shimkit.wasm.guest import Guest, GuestTemplate
from containerd_shimkit.wasm.native import GuestTrap
from containerd_shimkit.wasm.preview1 import WasiTemplate

DEADLINE = 20.0  # seconds
SUCCESS, INVAL = 0, 28
REALTIME, MONOTONIC = 0, 1
CLOCK, FD_READ, FD_WRITE = 0, 1, 2
SUBSCRIPTIONS, EVENTS, COUNT = 1024, 32768, 512  # addresses
MILLISECOND = 1_000_000  # ns


def imported(name: str, parameters: str, result: str = "(result i32)") -> str:
    """Text that imports a WASI function, and exports it again with i32 parameters only."""
    kinds = " ".join({"i": "i32", "l": "i64"}[p] for p in parameters)
    given = " ".join(
        f"(local.get {n})" if p == "i" else f"(i64.extend_i32_u (local.get {n}))"
        for n, p in enumerate(parameters)
    )
    header = f'(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {kinds}) {result}))'
    ours = "i32 " * len(parameters)
    return f'{header}\n@(func (export "{name}") (param {ours}) {result} (call ${name} {given}))'


FUNCTIONS = {
    "poll_oneoff": "iiii",
    "args_sizes_get": "ii",
    "args_get": "ii",
    "environ_sizes_get": "ii",
    "environ_get": "ii",
    "fd_write": "iiii",
    "fd_read": "iiii",
    "fd_readdir": "iiili",
    "fd_prestat_get": "ii",
    "path_open": "iiiiillii",
    "path_create_directory": "iii",
    "path_unlink_file": "iii",
    "path_remove_directory": "iii",
    "path_rename": "iiiiii",
    "path_link": "iiiiiii",
    "path_symlink": "iiiii",
    "path_readlink": "iiiiii",
    "path_filestat_get": "iiiii",
    "path_filestat_set_times": "iiiilli",
    "clock_time_get": "ili",
    "sched_yield": "",
}


@pytest.fixture(scope="session")
def template(host: GuestHost) -> GuestTemplate:
    parts = [imported(name, parameters).split("\n@") for name, parameters in FUNCTIONS.items()]
    imports = "\n".join(part[0] for part in parts)
    functions = "\n".join(part[1] for part in parts)
    return host.template(f'(module {imports} (memory (export "memory") 2) {functions})')


async def invoke(guest: Guest, name: str, *arguments: int) -> int:
    async with asyncio.timeout(DEADLINE):
        return await guest.call(guest.export(name.encode()), *arguments)


def with_guest(
    host: GuestHost, template: GuestTemplate, function: Callable[[Guest], Any], **options: Any
) -> Any:
    async def main() -> Any:
        with host.guest(template, **options) as guest:
            return await function(guest)

    return asyncio.run(main())


# poll_oneoff


def clock(userdata: int, timeout_ns: int, *, id_: int = MONOTONIC, absolute: bool = False) -> bytes:
    return struct.pack("<QB7xI4xQQH6x", userdata, CLOCK, id_, timeout_ns, 1, absolute)


def descriptor(userdata: int, kind: int, number: int) -> bytes:
    return struct.pack("<QB7xI28x", userdata, kind, number)


async def poll(guest: Guest, *subscriptions: bytes) -> tuple[int, list[tuple[int, int, int]]]:
    """Return errno and events: (userdata, error, type)."""
    guest.write(SUBSCRIPTIONS, b"".join(subscriptions))
    guest.write(COUNT, struct.pack("<I", 0xFFFF))
    arguments = SUBSCRIPTIONS, EVENTS, len(subscriptions), COUNT
    errno = await invoke(guest, "poll_oneoff", *arguments)
    (count,) = struct.unpack("<I", guest.read(COUNT, 4))
    data = guest.read(EVENTS, count * 32) if errno == SUCCESS else b""
    return errno, [(e[0], e[1], e[2]) for e in struct.iter_unpack("<QHB5xQH6x", data)]


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("wait_ns", [0, 1, 300_000, 1_400_000, 20 * MILLISECOND])
def test_sleep_is_never_too_short(
    host: GuestHost, template: GuestTemplate, wait_ns: int, loop_factory: Any
) -> None:
    async def main() -> float:
        with host.guest(template) as guest:
            started = time.monotonic_ns()
            assert await poll(guest, clock(7, wait_ns)) == (SUCCESS, [(7, 0, CLOCK)])
            return time.monotonic_ns() - started

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) >= wait_ns


def test_absolute_time_is_waited_for(host: GuestHost, template: GuestTemplate) -> None:
    async def main(guest: Guest) -> None:
        until = time.time_ns() + 20 * MILLISECOND
        errno, events = await poll(guest, clock(1, until, id_=REALTIME, absolute=True))
        assert (errno, events) == (SUCCESS, [(1, 0, CLOCK)])
        assert time.time_ns() >= until

    with_guest(host, template, main)


@pytest.mark.parametrize("id_", [REALTIME, MONOTONIC])
def test_guest_clock_is_the_one_poll_compares_with(
    host: GuestHost, template: GuestTemplate, id_: int
) -> None:
    """wasi-libc's sleep asks its clock and then polls for an absolute time."""

    async def main(guest: Guest) -> None:
        assert await invoke(guest, "clock_time_get", id_, 1, 0) == SUCCESS
        (now,) = struct.unpack("<Q", guest.read(0, 8))
        until = now + 20 * MILLISECOND
        assert (await poll(guest, clock(1, until, id_=id_, absolute=True)))[0] == SUCCESS
        assert await invoke(guest, "clock_time_get", id_, 1, 0) == SUCCESS
        assert struct.unpack("<Q", guest.read(0, 8))[0] >= until

    with_guest(host, template, main)


@pytest.mark.parametrize("id_", [REALTIME, MONOTONIC])
def test_time_in_the_past_is_ready(host: GuestHost, template: GuestTemplate, id_: int) -> None:
    async def main(guest: Guest) -> None:
        assert await poll(guest, clock(1, 1, id_=id_, absolute=True)) == (SUCCESS, [(1, 0, CLOCK)])

    with_guest(host, template, main)


def test_only_the_shortest_of_several_clocks_is_ready(
    host: GuestHost, template: GuestTemplate
) -> None:
    async def main(guest: Guest) -> None:
        hour = 3600 * 1000 * MILLISECOND
        subscriptions = [clock(1, hour), clock(2, MILLISECOND), clock(3, hour)]
        assert await poll(guest, *subscriptions) == (SUCCESS, [(2, 0, CLOCK)])

    with_guest(host, template, main)


def test_equal_clocks_are_ready_together(host: GuestHost, template: GuestTemplate) -> None:
    async def main(guest: Guest) -> None:
        errno, events = await poll(guest, clock(1, MILLISECOND), clock(2, MILLISECOND))
        assert (errno, events) == (SUCCESS, [(1, 0, CLOCK), (2, 0, CLOCK)])

    with_guest(host, template, main)


def test_descriptors_are_ready_at_once(host: GuestHost, template: GuestTemplate) -> None:
    async def main(guest: Guest) -> None:
        hour = clock(1, 3600 * 1000 * MILLISECOND)
        both = descriptor(2, FD_READ, 0), descriptor(3, FD_WRITE, 1)
        errno, events = await poll(guest, hour, *both)
        assert (errno, events) == (SUCCESS, [(2, 0, FD_READ), (3, 0, FD_WRITE)])

    with_guest(host, template, main)


@pytest.mark.parametrize("userdata", [0, 0xFFFF_FFFF_FFFF_FFFF])
def test_userdata_comes_back_whole(host: GuestHost, template: GuestTemplate, userdata: int) -> None:
    async def main(guest: Guest) -> None:
        assert (await poll(guest, clock(userdata, 0)))[1] == [(userdata, 0, CLOCK)]

    with_guest(host, template, main)


@pytest.mark.parametrize("count", [0, 1025, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_bad_count_is_invalid(host: GuestHost, template: GuestTemplate, count: int) -> None:
    async def main(guest: Guest) -> None:
        assert await invoke(guest, "poll_oneoff", SUBSCRIPTIONS, EVENTS, count, COUNT) == INVAL

    with_guest(host, template, main)


@pytest.mark.parametrize(
    ("subscriptions", "events", "count"),
    [(0xFFFF_FFF0, EVENTS, COUNT), (SUBSCRIPTIONS, 131072, COUNT), (SUBSCRIPTIONS, EVENTS, 131070)],
)
def test_bad_pointer_is_a_trap(
    host: GuestHost, template: GuestTemplate, subscriptions: int, events: int, count: int
) -> None:
    async def main(guest: Guest) -> None:
        with pytest.raises(GuestTrap, match="its memory ends at 0x20000"):
            await invoke(guest, "poll_oneoff", subscriptions, events, 1, count)

    with_guest(host, template, main)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("timeout_ns", [1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_huge_timeout_waits(
    host: GuestHost, template: GuestTemplate, timeout_ns: int, absolute: bool
) -> None:
    """It neither fails nor wraps around to no wait at all."""

    async def main(guest: Guest) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await poll(guest, clock(1, timeout_ns, absolute=absolute))

    with_guest(host, template, main)


def test_wait_beyond_the_loops_timers_goes_on(
    host: GuestHost, template: GuestTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("containerd_shimkit.wasm.preview1._MAX_SLEEP_SECONDS", 0.001)

    async def main(guest: Guest) -> None:
        started = time.monotonic_ns()
        await poll(guest, clock(1, 20 * MILLISECOND))
        assert time.monotonic_ns() - started >= 20 * MILLISECOND

    with_guest(host, template, main)


def test_others_run_while_a_guest_sleeps(host: GuestHost, template: GuestTemplate) -> None:
    async def main(guest: Guest) -> None:
        order = []

        async def sleep(other: Guest, name: str, milliseconds: int) -> None:
            await poll(other, clock(1, milliseconds * MILLISECOND))
            order.append(name)

        with host.guest(template) as second:
            await asyncio.gather(sleep(guest, "long", 150), sleep(second, "short", 1))
        assert order == ["short", "long"]

    with_guest(host, template, main)


# Arguments, environment, standard streams


def strings(guest: Guest, name: str) -> list[bytes]:
    async def main() -> list[bytes]:
        assert await invoke(guest, f"{name}_sizes_get", 0, 4) == SUCCESS
        count, size = struct.unpack("<II", guest.read(0, 8))
        assert await invoke(guest, f"{name}_get", 1024, 8192) == SUCCESS
        assert size <= 100_000
        return guest.read(8192, size).split(b"\0")[:count]

    return asyncio.run(main())


@pytest.mark.parametrize("texts", [[], ["one"], ["/path", "", "a b", "ä=ö"]])
def test_arguments_reach_the_guest(
    host: GuestHost, template: GuestTemplate, texts: list[str]
) -> None:
    expected = [text.encode() for text in texts]
    with host.guest(template, wasi=WasiTemplate(arguments=texts)) as guest:
        assert strings(guest, "args") == expected
    with host.guest(template, wasi=WasiTemplate(arguments=["other"]), arguments=texts) as guest:
        assert strings(guest, "args") == expected


def test_environment_is_the_templates_and_the_requests(
    host: GuestHost, template: GuestTemplate
) -> None:
    wasi = WasiTemplate(environment=[("A", "1"), ("EMPTY", "")])
    with host.guest(template, wasi=wasi, environment=[("REQUEST", "ä=b")]) as guest:
        assert strings(guest, "environ") == [b"A=1", b"EMPTY=", "REQUEST=ä=b".encode()]
    with host.guest(template, wasi=wasi) as guest:
        assert strings(guest, "environ") == [b"A=1", b"EMPTY="]


def test_guest_sees_nothing_of_our_environment(
    host: GuestHost, template: GuestTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1")
    with host.guest(template) as guest:
        assert strings(guest, "environ") == []
        assert strings(guest, "args") == []


@pytest.mark.parametrize("size", [0, 1, 5000, 100_000])
def test_output_reaches_the_callbacks(host: GuestHost, template: GuestTemplate, size: int) -> None:
    out, err = bytearray(), bytearray()
    data = bytes(n % 256 for n in range(size))

    async def main(guest: Guest) -> None:
        guest.write(EVENTS - 16, struct.pack("<II", EVENTS - 8, 0))
        for number in (1, 2):
            sent = 0
            while sent < size:
                chunk = data[sent : sent + 50_000]
                guest.write(EVENTS, chunk)
                guest.write(0, struct.pack("<II", EVENTS, len(chunk)))
                assert await invoke(guest, "fd_write", number, 0, 1, 8) == SUCCESS
                (written,) = struct.unpack("<I", guest.read(8, 4))
                assert 0 < written <= len(chunk)
                sent += written

    with_guest(host, template, main, stdout=out.extend, stderr=err.extend)
    assert bytes(out) == bytes(err) == data


@pytest.mark.parametrize("data", [None, b"", b"x", bytes(range(256)) * 300])
def test_stdin_is_read_to_its_end(
    host: GuestHost, template: GuestTemplate, data: bytes | None
) -> None:
    async def main(guest: Guest) -> bytes:
        guest.write(0, struct.pack("<II", EVENTS, 10_000))
        got = b""
        while True:
            assert await invoke(guest, "fd_read", 0, 0, 1, 8) == SUCCESS
            (count,) = struct.unpack("<I", guest.read(8, 4))
            if count == 0:
                return got
            got += guest.read(EVENTS, count)

    assert with_guest(host, template, main, stdin=data) == (data or b"")


# Directories


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a guest may see, beside what it may not."""
    (tmp_path / "secret").write_text("secret")
    shown = tmp_path / "shown"
    (shown / "sub").mkdir(parents=True)
    (shown / "file").write_text("content")
    (shown / "sub" / "inner").write_text("inner")
    (shown / "inside").symlink_to("sub/inner")
    (shown / "relative").symlink_to("../secret")
    (shown / "absolute").symlink_to(tmp_path / "secret")
    (shown / "parent").symlink_to("..")
    (shown / "root").symlink_to("/")
    return shown


O_CREAT, O_TRUNC = 1, 8
RIGHT_READ, RIGHT_WRITE = 2, 64


async def open_path(
    guest: Guest, path: str, *, flags: int = 0, rights: int = RIGHT_READ
) -> tuple[int, int]:
    """Return errno and descriptor; links are followed."""
    data = path.encode()
    guest.write(EVENTS, data)
    arguments = (3, 1, EVENTS, len(data), flags, rights, rights, 0, COUNT)
    errno = await invoke(guest, "path_open", *arguments)
    return errno, struct.unpack("<I", guest.read(COUNT, 4))[0]


@pytest.mark.parametrize(
    ("path", "content"), [("file", b"content"), ("sub/inner", b"inner"), ("inside", b"inner")]
)
def test_file_of_a_directory_is_read(
    host: GuestHost, template: GuestTemplate, tree: Path, path: str, content: bytes
) -> None:
    async def main(guest: Guest) -> bytes:
        errno, number = await open_path(guest, path)
        assert errno == SUCCESS
        guest.write(0, struct.pack("<II", EVENTS, 100))
        assert await invoke(guest, "fd_read", number, 0, 1, 8) == SUCCESS
        return guest.read(EVENTS, struct.unpack("<I", guest.read(8, 4))[0])

    wasi = WasiTemplate(directories=[(str(tree), "/")])
    assert with_guest(host, template, main, wasi=wasi) == content


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "sub/../../secret",
        "./../secret",
        "relative",
        "absolute",
        "parent/secret",
        "parent/shown/file",
        "root/etc/passwd",
        "/etc/passwd",
        "//etc/passwd",
        "/",
        "..",
        "/proc/self/root/etc/passwd",
        "root/proc/self/environ",
    ],
)
def test_nothing_outside_of_a_directory_is_reached(
    host: GuestHost, template: GuestTemplate, tree: Path, path: str
) -> None:
    async def main(guest: Guest) -> None:
        errno, _ = await open_path(guest, path)
        assert errno != SUCCESS
        data = path.encode()
        guest.write(EVENTS, data)
        assert await invoke(guest, "path_filestat_get", 3, 1, EVENTS, len(data), 0) != SUCCESS

    with_guest(host, template, main, wasi=WasiTemplate(directories=[(str(tree), "/")]))


def snapshot(tree: Path) -> list[tuple[str, int, int, bytes]]:
    return sorted(
        (
            str(path),
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
        )
        for path in tree.parent.rglob("*")
    )


def test_directories_are_read_only(host: GuestHost, template: GuestTemplate, tree: Path) -> None:
    before = snapshot(tree)

    async def main(guest: Guest) -> None:
        for path in ("new", "file", "sub/new"):
            for flags in (O_CREAT, O_TRUNC, O_CREAT | O_TRUNC):
                errno, _ = await open_path(
                    guest, path, flags=flags, rights=RIGHT_READ | RIGHT_WRITE
                )
                assert errno != SUCCESS, (path, flags)
        errno, number = await open_path(guest, "file", rights=RIGHT_READ | RIGHT_WRITE)
        if errno == SUCCESS:
            guest.write(0, struct.pack("<II", EVENTS, 1))
            assert await invoke(guest, "fd_write", number, 0, 1, 8) != SUCCESS
        guest.write(0, b"file")
        guest.write(16, b"new")
        guest.write(32, b"sub/inner")
        guest.write(64, b"sub")
        calls = {
            "path_create_directory": (3, 16, 3),
            "path_unlink_file": (3, 0, 4),
            "path_remove_directory": (3, 64, 3),
            "path_rename": (3, 0, 4, 3, 16, 3),
            "path_link": (3, 0, 0, 4, 3, 16, 3),
            "path_symlink": (0, 4, 3, 16, 3),
            "path_filestat_set_times": (3, 0, 0, 4, 1, 1, 5),
        }
        for name, arguments in calls.items():
            assert await invoke(guest, name, *arguments) != SUCCESS, name

    with_guest(host, template, main, wasi=WasiTemplate(directories=[(str(tree), "/")]))
    assert snapshot(tree) == before


def test_writable_directory(host: GuestHost, template: GuestTemplate, tree: Path) -> None:
    async def main(guest: Guest) -> None:
        errno, number = await open_path(guest, "new", flags=O_CREAT, rights=RIGHT_WRITE)
        assert errno == SUCCESS
        guest.write(0, struct.pack("<II4s", 8, 4, b"text"))
        assert await invoke(guest, "fd_write", number, 0, 1, 16) == SUCCESS

    with_guest(host, template, main, wasi=WasiTemplate(writable=[(str(tree), "/")]))
    assert (tree / "new").read_bytes() == b"text"


def test_without_directories_nothing_can_be_opened(
    host: GuestHost, template: GuestTemplate
) -> None:
    async def main(guest: Guest) -> None:
        for number in range(3, 20):
            assert await invoke(guest, "fd_prestat_get", number, 0) != SUCCESS
        assert (await open_path(guest, "file"))[0] != SUCCESS

    with_guest(host, template, main)


def test_directory_that_is_gone_is_an_error(
    host: GuestHost, template: GuestTemplate, tmp_path: Path
) -> None:
    wasi = WasiTemplate(directories=[(str(tmp_path / "gone"), "/")])
    with pytest.raises(EngineError, match=r"cannot open directory .*gone"):
        host.guest(template, wasi=wasi)
