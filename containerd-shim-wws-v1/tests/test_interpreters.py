"""The languages as ordinary commands, as `make interpreters` builds them for WAGI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import wasmtime

INTERPRETERS = Path(__file__).parents[2] / "dist" / "interpreters"


@dataclass(frozen=True)
class Language:
    name: str
    engine: wasmtime.Engine
    module: wasmtime.Module


@dataclass(frozen=True)
class Ended:
    code: int
    output: str
    errors: str


@pytest.fixture(scope="module", params=["javascript", "python"])
def language(request: pytest.FixtureRequest) -> Language:
    path = INTERPRETERS / f"{request.param}.wasm"
    if not path.exists():
        pytest.skip(f"needs {path}: make interpreters")
    engine = wasmtime.Engine()
    return Language(request.param, engine, wasmtime.Module.from_file(engine, path))


SOURCES = {
    "javascript": {
        "greet": 'print("content-type: text/plain\\n");'
        'print("Hello", std.getenv("NAME"), scriptArgs[1], std.in.readAsString());',
        "uses": 'import { name } from "./names.js";'
        "Promise.resolve(name).then((name) => console.log(name));",
        "names": 'export const name = "Ada";',
        "fails": 'function f() { throw new Error("no such thing"); }\nf();',
        "later": 'Promise.reject(new Error("no such thing"));',
        "deep": "function f() { return 1 + f(); }\nf();",
        "broken": "this is no source",
    },
    "python": {
        "greet": "import os, sys\nprint('content-type: text/plain\\n')\n"
        "print('Hello', os.environ['NAME'], *sys.argv[1:], sys.stdin.read())",
        "uses": "import asyncio, json, random, urllib.request\nfrom names import name\n"
        "async def main(): await asyncio.sleep(0); print(name)\nasyncio.run(main())",
        "names": "name = 'Ada'",
        "fails": "def f(): raise ValueError('no such thing')\nf()",
        "later": "import asyncio\nasync def f(): raise ValueError('no such thing')\n"
        "asyncio.run(f())",
        "deep": "def f(): return 1 + f()\nf()",
        "broken": "this is no source",
    },
}


def run(language: Language, tmp_path: Path, source: str) -> Ended:
    """Run a source of a directory that is the program's root."""
    name = language.name
    suffix = {"javascript": "js", "python": "py"}[name]
    root = tmp_path / "root"
    root.mkdir()
    for file, text in SOURCES[name].items():
        (root / f"{file}.{suffix}").write_text(text)
    (tmp_path / "input").write_text("and all")
    store = wasmtime.Store(language.engine)
    wasi = wasmtime.WasiConfig()
    wasi.argv = [name, f"/{source}.{suffix}", "Grace"]
    wasi.env = [("NAME", "Ada")]
    wasi.preopen_dir(str(root), "/")
    wasi.stdin_file = str(tmp_path / "input")
    wasi.stdout_file = str(tmp_path / "output")
    wasi.stderr_file = str(tmp_path / "errors")
    store.set_wasi(wasi)
    linker = wasmtime.Linker(language.engine)
    linker.define_wasi()
    code = 0
    try:
        start = linker.instantiate(store, language.module).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        start(store)
    except wasmtime.ExitTrap as trap:
        code = trap.code
    store.close()
    return Ended(code, (tmp_path / "output").read_text(), (tmp_path / "errors").read_text())


def test_environment_arguments_and_input_are_there(language: Language, tmp_path: Path) -> None:
    ended = run(language, tmp_path, "greet")
    assert ended == Ended(0, "content-type: text/plain\n\nHello Ada Grace and all\n", "")


def test_source_has_modules_beside_it_and_waits_for_what_is_left(
    language: Language, tmp_path: Path
) -> None:
    assert run(language, tmp_path, "uses") == Ended(0, "Ada\n", "")


@pytest.mark.parametrize("source", ["fails", "later", "deep", "broken", "nowhere"])
def test_fault_is_told_and_is_exit_code(language: Language, tmp_path: Path, source: str) -> None:
    ended = run(language, tmp_path, source)
    assert ended.code in (1, 2)
    assert not ended.output
    assert ("no such thing" if source in ("fails", "later") else source[:4]) in ended.errors
