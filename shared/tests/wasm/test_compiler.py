"""Compiling for a container: what comes back, what is refused with which words, and as whom."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import wasmtime

from containerd_shimkit.compiling import MAX_WASM_BYTES, compile_cached
from containerd_shimkit.errors import EngineError, ModuleError
from containerd_shimkit.linux.seccomp import seccomp_available
from containerd_shimkit.testing.guests import GuestHost, compile_file, running_compiler
from containerd_shimkit.wasm.cache import CompiledModuleCache, is_in_use
from containerd_shimkit.wasm.compiler import request_compiled
from containerd_shimkit.wasm.module import Compile, load_compiled, open_wasm

GOOD = bytes(wasmtime.wat2wasm('(module (func (export "seven") (result i32) (i32.const 7)))'))
CORE = b"\0asm\x01\0\0\0"


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_compiled_module_can_be_used(host: GuestHost, compiler: Compile, tmp_path: Path) -> None:
    descriptor = compile_file(compiler, write(tmp_path / "good.wasm", GOOD))
    module = load_compiled(host.engine, descriptor, "good.wasm")
    os.close(descriptor)
    assert [export.name for export in module.exports] == ["seven"]


def test_result_is_read_only_and_not_inherited(compiler: Compile, tmp_path: Path) -> None:
    descriptor = compile_file(compiler, write(tmp_path / "good.wasm", GOOD))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(descriptor, b"x")
    os.close(descriptor)


def test_second_request_is_answered_from_the_cache(tmp_path: Path) -> None:
    with running_compiler(tmp_path / "cache") as compiler:
        first = compile_file(compiler, write(tmp_path / "a.wasm", GOOD))
        second = compile_file(compiler, write(tmp_path / "b.wasm", GOOD))
        other = compile_file(compiler, write(tmp_path / "c.wasm", GOOD + b"\0\x02\x01x"))
    inodes = [os.fstat(descriptor).st_ino for descriptor in (first, second, other)]
    for descriptor in (first, second, other):
        os.close(descriptor)
    assert inodes[0] == inodes[1] != inodes[2]
    assert len(list((tmp_path / "cache").glob("*.cwasm"))) == 2


def test_read_position_does_not_matter(compiler: Compile, tmp_path: Path) -> None:
    with open(write(tmp_path / "good.wasm", GOOD), "rb") as file:
        file.seek(20)
        os.close(compiler(file.fileno(), "good.wasm"))


@pytest.mark.parametrize("damage", [b"", b"\0" * 4000])
def test_damaged_cache_entry_is_compiled_again(
    host: GuestHost, tmp_path: Path, damage: bytes
) -> None:
    path = write(tmp_path / "good.wasm", GOOD)
    with running_compiler(tmp_path / "cache") as compiler:
        os.close(compile_file(compiler, path))
        (entry,) = (tmp_path / "cache").glob("*.cwasm")
        entry.unlink()
        entry.write_bytes(damage)
        descriptor = compile_file(compiler, path)
        assert load_compiled(host.engine, descriptor, "good.wasm").exports
        os.close(descriptor)


def block_with_file(directory: Path) -> None:
    directory.parent.mkdir()
    directory.write_bytes(b"")


def block_below_file(directory: Path) -> None:
    directory.parent.write_bytes(b"")


def block_with_directories(directory: Path) -> None:
    """Where the entry should go is a directory that cannot be replaced."""
    with running_compiler(directory) as compiler:
        os.close(compile_file(compiler, write(directory.parent / "good.wasm", GOOD)))
    (entry,) = directory.glob("*.cwasm")
    entry.unlink()
    (entry / "sub").mkdir(parents=True)


@pytest.mark.parametrize("block", [block_with_file, block_below_file])
def test_result_comes_without_a_cache(
    host: GuestHost, tmp_path: Path, block: Callable[[Path], None]
) -> None:
    block(tmp_path / "parent" / "cache")
    with running_compiler(tmp_path / "parent" / "cache") as compiler:
        for _ in range(2):
            descriptor = compile_file(compiler, write(tmp_path / "good.wasm", GOOD))
            assert load_compiled(host.engine, descriptor, "good.wasm").exports
            assert os.fstat(descriptor).st_nlink == 0
            os.close(descriptor)


def test_result_comes_where_an_entry_cannot_be_written(host: GuestHost, tmp_path: Path) -> None:
    block_with_directories(tmp_path / "cache")
    with running_compiler(tmp_path / "cache") as compiler:
        descriptor = compile_file(compiler, write(tmp_path / "good.wasm", GOOD))
        assert load_compiled(host.engine, descriptor, "good.wasm").exports
        os.close(descriptor)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes, which is too short"),
        (b"\0asm\x01\0\0", "has 7 bytes, which is too short"),
        (b"hello world", r"is no WebAssembly: it starts with b'hell'"),
        (b"#!/bin/sh\n", "is no WebAssembly"),
        (b"(module)\n", "is no WebAssembly"),
        (b"\0asm\x0d\0\x01\0" + bytes(20), "is a component"),
        (b"\0asm\x02\0\0\0", "has WebAssembly version 02000000, not 01000000"),
        (b"\0asm\x01\0\x01\0", "has WebAssembly version 01000100"),
        (CORE + b"\x01", "does not compile: "),
        (CORE + b"\xff" * 100, "does not compile: "),
        (GOOD[:-3], "does not compile: "),
        (GOOD[:-1] + b"\x00", "does not compile: "),
        (bytes(wasmtime.wat2wasm("(module (memory 1 1 shared))")), "does not compile: .*threads"),
    ],
)
def test_bad_file_is_refused_with_its_name_and_the_reason(
    compiler: Compile, tmp_path: Path, content: bytes, message: str
) -> None:
    path = write(tmp_path / "bad.wasm", content)
    with pytest.raises(ModuleError, match=f"^bad.wasm: {message}") as caught:
        compile_file(compiler, path)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_empty_module_is_good(compiler: Compile, tmp_path: Path) -> None:
    os.close(compile_file(compiler, write(tmp_path / "empty.wasm", CORE)))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused(
    compiler: Compile, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """A FIFO does not make anybody wait."""
    make(tmp_path / "odd.wasm")
    descriptor = open_wasm(tmp_path / "odd.wasm", "odd.wasm")
    with pytest.raises(ModuleError, match=r"odd\.wasm: is no regular file"):
        compiler(descriptor, "odd.wasm")
    os.close(descriptor)


def test_device_is_refused(compiler: Compile) -> None:
    with pytest.raises(ModuleError, match="is no regular file"):
        compile_file(compiler, Path("/dev/zero"))


def test_file_too_large_is_refused(compiler: Compile, tmp_path: Path) -> None:
    path = write(tmp_path / "large.wasm", CORE)
    os.truncate(path, MAX_WASM_BYTES + 1)
    with pytest.raises(ModuleError, match=f"has {MAX_WASM_BYTES + 1} bytes; at most"):
        compile_file(compiler, path)


def test_refusal_does_not_end_the_compiler(compiler: Compile, tmp_path: Path) -> None:
    for content in (b"bad", CORE + b"\x01", GOOD):
        path = write(tmp_path / "file.wasm", content)
        if content != GOOD:
            with pytest.raises(ModuleError):
                compile_file(compiler, path)
    os.close(compile_file(compiler, path))


def test_compiler_that_is_gone_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "good.wasm", GOOD)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with (
        ours,
        open(path, "rb") as file,
        pytest.raises(EngineError, match=r"good\.wasm: the compiler is gone"),
    ):
        request_compiled(ours, file.fileno(), "good.wasm")


def test_compiler_that_ends_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "good.wasm", GOOD)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.shutdown(socket.SHUT_WR)
    with (
        ours,
        theirs,
        open(path, "rb") as file,
        pytest.raises(EngineError, match=r"good\.wasm: the compiler ended without an answer"),
    ):
        request_compiled(ours, file.fileno(), "good.wasm")


def test_no_descriptor_is_left_open(compiler: Compile, tmp_path: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for content in (GOOD, b"bad", CORE + b"\x01"):
        path = write(tmp_path / "file.wasm", content)
        with suppress(ModuleError):
            os.close(compile_file(compiler, path))
    assert count() == before


# The child that compiles

# Its report, instead of an error of the compiler's.
IN_CHILD = """
import grp, os, resource, signal, socket, sys
from pathlib import Path
import wasmtime
from containerd_shimkit import compiling
from containerd_shimkit.wasm.cache import CompiledModuleCache

