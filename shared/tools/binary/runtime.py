"""The runtime, which all shims share: interpreter, standard library, wheels, shared libraries.

bin/python3.14
lib/                       the loader, the C library and what else is linked to
lib/python3.14/            bytecode and extension modules
lib/python3.14/site-packages/
licenses/                  of what comes from Debian
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from binary.archive import compress, pack
from binary.interpreter import Interpreter
from binary.places import BUILD, MACHINE, REPOSITORY, TOOLS, BuildError, digest_of, run

LOADERS: Final = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}

# Of the standard library: for people, for building, for other systems, or for tests.
_LEFT_OUT: Final = (
    *("test", "tests", "idle_test", "idlelib", "tkinter", "turtle.py", "turtledemo", "ensurepip"),
    *("lib2to3", "pydoc_data", "pydoc.py", "distutils", "venv", "_pyrepl", "curses", "unittest"),
    *("doctest.py", "pdb.py", "dbm", "xmlrpc", "wsgiref", "msilib", "_ios_support.py"),
    *("_android_support.py", "_apple_support.py", "antigravity.py", "this.py", "__phello__"),
    *("__pycache__", "site-packages", "dist-packages", "config-*", "LICENSE*", "*.a", "*.pyi"),
    *("_sysconfigdata_*", "_test*.so", "_xx*.so", "xx*.so", "_ctypes_test*.so", "_tkinter*.so"),
    *("_dbm*.so", "_gdbm*.so", "_curses*.so", "readline*.so", "nis*.so"),
)
_LEFT_OUT_OF_WHEELS: Final = (
    *("__pycache__", "bin", "include", "*.pyi", "*.pyx", "*.pxd", "*.c", "*.h", "*.proto"),
    *("RECORD", "INSTALLER", "REQUESTED", "WHEEL", "top_level.txt", "entry_points.txt", "tests"),
)


# What one shim alone needs: Kafka and NATS. It travels with that shim.
OWN_WHEELS: Final = {
    "slight": frozenset(
        (
            "aiokafka",
            "async-timeout",
            "cffi",
            "cramjam",
            "nats-py",
            "packaging",
            "pycparser",
            "pynacl",
        )
    )
}


class Runtime:
    """A runtime, packed. ``name`` is that of the directory it is unpacked to."""

    def __init__(self, packed: bytes, size: int, digest: str, tree: Path) -> None:
        self.packed = packed
        self.size = size
        self.name = f"runtime-{digest}"
        self.tree = tree


def build_runtime(interpreter: Interpreter) -> Runtime:
    """Build the runtime, or take the one that was built of the same things."""
    lock = REPOSITORY / "requirements.lock"
    seccomp = library_path("libseccomp.so.2")
    system = [seccomp, library_path("libc.so.6"), library_path("libgcc_s.so.1")]
    tools = [TOOLS / "binary" / name for name in ("runtime.py", "bytecode.py", "archive.py")]
    digest = digest_of(interpreter.digest, MACHINE, [lock, *system, *tools])
    tree = BUILD / f"runtime-{digest}"
    if not tree.is_dir():
        stage = BUILD / f"runtime-{digest}.new-{os.getpid()}"
        shutil.rmtree(stage, ignore_errors=True)
        try:
            _fill(stage, interpreter, seccomp)
            stage.rename(tree)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    archive = pack(tree)
    packed = compress(archive, BUILD / f"runtime-{digest}.zst")
    return Runtime(packed, len(archive), digest_of(archive), tree)


def library_path(name: str) -> Path:
    """Return where the compiler finds a shared library. Raises BuildError."""
    path = Path(run(["gcc", f"-print-file-name={name}"]).strip())
    if not path.is_absolute():
        raise BuildError(f"{name} is not on this machine")
    return path.resolve()


def _fill(stage: Path, interpreter: Interpreter, seccomp: Path) -> None:
    python = stage / "bin" / f"python{interpreter.version}"
    library = stage / "lib" / f"python{interpreter.version}"
    python.parent.mkdir(parents=True)
    shutil.copy(interpreter.executable, python)
    for directory in interpreter.libraries:
        ignore = shutil.ignore_patterns(*_LEFT_OUT)
        shutil.copytree(directory, library, ignore=ignore, dirs_exist_ok=True)
    others = frozenset[str]().union(*OWN_WHEELS.values())
    _install_wheels(library / "site-packages", interpreter, lambda name: name not in others)
    compile_tree(library, interpreter)
    programs = [python, *(path for path in library.rglob("*.so*") if path.is_file())]
    _bundle_libraries(stage, [*programs, seccomp], interpreter)
    for path in [*programs, *(stage / "lib").glob("*.so*")]:
        _strip(path)


def compile_tree(directory: Path, interpreter: Interpreter) -> None:
    """Turn the sources below ``directory`` into the interpreter's bytecode."""
    script = TOOLS / "binary" / "bytecode.py"
    # What the process itself imports it compiles, too, every time: whether a string is marked as
    # interned depends on it.
    no_cache = ["-B", "-X", f"pycache_prefix={directory}/none"]
    run([interpreter.executable, "-IS", *no_cache, script, directory], PYTHONHASHSEED="0")


