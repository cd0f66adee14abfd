"""An engine without WebAssembly, for tests of everything around engines.

What it does is said by the container's environment:

    STUB_EXIT=CODE      end with this code right after the start
    STUB_LISTEN=IP:PORT serve HTTP; every answer is 200 with STUB_TEXT
    STUB_WORKERS=N      be served by N processes
    STUB_STDOUT, STUB_STDERR=TEXT   written at the start
    STUB_CLOSED=TEXT    written to stdout when nobody serves the app any more
    STUB_REPORT=1       write what the process sees of itself to stdout, as a line of JSON
    STUB_COMPILE=PATH   have a ``.wasm`` file of the image compiled
    STUB_IMPORT=NAMES   import modules, comma-separated, in ``prepare``; those that have a function
                        ``look`` tell by it what there is, in the report
    STUB_IMPORT_SERVING=NAMES   try the same in ``serve``; the report has what came of it
    STUB_FAIL=STEP      raise EngineError with STUB_TEXT in ``prepare`` or ``serve``
    STUB_CRASH=STEP     raise RuntimeError with STUB_TEXT in ``prepare``, ``serve`` or ``ready``
    STUB_DIE=STEP       exit with code 9 at once in ``prepare``, ``serve`` or ``ready``, or when the
                        engine is taken apart: ``end``
    STUB_HANG=STEP      do nothing more in ``prepare``, ``serve``, or from ``ready`` on

Without any of these it serves nothing until it is told to stop, then ends with 0.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from containerd_shimkit.engine import RuntimeContext
from containerd_shimkit.errors import EngineError
from containerd_shimkit.runtime import ShimKind

_MODULE = "containerd_shimkit.testing.stub_engine"
STUB_KIND = ShimKind("stub", f"{_MODULE}:StubEngine", "0")
LATE_STUB_KIND = ShimKind("stub", f"{_MODULE}:LateStubEngine", "0")
DIED = 9


class StubEngine:
    """Implements ``containerd_shimkit.engine.Engine``; its app is the context."""

    imports_late: ClassVar[bool] = False

    _dies_in_the_end = False
    _listener: socket.socket | None = None

    def __init__(self) -> None:
        self._seen: dict[str, object] = {}

    def __del__(self) -> None:
        if self._dies_in_the_end:
            os._exit(DIED)

    def prepare(self, context: RuntimeContext) -> RuntimeContext:
        self._dies_in_the_end = context.env.get("STUB_DIE") == "end"
        _misbehave("prepare", context.env)
        if path := context.env.get("STUB_COMPILE"):
            wasm = os.open(path, os.O_RDONLY)
            os.close(context.compile(wasm, path))
            os.close(wasm)
        for name in filter(None, context.env.get("STUB_IMPORT", "").split(",")):
            module = importlib.import_module(name)
            self._seen[name] = module.look() if hasattr(module, "look") else module.__file__
        return context

    def listen(self, app: RuntimeContext) -> int:
        self._listener = _listener(app.env)
        return int(app.env.get("STUB_WORKERS", "1"))

    def close(self, app: RuntimeContext) -> None:
        app.stdout.write(app.env.get("STUB_CLOSED", "").encode())

    async def serve(
        self, app: RuntimeContext, ready: Callable[[], None], stop: asyncio.Event
    ) -> int:
        env = app.env
        _misbehave("serve", env)
        if env.get("STUB_HANG") == "serve":
            await asyncio.Event().wait()
        app.stdout.write(env.get("STUB_STDOUT", "").encode())
        app.stderr.write(env.get("STUB_STDERR", "").encode())
        if env.get("STUB_REPORT"):
            seen = {"imported": self._seen, "serving": _imports_serving(env)}
            app.stdout.write(json.dumps(report(app) | seen).encode() + b"\n")
        server = await _listen(env, self._listener)
        ready()
        _misbehave("ready", env)
        if code := env.get("STUB_EXIT"):
            return int(code)
        if env.get("STUB_HANG") == "ready":
            await asyncio.Event().wait()
        await stop.wait()
        if server is not None:
            server.close()
        return 0


class LateStubEngine(StubEngine):
    """The same, with modules that nobody has imported before."""

    imports_late = True


def report(context: RuntimeContext) -> dict[str, object]:
    """Return what this process sees of itself."""
    return {
        "pid": os.getpid(),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": os.getgroups(),
        "cwd": os.getcwd(),
        "root": sorted(path.name for path in Path("/").iterdir()),
        "hostname": os.uname().nodename,
        "environ": dict(os.environ),
        "env": dict(context.env),
        "args": list(context.args),
        "memory_limit_bytes": context.memory_limit_bytes,
        "umask": os.umask(0o022),
    }


def _imports_serving(env: Mapping[str, str]) -> dict[str, str]:
    results = {}
    for name in filter(None, env.get("STUB_IMPORT_SERVING", "").split(",")):
        try:
            importlib.import_module(name)
        except ImportError as exc:
            results[name] = str(exc)
        else:
            results[name] = "imported"
    return results


def _misbehave(step: str, env: Mapping[str, str]) -> None:
    text = env.get("STUB_TEXT", "as told")
    if env.get("STUB_FAIL") == step:
        raise EngineError(text)
    if env.get("STUB_CRASH") == step:
        raise RuntimeError(text)
    if env.get("STUB_DIE") == step:
        os._exit(DIED)
    if env.get("STUB_HANG") == step == "prepare":
        while True:
            signal.pause()


def _listener(env: Mapping[str, str]) -> socket.socket | None:
    # Bound here: a name would be resolved by modules that cannot be imported any more.
    if "STUB_LISTEN" not in env:
        return None
    host, _, port = env["STUB_LISTEN"].rpartition(":")
    listener = socket.socket(socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, int(port)))
    return listener


async def _listen(env: Mapping[str, str], listener: socket.socket | None) -> asyncio.Server | None:
    if listener is None:
        return None
    body = env.get("STUB_TEXT", "").encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, sock=listener)
