"""Modules of an image are never found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import package
if sys.argv[2] == "end":
    from containerd_shimkit.importing import end_imports
    end_imports()
import _sre  # part of the interpreter
for name in ("alone", "package.inner"):
    try:
        __import__(name)
    except ImportError:
        print("not found")
"""


@pytest.mark.parametrize(
    ("when", "output"), [("end", "not found\n" * 2), ("go on", "the image's code\n" * 2)]
)
def test_nothing_is_found_in_files(tmp_path: Path, when: str, output: str) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for path in (package / "inner.py", tmp_path / "alone.py"):
        path.write_text('print("the image\'s code")\n')
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path), when],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == output


def test_a_traceback_reads_no_files(tmp_path: Path) -> None:
    """There is a FIFO where a module's source would be; whoever opened it would wait."""
    os.mkfifo(tmp_path / "module.py")
    code = """
import os, sys, traceback
from containerd_shimkit.importing import end_imports
end_imports()
os.chdir(sys.argv[1])
try:
    exec(compile("1 / 0", "module.py", "exec"))
except ZeroDivisionError:
    print(traceback.format_exc())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert 'File "module.py", line 1' in done.stdout
    assert "ZeroDivisionError" in done.stdout
