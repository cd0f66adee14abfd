"""The pause container: a pod's first process, isolated by us, with or without an image."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.linux.constants import CLONE_NEWPID
from containerd_shimkit.linux.syscalls import setns
from containerd_shimkit.oci.bundle import CONTAINER_TYPE, SANDBOX_ID
from containerd_shimkit.testing import BundleBuilder, in_clean_process, running_service
from containerd_shimkit.testing.apps import eventually

pytestmark = pytest.mark.root

DEADLINE = 20.0
BUSYBOX = Path("/bin/busybox")


def pause(tmp_path: Path, namespace: str, **fields: Any) -> BundleBuilder:
    """The bundle of a pod's sandbox container; its image has no program unless a test adds one."""
    return BundleBuilder(
        tmp_path / "pod",
        task_id="pod",
        namespace=namespace,
        args=("/pause", "forever"),
        readonly=True,
        annotations={CONTAINER_TYPE: "sandbox", SANDBOX_ID: "pod"},
        **fields,
    )


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()


@in_clean_process
async def test_program_of_the_image_is_executed(tmp_path: Path, namespace: str) -> None:
    """Without an OCI runtime, and with what a program expects: streams, signals, environment."""
    script = "#!/busybox sh\necho $1 $NAME; trap 'exit 7' TERM; /busybox sleep 1000 & wait\n"
    bundle = pause(
        tmp_path,
        namespace,
        env={"NAME": "value"},
        files={"pause": script, "busybox": BUSYBOX.read_bytes()},
    )
    bundle.write()
    for name in ("pause", "busybox"):
        (bundle.rootfs / name).chmod(0o755)
    async with running_service(namespace) as running:
        pid = await running.run(bundle, stdout=f"file://{tmp_path}/out")
        eventually(lambda: (tmp_path / "out").read_text() == "forever value\n", "it has started")
        assert command_of(pid) == "/busybox sh /pause forever"
        descriptors = {int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        assert descriptors == {0, 1, 2, 10}  # 10 is the shell's script
        assert not ignored_signals(pid) & {signal.SIGPIPE, signal.SIGXFSZ}
        await running.kill("pod", signal.SIGTERM)
        assert await asyncio.wait_for(running.wait("pod"), DEADLINE) == 7


def ignored_signals(pid: int) -> set[int]:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition("SigIgn:")[2].split()[0], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


@in_clean_process
async def test_pod_without_an_image_waits(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        pid = await running.run(pause(tmp_path, namespace))
        assert f"pause -namespace {namespace} -id pod" in command_of(pid)
        assert Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()


@pytest.mark.parametrize(("number", "status"), [(15, 0), (2, 0), (9, 137), (1, None)])
@in_clean_process
async def test_signal_ends_pause(
    tmp_path: Path, namespace: str, number: int, status: int | None
) -> None:
    """SIGTERM and SIGINT do, as Kubernetes' own pause has it; others but SIGKILL are ignored."""
    async with running_service(namespace) as running:
        await running.run(pause(tmp_path, namespace))
        await running.kill("pod", number)
        if status is None:
            await running.kill("pod", signal.SIGTERM)
        assert await asyncio.wait_for(running.wait("pod"), DEADLINE) == (status or 0)


@in_clean_process
async def test_orphans_of_a_shared_pid_namespace_are_reaped(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        pid = await running.run(pause(tmp_path, namespace))
        reader, writer = os.pipe()
        leave_an_orphan(pid, until_closed=reader, in_child=writer)
        eventually(lambda: len(children_of(pid)) == 1, "the orphan has come to the pause container")
        os.close(writer)
        eventually(lambda: not children_of(pid), "it was reaped")
        os.close(reader)


def leave_an_orphan(pid: int, *, until_closed: int, in_child: int) -> None:
    """Start a process in the pid namespace of ``pid`` whose parent ends."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            setns(os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY), CLONE_NEWPID)
            parent = os.fork()
            if parent == 0:
                if os.fork() == 0:
                    os.close(in_child)
                    os.read(until_closed, 1)
                os._exit(0)
            code = os.waitpid(parent, 0)[1]
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
