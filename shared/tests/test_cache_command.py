"""``cache`` and ``precompile`` on the command line, with images that are files."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime

from containerd_shimkit.cache_command import run_cache_command
from containerd_shimkit.oci.archive import ImageFile, write_image_archive
from containerd_shimkit.wasm.cache import CompiledModuleCache, Entry, Label
from containerd_shimkit.wasm.engine import COMPILER_FINGERPRINT, WASMTIME_VERSION

ONE = bytes(wasmtime.wat2wasm('(module (func (export "one")))'))
TWO = bytes(wasmtime.wat2wasm('(module (func (export "two")))'))

RUN = """
import sys
from containerd_shimkit.cli import run
from containerd_shimkit.testing import STUB_KIND
sys.exit(run(STUB_KIND, None, sys.argv[1:]))
"""

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def command(directory: Path) -> Command:
    """Run the shim's binary with a cache of the test's own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", RUN, *arguments],
            env=os.environ | {"CONTAINERD_WASM_SHIMS_CACHE": str(directory)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "image.tar"
    files = [ImageFile("app/one.wasm", ONE), ImageFile("two", TWO), ImageFile("again", ONE)]
    write_image_archive(path, "docker.io/library/a:b", files, entrypoint=["/"])
    return path


def digest(wasm: bytes) -> str:
    return f"sha256:{hashlib.sha256(wasm).hexdigest()}"


# precompile


def test_precompile_fills_the_cache_once(command: Command, archive: Path, directory: Path) -> None:
    first = command("precompile", str(archive))
    assert (first.returncode, first.stderr) == (0, "")
    lines = [line.split("  ") for line in first.stdout.splitlines()]
    assert [line[:4] for line in lines] == [
        ["again", digest(ONE), str(len(ONE)), "compiled"],
        ["two", digest(TWO), str(len(TWO)), "compiled"],
    ]
    assert all(line[4].endswith(" s") for line in lines)
    assert {path.stem for path in directory.glob("*.cwasm")} == {
        Label.of(wasm, COMPILER_FINGERPRINT).key for wasm in (ONE, TWO)
    }
    second = command("precompile", str(archive))
    assert second.returncode == 0
    assert second.stdout.count("already there") == 2


def test_precompile_of_an_image_without_modules(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    write_image_archive(path, "docker.io/library/a:b", [ImageFile("a")], entrypoint=["/"])
    done = command("precompile", str(path))
    assert done.returncode == 1
    assert done.stderr == f"{path}: has no WebAssembly module for this machine\n"


def test_precompile_of_a_shim_with_modules_of_its_own(
    command: Command, tmp_path: Path, directory: Path
) -> None:
    """Then an image need not have any."""
    package = tmp_path / "own_modules_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "two.wasm").write_bytes(TWO)
    (package / "one.wasm").write_bytes(ONE)
    path = tmp_path / "image.tar"
    write_image_archive(path, "docker.io/library/a:b", [ImageFile("a")], entrypoint=["/"])
    run = f"""
import sys
sys.path.append({str(tmp_path)!r})
from containerd_shimkit.cli import run
from containerd_shimkit.runtime import ShimKind
kind = ShimKind("stub", "", "0", modules={package.name!r})
sys.exit(run(kind, None, sys.argv[1:]))
"""
    for images in ([], [str(path)]):
        done = subprocess.run(
            [sys.executable, "-c", run, "precompile", *images],
            env=os.environ | {"CONTAINERD_WASM_SHIMS_CACHE": str(directory)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        names = [line.split("  ")[0] for line in done.stdout.splitlines()]
        assert names == ["one.wasm", "two.wasm"]
    assert len(list(directory.glob("*.cwasm"))) == 2


def test_precompile_goes_on_after_a_bad_module(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    files = [ImageFile("bad\n", ONE[:-3]), ImageFile("good", ONE)]
    write_image_archive(path, "docker.io/library/a:b", files, entrypoint=["/"])
    done = command("precompile", "/no/such/file", str(path))
    assert done.returncode == 1
    assert done.stderr == "/no/such/file: no such file\n"
    bad, good = done.stdout.splitlines()
    assert bad.startswith("bad\\n  ")
    assert "refused: does not compile" in bad
    assert "  compiled  " in good


def test_precompile_without_a_cache_says_so(
    command: Command, archive: Path, directory: Path
) -> None:
    directory.write_bytes(b"")
    done = command("precompile", str(archive))
    assert done.returncode == 1
    assert f"compiled, but cannot be kept in {directory}" in done.stdout


def test_precompile_without_containerd(command: Command, tmp_path: Path) -> None:
    done = command("precompile", "-address", str(tmp_path / "none"), "a:b")
    assert done.returncode == 1
    assert done.stderr == f"a:b: {tmp_path}/none: No such file or directory\n"


@pytest.mark.parametrize("arguments", [["precompile"], ["cache"], ["cache", "lost"]])
def test_wrong_usage(command: Command, arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 64
    assert done.stderr.startswith(f"containerd-shim-stub-v1 {arguments[0]}: ")


@pytest.mark.parametrize("name", ["precompile", "cache"])
def test_help(command: Command, name: str) -> None:
    done = command(name, "--help")
    assert done.returncode == 0
    assert f"containerd-shim-stub-v1 {name}" in done.stdout


# cache


def test_list(command: Command, archive: Path, directory: Path) -> None:
    command("precompile", str(archive))
    old = Label("0" * 64, "wasmtime=1.2.3 epoch=1", "1" * 64)
    CompiledModuleCache(directory).store(old.key, b"old" * 1000, old.encode())
    os.utime(directory / f"{old.key}.cwasm", (0, 0))
    (directory / "junk.cwasm").write_bytes(b"junk")
    listed = json.loads(command("cache", "list", "--json").stdout)
    by_digest = {entry["digest"]: entry for entry in listed}
    assert set(by_digest) == {digest(ONE), digest(TWO), f"sha256:{old.wasm}", ""}
    assert by_digest[digest(ONE)]["wasmtime"] == WASMTIME_VERSION
    assert by_digest[digest(ONE)]["state"] == "current"
    assert by_digest[""]["state"] == "damaged"
    assert listed[-1] == {
        "digest": f"sha256:{old.wasm}",
        "size": (directory / f"{old.key}.cwasm").stat().st_size,
        "used": "1970-01-01T00:00:00Z",
        "wasmtime": "1.2.3",
        "state": "stale",
        "in_use": False,
    }
    text = command("cache", "list").stdout.splitlines()
    assert text[0].split() == ["DIGEST", "SIZE", "USED", "WASMTIME", "STATE"]
    assert text[-1].split()[0] == f"sha256:{old.wasm}"
    assert len(text) == 5


def test_list_of_nothing(command: Command) -> None:
    assert command("cache", "list").stdout.split()[0] == "DIGEST"
    assert json.loads(command("cache", "list", "--json").stdout) == []


def test_verify_removes_what_is_damaged(command: Command, archive: Path, directory: Path) -> None:
    command("precompile", str(archive))
    good = command("cache", "verify")
    assert (good.returncode, good.stdout) == (0, "2 entries, 0 damaged\n")
    one = directory / f"{Label.of(ONE, COMPILER_FINGERPRINT).key}.cwasm"
    two = directory / f"{Label.of(TWO, COMPILER_FINGERPRINT).key}.cwasm"
    (directory / "other.cwasm").write_bytes(one.read_bytes())  # intact, but not under its name
    two.unlink()
    (two / "sub").mkdir(parents=True)
    (directory / ".new-abc").write_bytes(b"of a killed writer")
    bad = command("cache", "verify")
    assert bad.returncode == 1
    assert bad.stdout.splitlines()[-1] == "3 entries, 2 damaged"
    assert f"{two}: damaged, removed" in bad.stdout
    assert [path.name for path in directory.iterdir() if path.name != ".lock"] == [one.name]


def test_empty_leaves_what_is_in_use(command: Command, archive: Path, directory: Path) -> None:
    command("precompile", str(archive))
    key = Label.of(ONE, COMPILER_FINGERPRINT).key
    descriptor = CompiledModuleCache(directory).open(key)
    assert descriptor is not None
    done = command("cache", "empty")
    assert done.returncode == 0
    assert done.stdout.startswith("1 entries removed, ")
    assert done.stdout.endswith("; 1 in use\n")
    assert [path.stem for path in directory.glob("*.cwasm")] == [key]
    assert "current, in use" in command("cache", "list").stdout
    os.close(descriptor)
    assert command("cache", "empty").stdout.endswith("; 0 in use\n")
    assert not list(directory.glob("*.cwasm"))


@pytest.fixture
def in_process(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    monkeypatch.setenv("CONTAINERD_WASM_SHIMS_CACHE", str(directory))

    def run(action: str) -> int:
        return run_cache_command(argparse.Namespace(action=action, json=True))

    return run


def test_entry_that_another_removes_is_not_damaged(
    in_process: Callable[[str], int],
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gone = Entry(directory / f"{'0' * 64}.cwasm", 1, 0.0)
    monkeypatch.setattr(CompiledModuleCache, "entries", lambda _: [gone])
    assert in_process("verify") == 0
    assert capsys.readouterr().out == "0 entries, 0 damaged\n"
    assert in_process("list") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_empty_says_what_cannot_be_removed(
    in_process: Callable[[str], int],
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = CompiledModuleCache(directory)
    cache.store("a", b"code")
    cache.store("b", b"code")
    descriptor = cache.open("b")
    assert descriptor is not None

    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", unlink)
    try:
        assert in_process("empty") == 1
    finally:
        os.close(descriptor)
    told = capsys.readouterr()
    assert told.out == "0 entries removed, 0 bytes; 1 in use; 1 cannot be removed\n"
    assert told.err == f"{directory}/a.cwasm: cannot be removed: Read-only file system\n"
