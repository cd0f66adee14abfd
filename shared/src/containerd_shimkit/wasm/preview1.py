"""WASI preview 1 for guests: wasmtime's own, with an own ``poll_oneoff`` that suspends the guest.

wasmtime's ``poll_oneoff`` would block the event loop for as long as one guest sleeps.
"""

from __future__ import annotations

import asyncio
import ctypes
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import wasmtime

from containerd_shimkit.errors import EngineError
from containerd_shimkit.wasm import native
from containerd_shimkit.wasm.guest import Guest
from containerd_shimkit.wasm.imports import AsyncImports

MODULE: Final = "wasi_snapshot_preview1"

# userdata, tag, clock id, timeout, precision, flags
_SUBSCRIPTION: Final = struct.Struct("<QB7xI4xQQH6x")
_EVENT: Final = struct.Struct("<QHB5xQH6x")  # userdata, error, type, fd nbytes, fd flags
_CLOCK, _FD_READ, _FD_WRITE = range(3)  # eventtype
_REALTIME: Final = 0  # clockid; every other clock is read as the monotonic one
_ABSTIME: Final = 1  # subclockflags
_ERRNO_SUCCESS, _ERRNO_INVAL = 0, 28
_MAX_SUBSCRIPTIONS: Final = 1024
_MAX_SLEEP_SECONDS: Final = 24 * 3600.0  # the event loop's timers refuse much more

OutputSink = Callable[[bytes], None]


def define_preview1(linker: wasmtime.Linker) -> AsyncImports:
    """Define WASI preview 1 in ``linker``; keep the result as long as the linker."""
    linker.allow_shadowing = True
    linker.define_wasi()
    imports = AsyncImports(linker)
    imports.define(MODULE, "poll_oneoff", "iiii", _poll_oneoff)
    linker.allow_shadowing = False
    return imports


async def _poll_oneoff(
    guest: Guest, subscriptions: int, events: int, count: int, event_count: int
) -> int:
    """Wait for clocks. Files and standard streams never wait, so they are always ready."""
    if not 0 < count <= _MAX_SUBSCRIPTIONS:
        return _ERRNO_INVAL
    entries = list(_SUBSCRIPTION.iter_unpack(guest.read(subscriptions, count * _SUBSCRIPTION.size)))
    ready = [_EVENT.pack(entry[0], 0, entry[1], 0, 0) for entry in entries if entry[1] != _CLOCK]
    if not ready:
        waits = [(_clock_wait_ns(guest, entry), entry[0]) for entry in entries]
        shortest = min(wait for wait, _ in waits)
        await _sleep(shortest)
        ready = [_EVENT.pack(data, 0, _CLOCK, 0, 0) for wait, data in waits if wait <= shortest]
    guest.write(events, b"".join(ready))
    guest.write(event_count, struct.pack("<I", len(ready)))
    return _ERRNO_SUCCESS


def _clock_wait_ns(guest: Guest, entry: tuple[int, ...]) -> int:
    _, _, clock, timeout_ns, _, flags = entry
    if not flags & _ABSTIME:
        return timeout_ns
    monotonic = time.monotonic_ns() - guest.clock_origin_ns
    return max(0, timeout_ns - (time.time_ns() if clock == _REALTIME else monotonic))


async def _sleep(duration_ns: int) -> None:
    """Return when the time is over, and never before: uvloop's timers are whole milliseconds."""
    end = time.monotonic_ns() + duration_ns
    left = duration_ns
    while True:
        await asyncio.sleep(min(left / 1e9, _MAX_SLEEP_SECONDS))
        left = end - time.monotonic_ns()
        if left <= 0:
            return


class WasiTemplate:
    """Arguments, environment and directories of a component, ready to be given to each request.

    What does not change between requests is turned into C strings once.
    """

    def __init__(
        self,
        *,
        arguments: Sequence[str] = (),
        environment: Sequence[tuple[str, str]] = (),
        directories: Sequence[tuple[str, str]] = (),
        writable: Sequence[tuple[str, str]] = (),
    ) -> None:
        """directories: (path, path the guest sees); read only.  writable: others, which are not."""
        self._arguments = _c_strings(arguments)
        self._names = _c_strings([name for name, _ in environment])
        self._values = _c_strings([value for _, value in environment])
        self._directories = [
            (path.encode(), seen.encode(), mutable)
            for mutable, pairs in ((False, directories), (True, writable))
            for path, seen in pairs
        ]

    def config(
        self,
        stdout: Any,
        stderr: Any,
        *,
        stdin: bytes | None = None,
        arguments: Sequence[str] | None = None,
        environment: Sequence[tuple[str, str]] = (),
    ) -> Any:
        """Return a new ``wasi_config_t*``, to be owned by a guest.

        stdout, stderr: results of ``output_callback``. ``arguments`` replaces the template's,
        ``environment`` is added to it. Raises EngineError if a directory cannot be opened.
        """
        config = ctypes.c_void_p(native.wasi_config_new())
        argv = self._arguments if arguments is None else _c_strings(arguments)
        if len(argv):
            native.wasi_config_set_argv(config, len(argv), argv)
        names, values = self._names, self._values
        if environment:
            names = _c_strings([*names, *(name for name, _ in environment)])
            values = _c_strings([*values, *(value for _, value in environment)])
        if len(names):
            native.wasi_config_set_env(config, len(names), names, values)
        for path, seen, mutable in self._directories:
            if not native.wasi_config_preopen_dir(config, path, seen, mutable):
                native.wasi_config_delete(config)
                raise EngineError(f"cannot open directory {path.decode()!r} for the guest")
        if stdin is not None:
            vector = native.ByteVec()
            native.byte_vec_new(ctypes.byref(vector), len(stdin), stdin)
            native.wasi_config_set_stdin_bytes(config, ctypes.byref(vector))
        native.wasi_config_set_stdout_custom(config, stdout, None, None)
        native.wasi_config_set_stderr_custom(config, stderr, None, None)
        return config


def output_callback(sink: OutputSink) -> Any:
    """Return a C callback that gives what a guest writes to ``sink``. It must outlive the guest."""

    def write(_data: int, buffer: Any, length: int) -> int:
        sink(ctypes.string_at(buffer, length))
        return length

    return native.WriteCallback(write)


def _c_strings(texts: Sequence[str | bytes]) -> Any:
    encoded = [text if isinstance(text, bytes) else text.encode() for text in texts]
    return (ctypes.c_char_p * len(encoded))(*encoded)
