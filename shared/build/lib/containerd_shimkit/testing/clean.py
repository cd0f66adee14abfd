"""Tests that fork, in a process that may: pytest's own has threads as soon as xdist runs it.

A clean process has imported the kit and nothing else; it forks a child for each call, which so
starts in milliseconds. It is the subreaper of everything its children start: what a test leaves
running is killed, and the test fails.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import functools
import importlib.util
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 60.0
"""How long one call may take."""
_GRACE_SECONDS = 5.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <sys/prctl.h>


class CleanProcessError(AssertionError):
    """What a call raised; the message is the traceback of the child."""


class CleanProcess:
    """Runs functions, one at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def call(self, function: Callable[..., Any], /, **arguments: Any) -> Any:
        """Run the module-level ``function``, which may be async; return what it returned.

        Arguments and result are pickled. Raises CleanProcessError.
        """
        code = inspect.unwrap(function)
        request = {
            "file": inspect.getfile(code),
            "name": code.__qualname__,
            "arguments": base64.b64encode(pickle.dumps(arguments)).decode(),
        }
        answer = self._exchange(json.dumps(request))
        if "error" in answer:
            raise CleanProcessError(answer["error"])
        return pickle.loads(base64.b64decode(answer["value"]))

    def _exchange(self, request: str) -> dict[str, str]:
        if self._process is None:
            command = [sys.executable, "-c", f"from {__name__} import main; main()"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
            answer: dict[str, str] = json.loads(self._process.stdout.readline())
        except BaseException:  # a timeout of pytest's too: whatever runs in there has to end
            self.close()
            raise
        return answer

    def close(self) -> None:
        """End the process and its children."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def in_clean_process(function: Callable[..., Any]) -> Callable[..., None]:
    """Make a test, sync or async, run in the session's clean process.

    Its fixtures and parameters are made in pytest's process and passed on: paths and plain data.
    """

    @functools.wraps(function)
    def test(clean_process: CleanProcess, **arguments: Any) -> None:
        clean_process.call(function, **arguments)

    signature = inspect.signature(function)
    fixture = inspect.Parameter("clean_process", inspect.Parameter.KEYWORD_ONLY)
    parameters = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()
    ]
    test.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*parameters, fixture]
    )
    return test


# In the clean process


def main() -> None:
    """Answer calls, a line of JSON each, until stdin is closed."""
    import containerd_shimkit.shim
    import containerd_shimkit.testing.service  # noqa: F401 - imported once, for every child

    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # What a test prints belongs to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_serve_call(libc, json.loads(line))) + "\n")
        answers.flush()


def _serve_call(libc: ctypes.CDLL, request: dict[str, str]) -> dict[str, str]:
    # No pipe: what the child leaves running would keep that open.
    answer_file = os.memfd_create("answer")
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:
            _run(request, answer_file)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    with open(answer_file, "rb") as file:
        file.seek(0)
        data = file.read()
    left = _end_children()
    if not data:
        return {"error": f"the test's process ended with {code} and said nothing"}
    answer: dict[str, str] = json.loads(data)
    if left and "error" not in answer:
        return {"error": "left running: " + "; ".join(left)}
    return answer


def _run(request: dict[str, str], answer_file: int) -> None:
    """Call the function in this forked child and write the answer."""
    # No signal for a terminal's Ctrl-C: the parent sees to the end.
    os.setsid()
    signal.alarm(int(SECONDS) + 5)
    try:
        function = _load(request["file"], request["name"])
        arguments = pickle.loads(base64.b64decode(request["arguments"]))
        value = function(**arguments)
        if inspect.iscoroutine(value):
            value = asyncio.run(asyncio.wait_for(value, SECONDS))
        answer = {"value": base64.b64encode(pickle.dumps(value)).decode()}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    os.write(answer_file, json.dumps(answer).encode())


def _load(file: str, name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"clean_{Path(file).stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    function: Callable[..., Any] = inspect.unwrap(getattr(module, name))
    return function


def _end_children() -> list[str]:
    """Wait for the children this process inherited; return the command lines of those killed."""
    deadline = time.monotonic() + _GRACE_SECONDS
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return []
        if pid == 0:
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
    left = []
    for pid in _children():
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        left.append(f"{pid} " + command.replace(b"\0", b" ").decode(errors="replace").strip())
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in _children():
                os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)
    return left


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            columns = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(columns[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found
