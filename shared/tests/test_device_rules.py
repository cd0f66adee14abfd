"""The device rules of a container, on the cgroup version that this kernel has."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.linux.cgroups import open_cgroup
from containerd_shimkit.proto import task_pb2 as api
from containerd_shimkit.testing import BundleBuilder, in_clean_process, running_service

pytestmark = pytest.mark.root

DENY_ALL = {"allow": False, "access": "rwm"}
KMSG = {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}


def readable_in_cgroup_of(task_id: str, namespace: str, path: str) -> bool:
    """Whether a process in the container's cgroup can open a file of the host's."""
    cgroup = open_cgroup(f"/{namespace}/{task_id}", task_id)
    child = os.fork()
    if child == 0:
        try:
            cgroup.add(0)
            os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            os._exit(0)
        except PermissionError:
            os._exit(1)
        finally:
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1)
    return code == 0


@in_clean_process
async def test_device_rules_hold_and_follow_an_update(tmp_path: Path, namespace: str) -> None:
    def readable() -> dict[str, bool]:
        paths = ("/dev/null", "/dev/kmsg")
        return {path: readable_in_cgroup_of("c", namespace, path) for path in paths}

    async def update(*rules: dict[str, Any]) -> None:
        request = api.UpdateTaskRequest(id="c")
        request.resources.value = json.dumps({"devices": rules}).encode()
        await running.service.update(request)

    async with running_service(namespace) as running:
        resources = {"devices": [DENY_ALL]}
        bundle = BundleBuilder(
            tmp_path / "c", task_id="c", namespace=namespace, resources=resources
        )
        await running.run(bundle)
        assert readable() == {"/dev/null": True, "/dev/kmsg": False}
        await update(DENY_ALL, KMSG)
        assert readable() == {"/dev/null": True, "/dev/kmsg": True}
        await update(DENY_ALL)
        assert readable() == {"/dev/null": True, "/dev/kmsg": False}
