"""The machine that is measured on: what it is, and what has to be there."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from containerd_shimkit.testing.containerd import SYSTEM_PATH

REPOSITORY = Path(__file__).resolve().parents[3]
BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static

Json = dict[str, Any]  # what goes into the file


class BenchError(Exception):
    """The measurement cannot be made; the message says what is missing or what failed."""


def describe_machine() -> Json:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu_model(),
        "kernel": platform.release(),
        "containerd": first_line("containerd", "--version"),
        "runc": first_line("runc", "--version"),
        "wrk": first_line("wrk", "--version"),
        "python": platform.python_version(),
        "wasmtime": metadata.version("wasmtime"),
        "revision": first_line("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"),
    }


def cpu_model() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return found[1] if found else platform.machine()


def first_line(*command: str) -> str:
    try:
        result = subprocess.run(
            command, env={"PATH": SYSTEM_PATH}, capture_output=True, text=True, timeout=10
        )
    except FileNotFoundError:
        return "not installed"
    return next(iter((result.stdout + result.stderr).splitlines()), "")


def installed(program: str) -> bool:
    return shutil.which(program, path=SYSTEM_PATH) is not None


def progress(text: str) -> None:
    """Show what is going on where a person watches; on a log it would be noise."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