class Module:
    def __init__(self, _engine, data):
        %s

wasmtime.Module = Module
writable = os.open(sys.argv[1], os.O_RDWR)
"""

COMPILE_IN_CHILD = """
with open(sys.argv[1], "rb") as file:
    try:
        os.close(compiling.compile_cached(file.fileno(), CompiledModuleCache(Path(sys.argv[2]))))
    except compiling.ModuleError as exc:
        print(exc)
print("parent", os.getresuid())
"""


def in_child(tmp_path: Path, code: str, before: str = "") -> str:
    path = write(tmp_path / "good.wasm", GOOD)
    program = IN_CHILD % code + before + COMPILE_IN_CHILD
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.root
def test_child_has_no_privileges(tmp_path: Path) -> None:
    report = in_child(
        tmp_path,
        "raise wasmtime.WasmtimeError(repr((os.getresuid(), os.getresgid(), os.getgroups())))",
    )
    nobody = (65534, 65534, 65534)
    assert f"does not compile: {(nobody, nobody, [])}" in report
    assert "parent (0, 0, 0)" in report


def test_child_has_limits() -> None:
    """Which it cannot raise again."""
    program = (
        "import resource\n"
        "from containerd_shimkit.compiling import _limit_resources\n"
        "_limit_resources()\n"
        "limits = resource.RLIMIT_CORE, resource.RLIMIT_CPU, resource.RLIMIT_AS\n"
        "print([resource.getrlimit(limit) for limit in limits])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"[(0, 0), (600, 600), ({8 << 30}, {8 << 30})]\n"


@pytest.mark.skipif(not seccomp_available(), reason="needs libseccomp")
@pytest.mark.parametrize(
    "attempt",
    [
        "open('/etc/passwd')",
        "os.listdir('/')",
        "os.stat('/')",
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "os.fork()",
        "os.kill(os.getppid(), 0)",
        "os.execv('/bin/true', ['true'])",
        "os.pidfd_open(os.getppid())",
        "resource.prlimit(os.getpid(), resource.RLIMIT_CPU)",
        "os.memfd_create('x')",
        "os.chroot('.')",
    ],
)
def test_child_can_do_nothing_but_compute(tmp_path: Path, attempt: str) -> None:
    report = in_child(tmp_path, attempt)
    assert report.startswith(f"the compiler failed: {OSError(38, 'Function not implemented')!r}")


@pytest.mark.root
def test_child_has_no_files_without_libseccomp(tmp_path: Path) -> None:
    """But for what the kernel says of its descriptors."""
    attempt = "raise wasmtime.WasmtimeError(str(all(x.isdigit() for x in os.listdir('/'))))"
    without = (
        "import containerd_shimkit.linux.confinement as c; c.seccomp_available = lambda: False"
    )
    assert "does not compile: True" in in_child(tmp_path, attempt, without)


def test_child_has_no_descriptors_but_its_own(tmp_path: Path) -> None:
    report = in_child(tmp_path, "os.write(writable, b'x')")
    assert report.startswith("the compiler failed: OSError(9, 'Bad file descriptor')")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("signal.raise_signal(signal.SIGKILL)", "the compiler was killed by signal 9"),
        ("os.abort()", "the compiler was killed by signal 6"),
        ("raise MemoryError('all gone')", "the compiler failed: MemoryError('all gone')"),
        ("raise KeyboardInterrupt", "the compiler failed: KeyboardInterrupt()"),
        ("os._exit(3)", "the compiler ended with status 3"),
        ("raise wasmtime.WasmtimeError('a\\n\\n  b\\nc')", "does not compile: a; c"),
        ("raise wasmtime.WasmtimeError('x' * 100000)", "does not compile: xxx"),
        ("bytearray(9 << 30)", "the compiler failed: MemoryError()"),
    ],
)
def test_child_that_fails_is_told(tmp_path: Path, code: str, message: str) -> None:
    report = in_child(tmp_path, code)
    assert report.startswith(message)
    assert not list((tmp_path / "cache").glob("*.cwasm"))


def test_output_cannot_be_changed_by_the_child_afterwards(tmp_path: Path) -> None:
    """What was compiled is what is stored: a file of its own that nobody else has open."""
    with running_compiler(tmp_path / "cache") as compiler:
        descriptor = compile_file(compiler, write(tmp_path / "good.wasm", GOOD))
    status = os.fstat(descriptor)
    os.close(descriptor)
    assert stat.S_IMODE(status.st_mode) == 0o444
    assert status.st_uid == os.geteuid()


def test_what_is_hashed_is_what_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changing the file in between must not put foreign code under a good module's key."""
    path = write(tmp_path / "good.wasm", GOOD)
    compiled = []

    def change(data: bytes) -> int:
        write(path, b"")
        compiled.append(data)
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr("containerd_shimkit.compiling._compile_in_child", change)
    with open(path, "rb") as file:
        os.close(compile_cached(file.fileno(), CompiledModuleCache(tmp_path / "cache")))
    assert compiled == [GOOD]


