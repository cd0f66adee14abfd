"""Guests without a container: an engine and imports of a test's own, modules from text."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import wasmtime

from containerd_shimkit.wasm.compiler import request_compiled
from containerd_shimkit.wasm.engine import EngineSettings, Ticker, compiler_config, create_engine
from containerd_shimkit.wasm.guest import Guest, GuestTemplate
from containerd_shimkit.wasm.imports import AsyncImport, AsyncImports
from containerd_shimkit.wasm.module import Compile
from containerd_shimkit.wasm.preview1 import WasiTemplate, define_preview1, output_callback

SMALL: Final = EngineSettings(max_instances=16, max_memory_bytes=64 << 20)

_SERVE: Final = """
import socket, sys
from pathlib import Path
import wasmtime
from containerd_shimkit.wasm import engine
from containerd_shimkit.wasm.cache import CompiledModuleCache
from containerd_shimkit.compiling import serve_compiler
serve_compiler(socket.socket(fileno=int(sys.argv[1])), CompiledModuleCache(Path(sys.argv[2])))
"""


def compile_wasm(wasm: bytes) -> bytes:
    """Return the compiled form, made in this process without starting a thread."""
    config = compiler_config()
    config.parallel_compilation = False
    return bytes(wasmtime.Module(wasmtime.Engine(config), wasm).serialize())


@contextmanager
def running_compiler(cache_directory: Path) -> Iterator[Compile]:
    """A compiler in a process of its own, as each container has one; yields how to call it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-c", _SERVE, str(theirs.fileno()), str(cache_directory)]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        try:
            yield lambda wasm, name: request_compiled(ours, wasm, name)
        finally:
            ours.close()  # which ends it
            process.wait(30)


def compile_file(compiler: Compile, path: Path) -> int:
    """Return a descriptor of the compiled form of the file at ``path``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return compiler(descriptor, path.name)
    finally:
        os.close(descriptor)


class GuestHost:
    """An engine and its ticker; makes templates and guests."""

    def __init__(self, settings: EngineSettings = SMALL) -> None:
        self.settings = settings
        self.engine = create_engine(settings)
        self.ticker = Ticker(self.engine)
        self._keep: list[Any] = []

    def template(
        self,
        module: str | bytes,
        imports: Mapping[str, tuple[str, AsyncImport]] | None = None,
        define: Callable[[AsyncImports], None] = lambda _: None,
    ) -> GuestTemplate:
        """Link a module, text or binary; WASI preview 1 is there.

        imports: name -> (parameters, implementation), of the module ``test``.  define: defines
        more.
        """
        wasm = bytes(wasmtime.wat2wasm(module))
        compiled = wasmtime.Module.deserialize(self.engine, compile_wasm(wasm))
        linker = wasmtime.Linker(self.engine)
        defined = define_preview1(linker)
        for name, (parameters, implementation) in (imports or {}).items():
            defined.define("test", name, parameters, implementation)
        define(defined)
        return GuestTemplate(self.engine, linker, compiled, defined)

    def guest(
        self,
        template: GuestTemplate,
        *,
        wasi: WasiTemplate | None = None,
        stdin: bytes | None = None,
        stdout: Callable[[bytes], None] = lambda _: None,
        stderr: Callable[[bytes], None] = lambda _: None,
        arguments: Sequence[str] | None = None,
        environment: Sequence[tuple[str, str]] = (),
        max_memory_bytes: int = 64 << 20,
        state: Any = None,
    ) -> Guest:
        """Instantiate a template; its memory, if it exports one, is ready to be read."""
        callbacks = output_callback(stdout), output_callback(stderr)
        self._keep += callbacks
        config = (wasi or WasiTemplate()).config(
            *callbacks, stdin=stdin, arguments=arguments, environment=environment
        )
        guest = Guest(
            *(template, self.ticker),
            wasi_config=config,
            max_memory_bytes=max_memory_bytes,
            state=state,
        )
        memory = guest.export(b"memory")
        if memory is not None:
            guest.use_memory(memory)
        return guest
