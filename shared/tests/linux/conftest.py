"""Helpers for tests that change a process in ways no test runner survives."""

from __future__ import annotations

import json
import os
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.linux.cgroups import Cgroup, open_cgroup
from containerd_shimkit.linux.cgroups.base import ROOT

InChild = Callable[[Callable[[], object]], Any]


@pytest.fixture
def in_child() -> InChild:
    """Run a function in a forked child; return what it returned, by way of JSON."""

    def run(function: Callable[[], object]) -> Any:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                answer = {"value": function()}
            except BaseException:
                answer = {"error": traceback.format_exc()}
            finally:
                os.write(write, json.dumps(answer).encode())
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as file:
            answer = json.loads(file.read() or b'{"error": "the child said nothing"}')
        os.waitpid(pid, 0)
        if "error" in answer:
            pytest.fail(answer["error"])
        return answer["value"]

    return run


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    """A cgroup of this host that does not exist yet, and does not afterwards."""
    yield from temporary(open_cgroup(f"/shimkit-test-{uuid.uuid4().hex}", "test"))


@pytest.fixture
def unified() -> Iterator[Cgroup]:
    """The same on version 2, on a hybrid host too; there it has no controllers."""
    root = next(
        (r for r in (f"{ROOT}/unified", ROOT) if Path(r, "cgroup.controllers").exists()), ""
    )
    if not root:
        pytest.skip("no cgroup2 is mounted")
    path = f"/shimkit-test-{uuid.uuid4().hex}"
    yield from temporary(open_cgroup(path, "test", root=root, version=2))


def temporary(found: Cgroup) -> Iterator[Cgroup]:
    yield found
    found.kill_all()
    found.delete()
    for directory in found.directories.values():
        try:
            directory.parent.rmdir()
        except OSError:
            continue