# Several at once

SLOW_COMPILER = """
import os, sys
from pathlib import Path
from containerd_shimkit import compiling
from containerd_shimkit.wasm.cache import CompiledModuleCache

real = compiling._compile_in_child

def compile_in_child(data):
    os.write(int(sys.argv[3]), b"c")
    return real(data)

compiling._compile_in_child = compile_in_child
os.read(int(sys.argv[4]), 1)
data = Path(sys.argv[1]).read_bytes()
found = compiling.find_or_compile(data, CompiledModuleCache(Path(sys.argv[2])))
print(os.fstat(found.descriptor).st_ino, found.is_cached)
"""


def test_many_compilers_of_one_module_make_one_result(tmp_path: Path) -> None:
    """And compile it once: the others wait for the first."""
    path = write(tmp_path / "good.wasm", GOOD)
    compiled, compiles = os.pipe()
    waits, go = os.pipe()
    command = [sys.executable, "-c", SLOW_COMPILER, str(path), str(tmp_path / "cache")]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, str(compiles), str(waits)],
                    stdout=subprocess.PIPE,
                    text=True,
                    pass_fds=[compiles, waits],
                )
            )
            for _ in range(6)
        ]
        os.write(go, b"g" * len(processes))
        answers = {process.communicate(timeout=60)[0] for process in processes}
    for descriptor in (compiles, waits, go):
        os.close(descriptor)
    with open(compiled, "rb") as pipe:
        assert pipe.read() == b"c"
    assert len(answers) == 1
    assert answers.pop().endswith(" True\n")
    assert len(list((tmp_path / "cache").glob("*.cwasm"))) == 1


