"""A language engine run without the shim: one worker loaded, and a snapshot of it for each request.

This is the host's side of the engines' contract in its plainest form, over the wheel's public
classes. The shim does the same with prepared calls.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import wasmtime

import containerd_shim_wws_v1
from containerd_shimkit.wasm.engine import compiler_config

ENGINES: Final = Path(containerd_shim_wws_v1.__file__).parent / "engines"
PAGE: Final = 4096
MAX_MEMORY_BYTES: Final = 256 << 20
MAX_SECONDS: Final = 60.0
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")
ERRORS: Final = (
    *("invalid-request", "invalid-request-body", "invalid-response-body", "not-allowed"),
    *("internal-error", "timeout", "redirect-loop"),
)


@dataclass(frozen=True)
class OutgoingRequest:
    """What a worker asked of ``send-http-request``."""

    method: str
    uri: str
    headers: list[tuple[str, str]]
    params: list[tuple[str, str]]
    body: bytes | None


@dataclass(frozen=True)
class OutgoingResponse:
    """What it is answered."""

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | None = None


class OutgoingError(Exception):
    """The request failed; ``error`` is one of ``ERRORS``."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


Send = Callable[[OutgoingRequest], OutgoingResponse]


def refuse(_request: OutgoingRequest) -> OutgoingResponse:
    raise OutgoingError("not-allowed", "the worker has no http_requests")


class WorkerFailed(Exception):
    """``load`` or ``handle`` failed; ``stderr`` is what the engine printed."""

    def __init__(self, stderr: str) -> None:
        super().__init__(stderr)
        self.stderr = stderr


@dataclass(frozen=True)
class Answer:
    """A worker's response, parsed, and what it printed."""

    response: dict[str, Any]
    stdout: str
    stderr: str


@dataclass
class _Call:
    """An instance alive: its store, exports and output."""

    store: wasmtime.Store
    exports: Mapping[str, Any]
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)

    @property
    def memory(self) -> wasmtime.Memory:
        memory = self.exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        return memory

    def call(self, name: str, *arguments: int) -> Any:
        function = self.exports[name]
        assert isinstance(function, wasmtime.Func)
        return function(self.store, *arguments)

    def put(self, data: bytes) -> tuple[int, int]:
        """Have the guest allocate room for ``data``; return its address and length."""
        pointer = self.call("allocate", len(data)) & 0xFFFFFFFF
        assert pointer
        self.memory.write(self.store, data, pointer)
        return pointer, len(data)

    def errors(self) -> str:
        return self.stderr.decode(errors="replace")


class LanguageEngine:
    """An engine's module, compiled with the shim's settings."""

    def __init__(self, path: Path) -> None:
        self.engine = wasmtime.Engine(compiler_config())
        self.module = wasmtime.Module.from_file(self.engine, str(path))
        self.wasm = path.read_bytes()

    def load(
        self,
        source: str | bytes,
        name: str = "/worker",
        *,
        env: Mapping[str, str] | None = None,
        folders: Mapping[Path, str] | None = None,
        send: Send = refuse,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
    ) -> Worker:
        """Return a worker ready for requests.

        folders: directories of the host -> their paths in the guest.  send: who answers its HTTP
        requests; may raise OutgoingError.
        Raises WorkerFailed with what was printed.
        """
        return Worker(self, source, name, env or {}, folders or {}, send, max_memory_bytes)


class Worker:
    """A snapshot: the pages that a loaded worker has changed of its module's initial memory."""

    def __init__(
        self,
        engine: LanguageEngine,
        source: str | bytes,
        name: str,
        env: Mapping[str, str],
        folders: Mapping[Path, str],
        send: Send,
        max_memory_bytes: int,
    ) -> None:
        self.engine, self.env, self.folders, self.send = engine, env, folders, send
        self.max_memory_bytes = max_memory_bytes
        text = source.encode() if isinstance(source, str) else source
        with self._instance() as call:
            initial = bytes(call.memory.read(call.store))
            call.call("_initialize")
            failed = call.call("load", *call.put(name.encode()), *call.put(text))
            self.stdout = call.stdout.decode(errors="replace")
            self.stderr = call.errors()
            if failed:
                raise WorkerFailed(self.stderr)
            loaded = bytes(call.memory.read(call.store))
        self.memory_bytes = len(loaded)
        self.initial_bytes = len(initial)
        self.pages = dict(_changed_pages(initial, loaded))
        self.runs = list(_runs(self.pages))

    def handle(
        self, request: Mapping[str, Any] | str | bytes, seconds: float = MAX_SECONDS
    ) -> Answer:
        """Answer one request in an instance of its own.

        request: the keys that are not the default's, or the whole text.
        Raises WorkerFailed with what was printed; wasmtime.Trap if the guest traps, also after
        ``seconds``.
        """
        if isinstance(request, Mapping):
            request = json.dumps(default_request() | dict(request))
        text = request.encode() if isinstance(request, str) else request
        with self._instance(seconds) as call:
            self._restore(call)
            result = call.call("handle", *call.put(text)) & 0xFFFFFFFF
            if not result:
                raise WorkerFailed(call.errors())
            pointer, length = struct.unpack("<II", call.memory.read(call.store, result, result + 8))
            data = bytes(call.memory.read(call.store, pointer, pointer + length))
            assert len(data) == length
            return Answer(json.loads(data), call.stdout.decode(errors="replace"), call.errors())

    def _restore(self, call: _Call) -> None:
        memory = call.memory
        if self.memory_bytes > self.initial_bytes:
            memory.grow(call.store, (self.memory_bytes - self.initial_bytes) >> 16)
        for start, data in self.runs:
            memory.write(call.store, data, start)

    @contextmanager
    def _instance(self, seconds: float = MAX_SECONDS) -> Iterator[_Call]:
        engine = self.engine.engine
        store = wasmtime.Store(engine)
        store.set_limits(memory_size=self.max_memory_bytes)
        store.set_epoch_deadline(1)
        stdout, stderr = bytearray(), bytearray()
        wasi = wasmtime.WasiConfig()
        wasi.env = list(self.env.items())
        wasi.stdout_custom = stdout.extend
        wasi.stderr_custom = stderr.extend
        for path, inside in self.folders.items():
            wasi.preopen_dir(str(path), inside)
        store.set_wasi(wasi)
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        _define_http(linker, self.send)
        timer = threading.Timer(seconds, engine.increment_epoch)
        timer.daemon = True
        timer.start()
        try:
            exports = linker.instantiate(store, self.engine.module).exports(store)
            yield _Call(store, exports, stdout, stderr)
        finally:
            timer.cancel()
            timer.join()
            store.close()


