"""Shared libraries that files need, found in directories that we name."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from containerd_shimkit.linux.libraries import (
    Dynamic,
    LibraryError,
    load_needed,
    loaded_libraries,
    read_dynamic,
)
from containerd_shimkit.testing import in_clean_process


def build(directory: Path, name: str, *options: str, code: str = "") -> Path:
    """Build a shared library of the given soname."""
    directory.mkdir(exist_ok=True)
    command = ["gcc", "-shared", "-fPIC", "-nostdlib", "-x", "c", "-", "-o", str(directory / name)]
    options = (f"-Wl,-soname,{name}", f"-L{directory}", "-Wl,--no-as-needed", *options)
    subprocess.run([*command, *options], input=code.encode(), check=True)
    return directory / name


def make_chain(tmp_path: Path, *options: str) -> Path:
    """Build a library that needs one that needs another; return the first."""
    libraries = tmp_path / "libs"
    build(libraries, "libkit_c.so", code="int kit_c(void) { return 41; }")
    code = "int kit_c(void); int kit_b(void) { return kit_c() + 1; }"
    build(libraries, "libkit_b.so", "-lkit_c", code=code)
    code = "int kit_b(void); int kit_a(void) { return kit_b(); }"
    return build(tmp_path / "own", "libkit_a.so", f"-L{libraries}", "-lkit_b", *options, code=code)


def test_what_a_file_says(tmp_path: Path) -> None:
    options = ("-Wl,--enable-new-dtags", "-Wl,-rpath,$ORIGIN/../x:/y", "-l:libc.so.6")
    path = build(tmp_path, "libkit.so", *options)
    needed = ("libc.so.6",)
    assert read_dynamic(path) == Dynamic("libkit.so", needed, (f"{tmp_path}/../x", "/y"))


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" * 20])
def test_what_is_no_library(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.so"
    path.write_bytes(data)
    with pytest.raises(LibraryError, match=r"^x\.so is no shared object$"):
        read_dynamic(path)


def test_the_interpreters_own_are_known() -> None:
    assert "libc.so.6" in loaded_libraries()


@pytest.mark.parametrize("rpath", [False, True])
@in_clean_process
def test_libraries_of_libraries(tmp_path: Path, rpath: bool) -> None:
    """From the file's own search path, which is its libraries', too, or from where we say."""
    options = ("-Wl,-rpath,$ORIGIN/../libs",) if rpath else ()
    path = make_chain(tmp_path, *options)
    load_needed(str(path), [] if rpath else [f"{tmp_path}/libs"], lambda _: True)
    assert ctypes.CDLL(str(path)).kit_a() == 42


@in_clean_process
def test_what_is_elsewhere_is_not_loaded(tmp_path: Path) -> None:
    path = make_chain(tmp_path, "-Wl,-rpath,$ORIGIN/../libs")
    with pytest.raises(LibraryError, match=r"^libkit_a\.so needs libkit_b\.so, which is not here$"):
        load_needed(str(path), [], lambda place: "/../" not in place)
    assert "libkit_b.so" not in loaded_libraries()


@in_clean_process
def test_name_of_the_file_has_to_be_the_librarys(tmp_path: Path) -> None:
    """Else the loader would not know it again, and look for it."""
    path = make_chain(tmp_path)
    library = tmp_path / "libs/libkit_b.so"
    library.write_bytes(library.read_bytes().replace(b"libkit_b.so", b"libkit_x.so"))
    with pytest.raises(LibraryError, match=r"needs libkit_b\.so, which is not here"):
        load_needed(str(path), [f"{tmp_path}/libs"], lambda _: True)