def test_compiler_killed_while_others_wait(tmp_path: Path) -> None:
    """Who waits for it compiles itself; nothing wrong is left."""
    path = write(tmp_path / "good.wasm", GOOD)
    hold = (
        "import sys\nfrom pathlib import Path\n"
        "from containerd_shimkit.wasm.cache import CompiledModuleCache, Label\n"
        "from containerd_shimkit.wasm.engine import COMPILER_FINGERPRINT as by\n"
        "key = Label.of(Path(sys.argv[1]).read_bytes(), by).key\n"
        "with CompiledModuleCache(Path(sys.argv[2])).compiling(key):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with (
        running_compiler(tmp_path / "cache") as compiler,
        subprocess.Popen(
            [sys.executable, "-c", hold, str(path), str(tmp_path / "cache")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder,
        ThreadPoolExecutor(1) as pool,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        waiting = pool.submit(compile_file, compiler, path)
        with pytest.raises(TimeoutError):
            waiting.result(0.2)
        holder.kill()
        os.close(waiting.result(60))
    assert len(list((tmp_path / "cache").glob("*.cwasm"))) == 1


def test_modules_that_are_loaded_are_in_use(host: GuestHost, tmp_path: Path) -> None:
    with running_compiler(tmp_path / "cache") as compiler:
        descriptor = compile_file(compiler, write(tmp_path / "good.wasm", GOOD))
        module = load_compiled(host.engine, descriptor, "good.wasm")
        os.close(descriptor)
    # The compiler, which had it open too, has ended.
    (entry,) = (tmp_path / "cache").glob("*.cwasm")
    assert is_in_use(entry)
    del module
    assert not is_in_use(entry)
