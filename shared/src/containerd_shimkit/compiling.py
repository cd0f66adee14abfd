"""Compiling for containers: the other end of ``wasm.compiler``, and the ``precompile`` command.

It runs outside the container's cgroup, so that a CPU limit does not slow a first start. Compiling,
which reads hostile bytes, is done by a process of its own that can do nothing else (``confine``).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import socket
import stat
from typing import Final, NamedTuple

from containerd_shimkit.errors import ModuleError, ShimError
from containerd_shimkit.forked import close_all_but
from containerd_shimkit.linux.confinement import confine
from containerd_shimkit.wasm.cache import CompiledModuleCache, Label
from containerd_shimkit.wasm.compiler import MAX_MESSAGE

MAX_WASM_BYTES: Final = 256 << 20
_MFD_CLOEXEC: Final = 1  # linux/memfd.h
_COMPILER_MEMORY_BYTES: Final = 8 << 30  # address space, not memory
_COMPILER_SECONDS: Final = 600

_MAGIC: Final = b"\0asm"
_CORE_VERSION: Final = b"\x01\0\0\0"
_COMPONENT_VERSION: Final = b"\x0d\0\x01\0"


def serve_compiler(connection: socket.socket, cache: CompiledModuleCache) -> None:
    """Answer requests until the other end is closed. Blocks; for a process of its own."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 1)
        if not message or not descriptors:
            return
        try:
            compiled = compile_cached(descriptors[0], cache)
        except (ShimError, OSError) as exc:  # OSError: no room for the result, no process
            connection.send(f"error: {exc}".encode()[:MAX_MESSAGE])
        else:
            socket.send_fds(connection, [b"ok"], [compiled])
            os.close(compiled)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


class Compiled(NamedTuple):
    """A compiled module, and how it came."""

    descriptor: int
    """Read-only; the caller closes it."""
    key: str
    was_cached: bool
    is_cached: bool


def compile_cached(wasm: int, cache: CompiledModuleCache) -> int:
    """Return a descriptor of the compiled form of the file open as ``wasm``. Raises ModuleError."""
    return find_or_compile(_read_wasm(wasm), cache).descriptor


def find_or_compile(data: bytes, cache: CompiledModuleCache) -> Compiled:
    """Return the compiled form of a module, from the cache if it is there.

    Without a writable cache the result still comes, in a file without a name.
    Raises ModuleError; OSError if there is no memory for a process or the result.
    """
    from containerd_shimkit.wasm.engine import COMPILER_FINGERPRINT

    check_wasm(data)
    label = Label.of(data, COMPILER_FINGERPRINT)
    key = label.key
    found = cache.open(key)
    if found is not None:
        return Compiled(found, key, was_cached=True, is_cached=True)
    with cache.compiling(key):
        found = cache.open(key)  # by whom we waited for
        if found is not None:
            return Compiled(found, key, was_cached=True, is_cached=True)
        output = _compile_in_child(data)
        stored = _store(cache, label, output)
    if stored is None:
        return Compiled(output, key, was_cached=False, is_cached=False)
    os.close(output)
    return Compiled(stored, key, was_cached=False, is_cached=True)


def _store(cache: CompiledModuleCache, label: Label, output: int) -> int | None:
    """Return a descriptor of the new entry; None on a full or read-only disk, which makes starts
    slower, not impossible."""
    try:
        with mmap.mmap(output, 0, prot=mmap.PROT_READ) as code:
            cache.store(label.key, code, label.encode())
    except OSError:
        with contextlib.suppress(OSError):
            cache.trim()  # there may be room the next time
        return None
    stored = cache.open(label.key)
    with contextlib.suppress(OSError):
        cache.trim()
    return stored


def _read_wasm(wasm: int) -> bytes:
    """Return the file's contents. Raises ModuleError if it is no file or too large.

    A copy: whoever can write to the file must not have one content hashed and another compiled, nor
    kill us by cutting off what is mapped.
    """
    status = os.fstat(wasm)
    if not stat.S_ISREG(status.st_mode):
        raise ModuleError("is no regular file")
    if status.st_size > MAX_WASM_BYTES:
        raise ModuleError(f"has {status.st_size} bytes; at most {MAX_WASM_BYTES} are allowed")
    with open(wasm, "rb", closefd=False) as file:
        file.seek(0)
        return file.read(status.st_size)


def check_wasm(data: bytes) -> None:
    """Raise ModuleError for what needs no compiler to be refused."""
    if len(data) < 8:
        raise ModuleError(f"has {len(data)} bytes, which is too short for WebAssembly")
    head = data[:8]
    if head[:4] != _MAGIC:
        raise ModuleError(f"is no WebAssembly: it starts with {head[:4]!r}, not with {_MAGIC!r}")
    if head[4:] == _COMPONENT_VERSION:
        raise ModuleError("is a component; this version of the shim runs core modules")
    if head[4:] != _CORE_VERSION:
        raise ModuleError(f"has WebAssembly version {head[4:].hex()}, not 01000000")


def _compile_in_child(data: bytes) -> int:
    """Return a descriptor of a file in memory with the compiled code; raises ModuleError.

    The child may use threads and much memory, and is gone afterwards.
    """
    output = _memory_file()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _compile_and_exit(data, output, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        message = pipe.read(MAX_MESSAGE).decode(errors="replace")
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        # Opened anew, so that nobody can write to what is handed on.
        try:
            return os.open(f"/proc/self/fd/{output}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(output)
    os.close(output)
    if code < 0:
        raise ModuleError(f"the compiler was killed by signal {-code} (memory or time limit?)")
    raise ModuleError(message or f"the compiler ended with status {code}")


def _memory_file() -> int:
    """Return a new file's descriptor. Not on a disk: that may be full, and a pod starts still."""
    # Not os.memfd_create: a Python built with an older C library has none.
    descriptor = ctypes.CDLL(None, use_errno=True).memfd_create(b"wasm-compile", _MFD_CLOEXEC)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"memfd_create: {os.strerror(number)}")
    os.fchmod(descriptor, 0o444)
    return int(descriptor)


def _compile_and_exit(data: bytes, output: int, report: int) -> None:
    """Compile in a forked child. Never returns."""
    code = 1
    try:
        import wasmtime

        from containerd_shimkit.wasm.engine import compiler_config

        close_all_but(output, report)
        _limit_resources()
        confine()
        try:
            module = wasmtime.Module(wasmtime.Engine(compiler_config()), data)
            code_left = memoryview(module.serialize())
            while code_left:
                code_left = code_left[os.write(output, code_left) :]
            code = 0
        except wasmtime.WasmtimeError as exc:
            os.write(report, _first_lines(str(exc)).encode()[:MAX_MESSAGE])
    except BaseException as exc:
        with contextlib.suppress(OSError):
            os.write(report, f"the compiler failed: {exc!r}".encode()[:MAX_MESSAGE])
    finally:
        os._exit(code)


def _limit_resources() -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: _COMPILER_SECONDS,
        resource.RLIMIT_AS: _COMPILER_MEMORY_BYTES,
    }
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (bound, bound))


def _first_lines(text: str) -> str:
    """wasmtime's errors have a line a level; the outermost and innermost say what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "does not compile: " + "; ".join(lines[:1] + lines[-1:] if len(lines) > 1 else lines)