def default_request() -> dict[str, Any]:
    """A request's JSON as wws 1.7 gives it."""
    return {
        "url": "http://localhost/worker",
        "method": "GET",
        "headers": {"host": "localhost"},
        "body": "",
        "kv": {},
        "params": {},
    }


def engine_file(language: str) -> Path:
    """Return where the engine of a language is, or skip the test where it is not built."""
    path = ENGINES / f"{language}.wasm"
    if not path.exists():
        pytest.skip(f"{path.name} is not built: run `make engines`")
    return path


def mutable_globals(wasm: bytes) -> int:
    """Return how many globals a module defines that code may set."""
    position, count = 8, 0
    while position < len(wasm):
        section = wasm[position]
        size, position = _leb(wasm, position + 1)
        if section == 6:  # globals
            number, place = _leb(wasm, position)
            for _ in range(number):
                count += wasm[place + 1]
                # Type, mutability, then a constant: i32.const or i64.const, a number, end.
                assert wasm[place] in (0x7F, 0x7E)
                _, place = _leb(wasm, place + 3)
                assert wasm[place] == 0x0B
                place += 1
        position += size
    return count


def _leb(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        shift, position = shift + 7, position + 1
        if not byte & 0x80:
            return value, position


def _changed_pages(initial: bytes, loaded: bytes) -> Iterator[tuple[int, bytes]]:
    initial = initial.ljust(len(loaded), b"\0")
    for start in range(0, len(loaded), PAGE):
        page = loaded[start : start + PAGE]
        if page != initial[start : start + PAGE]:
            yield start, page


def _runs(pages: Mapping[int, bytes]) -> Iterator[tuple[int, bytearray]]:
    """Yield neighbouring pages as one."""
    start, run = 0, bytearray()
    for place, page in sorted(pages.items()):
        if run and place != start + len(run):
            yield start, run
            run = bytearray()
        if not run:
            start = place
        run += page
    if run:
        yield start, run


def _define_http(linker: wasmtime.Linker, send: Send) -> None:
    """Define ``http`` ``send-http-request``: (body?, headers, method, params, uri, result)."""
    i32 = wasmtime.ValType.i32()
    linker.define_func(
        "http",
        "send-http-request",
        wasmtime.FuncType([i32] * 11, []),
        lambda caller, *arguments: _send(caller, send, *(a & 0xFFFFFFFF for a in arguments)),
        access_caller=True,
    )


def _send(
    caller: wasmtime.Caller,
    send: Send,
    has_body: int,
    body: int,
    body_length: int,
    headers: int,
    headers_length: int,
    method: int,
    params: int,
    params_length: int,
    uri: int,
    uri_length: int,
    result: int,
) -> None:
    memory, realloc = caller["memory"], caller["canonical_abi_realloc"]
    assert isinstance(memory, wasmtime.Memory)
    assert isinstance(realloc, wasmtime.Func)

    def read(pointer: int, length: int) -> bytes:
        data = bytes(memory.read(caller, pointer, pointer + length))
        assert len(data) == length
        return data

    def pairs(pointer: int, length: int) -> list[tuple[str, str]]:
        numbers = struct.unpack(f"<{length * 4}I", read(pointer, length * 16))
        texts = [read(*numbers[i : i + 2]).decode() for i in range(0, len(numbers), 2)]
        return list(zip(texts[::2], texts[1::2], strict=True))

    def give(data: bytes, alignment: int = 1) -> tuple[int, int]:
        pointer = realloc(caller, 0, 0, alignment, len(data)) & 0xFFFFFFFF
        memory.write(caller, data, pointer)
        return pointer, len(data)

    request = OutgoingRequest(
        METHODS[method],
        read(uri, uri_length).decode(),
        pairs(headers, headers_length),
        pairs(params, params_length),
        read(body, body_length) if has_body else None,
    )
    try:
        response = send(request)
    except OutgoingError as exc:
        code = ERRORS.index(exc.error)
        flat = struct.pack("<B3xB3xII", 1, code, *give(str(exc).encode()))
    else:
        given = (0, 0, 0) if response.body is None else (1, *give(response.body))
        fields = b"".join(
            struct.pack("<IIII", *give(name.encode()), *give(value.encode()))
            for name, value in response.headers
        )
        listed = give(fields, 4)[0], len(response.headers)
        flat = struct.pack("<B3xB3xIIIIH2x", 0, *given, *listed, response.status)
    memory.write(caller, flat, result)