def own_wheels(shim: str, interpreter: Interpreter) -> Path | None:
    """Return a directory with the wheels of ``OWN_WHEELS``, None if the shim has none."""
    names = OWN_WHEELS.get(shim)
    if names is None:
        return None
    tools = [TOOLS / "binary" / "runtime.py"]
    digest = digest_of(interpreter.digest, MACHINE, [REPOSITORY / "requirements.lock", *tools])
    directory = BUILD / f"{shim}-wheels-{digest}"
    if not directory.is_dir():
        stage = BUILD / f"{shim}-wheels-{digest}.new-{os.getpid()}"
        shutil.rmtree(stage, ignore_errors=True)
        try:
            _install_wheels(stage, interpreter, names.__contains__)
            for path in stage.rglob("*.so*"):
                _strip(path)
            stage.rename(directory)
        except OSError:  # somebody else was quicker
            if not directory.is_dir():
                raise
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return directory


def _install_wheels(
    directory: Path, interpreter: Interpreter, wanted: Callable[[str], bool]
) -> None:
    """Install those of ``requirements.lock`` whose names are wanted."""
    entries = re.split(r"^(?=[a-z0-9])", (REPOSITORY / "requirements.lock").read_text(), flags=re.M)
    chosen = [entry for entry in entries if "==" in entry and wanted(entry.partition("==")[0])]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--require-hashes", "--only-binary", ":all:", "--target", str(directory)]
    command += ["--python-version", interpreter.version, "--implementation", "cp"]
    with tempfile.NamedTemporaryFile("w", suffix=".lock") as lock:
        lock.write("".join(chosen))
        lock.flush()
        done = subprocess.run([*command, "--requirement", lock.name])
    if done.returncode:
        raise BuildError("pip could not install the wheels of requirements.lock")
    for pattern in _LEFT_OUT_OF_WHEELS:
        for path in list(directory.rglob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _bundle_libraries(stage: Path, programs: list[Path], interpreter: Interpreter) -> None:
    """Copy the loader and all that the programs are linked to, and their licenses."""
    found = {LOADERS[MACHINE]: library_path(LOADERS[MACHINE])}
    found["libseccomp.so.2"] = programs[-1]
    for program in programs:
        for line in run(["ldd", program]).splitlines():
            name, arrow, rest = line.strip().partition(" => ")
            path = Path(rest.split(" (")[0])
            if arrow and path.is_absolute() and not path.is_relative_to(stage):
                found[Path(name).name] = path
    for name, path in sorted(found.items()):
        shutil.copy(path.resolve(), stage / "lib" / name)
        (stage / "lib" / name).chmod(0o755)
    licenses = stage / "licenses"
    licenses.mkdir()
    for path in interpreter.licenses:
        shutil.copy(path, licenses / "python")
    for package in sorted({package for path in found.values() if (package := _package_of(path))}):
        shutil.copy(Path("/usr/share/doc", package, "copyright"), licenses / package)


def _package_of(path: Path) -> str | None:
    """Return the Debian package of a file, if it has a copyright to go with it."""
    for candidate in (path.resolve(), path, Path("/", *path.resolve().parts[2:])):
        try:
            owner = run(["dpkg-query", "--search", str(candidate)]).split(":")[0]
        except BuildError:
            continue
        if Path("/usr/share/doc", owner, "copyright").exists():
            return owner
    return None


def _strip(path: Path) -> None:
    """Remove symbols nobody needs. A file that strip warns of stays as it is."""
    stripped = path.with_name(f"{path.name}.stripped")
    command = ["strip", "--strip-unneeded", "-o", str(stripped), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0 and not done.stderr:
        stripped.chmod(path.stat().st_mode & 0o777)
        stripped.replace(path)
    stripped.unlink(missing_ok=True)
