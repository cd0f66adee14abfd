"""Modules of an image: opening the file, the compiled form, and imports nobody provides."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import wasmtime

from containerd_shimkit.errors import MissingFileError, ModuleError
from containerd_shimkit.testing.guests import GuestHost, compile_wasm
from containerd_shimkit.wasm.cache import CompiledModuleCache
from containerd_shimkit.wasm.module import check_imports, load_compiled, open_wasm
from containerd_shimkit.wasm.preview1 import define_preview1


def module(host: GuestHost, text: str) -> wasmtime.Module:
    compiled = compile_wasm(bytes(wasmtime.wat2wasm(text)))
    return wasmtime.Module.deserialize(host.engine, compiled)


def check(host: GuestHost, text: str) -> None:
    linker = wasmtime.Linker(host.engine)
    imports = define_preview1(linker)
    check_imports(module(host, text), linker, wasmtime.Store(host.engine), "app.wasm")
    assert imports.names


def test_provided_imports_are_good(host: GuestHost) -> None:
    check(
        host,
        """(module (import "wasi_snapshot_preview1" "fd_write"
          (func (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "poll_oneoff"
          (func (param i32 i32 i32 i32) (result i32))))""",
    )


def test_every_missing_import_is_named(host: GuestHost) -> None:
    text = """(module
      (import "wasi_snapshot_preview1" "fd_close" (func (param i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_fly" (func))
      (import "env" "memory" (memory 1))
      (import "env" "table" (table 1 funcref))
      (import "env" "global" (global i32))
      (import "" "" (func))
      (import "key-value" "open" (func (param i32 i32 i32))))"""
    with pytest.raises(ModuleError) as caught:
        check(host, text)
    message = str(caught.value)
    assert message.startswith("app.wasm: imports ")
    for name in ("snapshot_preview1.fd_fly", "env.memory", "env.table", "env.global", "e.open"):
        assert name in message
    assert "fd_close" not in message


def test_names_of_imports_are_shown_as_text(host: GuestHost) -> None:
    """They are a module's own: in a log they are neither lines nor commands for a terminal."""
    text = f"""(module
      (import "a\\nlevel=error" "\\1b[2J\\u{{202e}}ü" (func))
      (import "{"x" * 1000}" "y" (func)))"""
    with pytest.raises(ModuleError) as caught:
        check(host, text)
    message = str(caught.value)
    assert message.isprintable()
    assert r"a\nlevel=error.\x1b[2J\u202eü, " in message
    assert f"{'x' * 200}…" in message


def test_open_wasm_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"app\.wasm: no such file in the image"):
        open_wasm(tmp_path / "app.wasm", "app.wasm")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModuleError, match="cannot be opened: Not a directory"):
        open_wasm(tmp_path / "file" / "app.wasm", "app.wasm")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ModuleError, match="cannot be opened: Too many levels"):
        open_wasm(tmp_path / "loop", "loop")


def test_open_wasm_does_not_wait_for_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.close(open_wasm(tmp_path / "fifo", "fifo"))


@pytest.fixture
def compiled(tmp_path: Path) -> int:
    cache = CompiledModuleCache(tmp_path)
    cache.store("key", compile_wasm(bytes(wasmtime.wat2wasm('(module (func (export "f")))'))))
    descriptor = cache.open("key")
    assert descriptor is not None
    return descriptor


@pytest.mark.parametrize("has_proc", [True, False])
def test_load_compiled_with_and_without_proc(
    host: GuestHost, compiled: int, monkeypatch: pytest.MonkeyPatch, has_proc: bool
) -> None:
    if not has_proc:
        monkeypatch.setattr(Path, "exists", lambda _: False)
    loaded = load_compiled(host.engine, compiled, "app.wasm")
    assert [export.name for export in loaded.exports] == ["f"]
    os.close(compiled)


@pytest.mark.parametrize("content", [b"junk" * 100, bytes(8192), b"\x7fELF" + bytes(5000)])
def test_foreign_file_is_refused(host: GuestHost, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with open(path, "rb") as file, pytest.raises(ModuleError, match="app: the compiled module"):
        load_compiled(host.engine, file.fileno(), "app")


def test_module_of_other_settings_is_refused(host: GuestHost, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(wasmtime.Module(wasmtime.Engine(), "(module)").serialize()))
    with open(path, "rb") as file, pytest.raises(ModuleError, match="app: the compiled module"):
        load_compiled(host.engine, file.fileno(), "app")
