"""Isolation as the kernel shows it, of containers that a Task service runs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import select
import signal
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit import compiling
from containerd_shimkit.certificates import BUNDLES
from containerd_shimkit.errors import ShimError
from containerd_shimkit.linux import confinement, seccomp
from containerd_shimkit.linux.capabilities import plan_sets
from containerd_shimkit.linux.cgroups import open_cgroup
from containerd_shimkit.testing import BundleBuilder, in_clean_process, running_service

pytestmark = pytest.mark.root

NAMESPACES = ("pid", "ipc", "uts", "mnt", "net", "cgroup")
WASM = b"\0asm\x01\0\0\0"
DEADLINE = 20.0


def builder(tmp_path: Path, namespace: str, task_id: str = "c", **fields: Any) -> BundleBuilder:
    return BundleBuilder(tmp_path / task_id, task_id=task_id, namespace=namespace, **fields)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def namespaces_of(pid: int | str) -> dict[str, str]:
    return {name: str(Path(f"/proc/{pid}/ns/{name}").readlink()) for name in NAMESPACES}


def descriptors_of(pid: int) -> dict[int, str]:
    return {int(fd.name): str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}


def children_of(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            columns = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(columns[1]) == pid:
            found.add(int(stat.parent.name))
    return found


def read_report(file: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(file.read_text().splitlines()[-1])
    return report


# Processes


@in_clean_process
async def test_init_is_process_1_of_its_namespaces(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        pid = await running.run(builder(tmp_path, namespace))
        assert status_of(pid)["NSpid"].split() == [str(pid), "1"]
        mine, theirs = namespaces_of("self"), namespaces_of(pid)
        assert {kind for kind in NAMESPACES if mine[kind] == theirs[kind]} == {"cgroup"}
        assert os.getsid(pid) == pid


@in_clean_process
async def test_namespaces_of_another_container_are_joined(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        pause = await running.run(builder(tmp_path, namespace, "pause"))
        shared = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}
        paths = {kind: f"/proc/{pause}/ns/{name}" for kind, name in shared.items()}
        app = builder(tmp_path, namespace, "app", namespaces={"mount": None, **paths})
        pid = await running.run(app)
        first, second = namespaces_of(pause), namespaces_of(pid)
        assert {name for name in NAMESPACES if first[name] != second[name]} == {"mnt"}
        assert status_of(pid)["NSpid"].split()[1] != "1"
        # The death of the pod's first process ends its pid namespace, and so the app.
        await running.kill("pause")
        assert await asyncio.wait_for(running.wait("app"), DEADLINE) == 137


@in_clean_process
async def test_stage_is_gone_after_start(tmp_path: Path, namespace: str) -> None:
    """Create does not wait for its end."""
    async with running_service(namespace) as running:
        pid = await running.run(builder(tmp_path, namespace))
        assert children_of(os.getpid()) == {pid}
        assert children_of(pid) == set()
        assert status_of(pid)["PPid"] == str(os.getpid())


@in_clean_process
async def test_init_has_its_own_descriptors_only(tmp_path: Path, namespace: str) -> None:
    leak = os.open("/etc", os.O_RDONLY)
    os.set_inheritable(leak, True)
    os.dup2(leak, 77)
    async with running_service(namespace) as running:
        first = await running.create(builder(tmp_path, namespace, "first"))
        pid = await running.create(builder(tmp_path, namespace))
        for created in (first, pid):
            found = descriptors_of(created)
            assert {found.pop(fd) for fd in (0, 1, 2)} == {"/dev/null"}
            # The node's certificates, where it has any, the image, and the socket to the shim.
            files = {link for link in found.values() if not link.startswith("socket:")}
            assert files <= {"/", *map(os.path.realpath, BUNDLES)}
            assert len(found) - len(files) == 1
        await running.start("c")
        links = set(descriptors_of(pid).values()) - files
        kinds = {link.partition(":")[0] for link in links}
        # The loop's own: epoll, eventfd, the pair that signals wake it by.
        assert kinds <= {"/dev/null", "socket", "anon_inode", "pipe"}, descriptors_of(pid)


@in_clean_process
async def test_environment_is_the_containers(tmp_path: Path, namespace: str) -> None:
    os.environ["SECRET_OF_CONTAINERD"] = "s3cret"
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace, env={"STUB_REPORT": "1", "GREETING": "a=b"})
        await running.run(bundle, stdout=f"file://{tmp_path}/out")
        report = read_report(tmp_path / "out")
    assert report["environ"] == {}
    assert report["env"] == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "STUB_REPORT": "1",
        "GREETING": "a=b",
    }


@in_clean_process
async def test_death_of_the_shim_ends_the_init(tmp_path: Path, namespace: str) -> None:
    """Before Start and after, whatever the engine is doing."""
    cases = {"created": {}, "running": {}, "busy": {"STUB_HANG": "serve"}}
    reader, writer = os.pipe()
    shim = os.fork()
    if shim == 0:
        try:
            asyncio.events._set_running_loop(None)
            asyncio.run(be_a_shim(tmp_path, namespace, cases, writer))
        finally:
            os._exit(1)
    os.close(writer)
    assert select.select([reader], [], [], DEADLINE)[0]
    pids = json.loads(os.read(reader, 4096))
    pidfds = [os.pidfd_open(pid) for pid in pids]
    os.kill(shim, signal.SIGKILL)
    os.waitpid(shim, 0)
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], DEADLINE)[0], "the init lives on"
    for task_id in cases:
        open_cgroup(f"/{namespace}/{task_id}", task_id).delete(timeout=DEADLINE)


async def be_a_shim(
    tmp_path: Path, namespace: str, cases: dict[str, dict[str, str]], writer: int
) -> None:
    async with running_service(namespace) as running:
        pids = []
        for task_id, env in cases.items():
            bundle = builder(tmp_path, namespace, task_id, env=env)
            pids.append(await running.create(bundle))
            if task_id == "running":
                await running.start(task_id)
        starting = asyncio.create_task(running.start("busy"))
        await asyncio.sleep(0)
        os.write(writer, json.dumps(pids).encode())
        await starting


# What the process may do


@in_clean_process
async def test_user_and_rights(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        names = ("CAP_NET_BIND_SERVICE", "CAP_KILL")
        bundle = builder(
            tmp_path,
            namespace,
            uid=1000,
            gid=1001,
            additional_gids=(5, 1002),
            capabilities=names,
            rlimits={"RLIMIT_NOFILE": (123, 456)},
        )
        pid = await running.run(bundle)
        status = status_of(pid)
        assert status["Uid"].split() == ["1000"] * 4
        assert status["Gid"].split() == ["1001"] * 4
        assert status["Groups"].split() == ["5", "1002"]
        assert status["NoNewPrivs"] == "1"
        bounding = {name: int(status[name], 16) for name in ("CapBnd", "CapInh", "CapAmb")}
        assert bounding == {"CapBnd": 1 << 10 | 1 << 5, "CapInh": 0, "CapAmb": 0}
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"^Max open files +123 +456 ", limits, re.M)


@in_clean_process
async def test_root_keeps_what_it_is_given_and_no_more(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        pid = await running.run(builder(tmp_path, namespace, capabilities=("CAP_CHOWN",)))
        status = status_of(pid)
        assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {1}
        assert plan_sets({"bounding": ("CAP_CHOWN",)})[1] == []


@in_clean_process
async def test_missing_libseccomp_is_told_once_to_the_node_and_to_each_container(
    tmp_path: Path, namespace: str
) -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("containerd_shimkit.task").addHandler(handler)
    vars(seccomp)["pyseccomp"] = None
    message = "the seccomp profile is not applied: this node has no libseccomp"
    async with running_service(namespace) as running:
        for task_id, profile in (("a", True), ("b", True), ("none", False)):
            bundle = builder(tmp_path, namespace, task_id)
            if profile:
                section = bundle.config()["linux"]
                section["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
                bundle.changes = {"linux": section}
            stderr = tmp_path / f"{task_id}.err"
            pid = await running.run(bundle, stderr=f"file://{stderr}")
            assert status_of(pid)["Seccomp"] == "0"
            assert stderr.read_text().count(message) == int(profile)
    assert lines == [message]


@in_clean_process
async def test_privileges_are_kept_if_so_configured(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        pid = await running.run(builder(tmp_path, namespace, no_new_privileges=False))
        assert status_of(pid)["NoNewPrivs"] == "0"


@in_clean_process
async def test_what_the_process_sees(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        bundle = builder(
            tmp_path,
            namespace,
            env={"STUB_REPORT": "1"},
            args=("/spin.toml", "x"),
            cwd="/app",
            hostname="pod-1",
            files={"/app/file": "text"},
            overlay=True,
            resources={"memory": {"limit": 256 << 20}},
        )
        await running.run(bundle, stdout=f"file://{tmp_path}/out")
        report = read_report(tmp_path / "out")
    assert report["pid"] == 1
    assert report["root"] == ["app", "dev", "proc", "run", "sys"]
    assert (report["cwd"], report["hostname"]) == ("/app", "pod-1")
    assert report["args"] == ["/spin.toml", "x"]
    assert report["memory_limit_bytes"] == 256 << 20


@in_clean_process
async def test_missing_working_directory_is_made(tmp_path: Path, namespace: str) -> None:
    """As runc does."""
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace, cwd="/new/dir", overlay=True)
        pid = await running.run(bundle)
        assert str(Path(f"/proc/{pid}/cwd").readlink()) == "/new/dir"


@in_clean_process
async def test_it_is_in_its_cgroup_from_before_it_serves(tmp_path: Path, namespace: str) -> None:
    async with running_service(namespace) as running:
        pid = await running.create(builder(tmp_path, namespace))
        cgroup = open_cgroup(f"/{namespace}/c", "c")
        assert cgroup.pids() == [pid]
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        paths = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}
        for name in cgroup.directories:
            matching = [
                p for key, p in paths.items() if name in key.replace("name=", "").split(",")
            ]
            assert matching == [f"/{namespace}/c"], (name, paths)


# Mounts


@pytest.mark.parametrize("overlay", [False, True], ids=["directory", "overlay"])
@in_clean_process
async def test_host_sees_no_mount(tmp_path: Path, namespace: str, overlay: bool) -> None:
    async with running_service(namespace) as running:
        (tmp_path / "volume").mkdir()
        volume = {
            "destination": "/data",
            "type": "bind",
            "source": str(tmp_path / "volume"),
            "options": ["rbind", "rw"],
        }
        bundle = builder(tmp_path, namespace, overlay=overlay, mounts=[volume])
        pid = await running.run(bundle)
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
        inside = Path(f"/proc/{pid}/mountinfo").read_text()
        points = [line.split(" ")[4] for line in inside.splitlines()]
        assert {"/", "/data", "/proc", "/dev", "/sys"} <= set(points)
        # Of the host's tree nothing is left but what was asked for.
        assert not [point for point in points if point.startswith(("/tmp", "/home", "/var"))]
        await running.remove("c")
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
        if overlay:
            assert list(bundle.rootfs.iterdir()) == []


# Output


@in_clean_process
async def test_output_reaches_the_fifos_and_ends(tmp_path: Path, namespace: str) -> None:
    readers = {}
    for name in ("stdout", "stderr"):
        os.mkfifo(tmp_path / name)
        readers[name] = os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK)
    async with running_service(namespace) as running:
        bundle = builder(
            tmp_path,
            namespace,
            env={"STUB_STDOUT": "to stdout", "STUB_STDERR": "to stderr", "STUB_EXIT": "0"},
        )
        await running.run(bundle, **{name: str(tmp_path / name) for name in readers})
        assert await asyncio.wait_for(running.wait("c"), DEADLINE) == 0
        # The task is not deleted yet, and nobody holds them any more.
        for name, reader in readers.items():
            assert read_to_end(reader) == f"to {name}".encode()


def read_to_end(reader: int) -> bytes:
    data = b""
    while True:
        assert select.select([reader], [], [], DEADLINE)[0], "no end of file"
        chunk = os.read(reader, 4096)
        if not chunk:
            return data
        data += chunk


@in_clean_process
async def test_output_without_a_reader_stops_nothing(tmp_path: Path, namespace: str) -> None:
    os.mkfifo(tmp_path / "out")
    async with running_service(namespace) as running:
        bundle = builder(tmp_path, namespace, env={"STUB_STDOUT": "x" * 100_000, "STUB_EXIT": "0"})
        await running.run(bundle, stdout=str(tmp_path / "out"))
        assert await asyncio.wait_for(running.wait("c"), DEADLINE) == 0


# Compiling


@in_clean_process
async def test_compiler_is_outside_of_the_container(tmp_path: Path, namespace: str) -> None:
    os.environ["CONTAINERD_WASM_SHIMS_CACHE"] = str(tmp_path / "cache")
    confine = confinement.confine

    def spy() -> None:
        seen = {"pid": os.getpid(), "namespaces": namespaces_of("self")}
        seen["cgroup"] = Path("/proc/self/cgroup").read_text()
        (tmp_path / "compiler").write_text(json.dumps(seen))
        confine()

    compiling.confine = spy  # type: ignore[attr-defined]
    async with running_service(namespace) as running:
        bundle = builder(
            tmp_path, namespace, env={"STUB_COMPILE": "/app.wasm"}, files={"app.wasm": WASM}
        )
        pid = await running.create(bundle)
        seen = json.loads((tmp_path / "compiler").read_text())
        assert seen["namespaces"]["pid"] == namespaces_of("self")["pid"]
        assert seen["namespaces"]["mnt"] == namespaces_of("self")["mnt"]
        assert seen["cgroup"] == Path("/proc/self/cgroup").read_text()
        assert seen["cgroup"] != Path(f"/proc/{pid}/cgroup").read_text()
        assert not Path(f"/proc/{seen['pid']}").exists()
        # The container sees nothing of the cache.
        assert (tmp_path / "cache").is_dir()
        assert "cache" not in Path(f"/proc/{pid}/mountinfo").read_text()


@in_clean_process
async def test_module_that_does_not_compile(tmp_path: Path, namespace: str) -> None:
    os.environ["CONTAINERD_WASM_SHIMS_CACHE"] = str(tmp_path / "cache")
    async with running_service(namespace) as running:
        bundle = builder(
            tmp_path, namespace, env={"STUB_COMPILE": "/app.wasm"}, files={"app.wasm": WASM + b"x"}
        )
        await running.create(bundle)
        with pytest.raises(Exception, match=r"/app\.wasm: does not compile: "):
            await running.start("c")
        assert await asyncio.wait_for(running.wait("c"), DEADLINE) == 65


@pytest.mark.parametrize("step", ["prepare", "serve"])
@in_clean_process
async def test_termination_log_has_the_reason_of_a_failed_start(
    tmp_path: Path, namespace: str, step: str
) -> None:
    """Kubernetes shows what a container leaves at /dev/termination-log."""
    message = tmp_path / "message"
    message.touch()
    mount = {
        "destination": "/dev/termination-log",
        "type": "bind",
        "source": str(message),
        "options": ["rbind", "rw"],
    }
    async with running_service(namespace) as running:
        env = {"STUB_FAIL": step, "STUB_TEXT": "the reason"}
        bundle = builder(tmp_path, namespace, mounts=[mount], env=env)
        await running.create(bundle)
        with pytest.raises(ShimError, match="the reason"):
            await running.start("c")
        assert message.read_text() == "the reason"


@in_clean_process
async def test_engine_is_not_taken_apart_when_it_ends(tmp_path: Path, namespace: str) -> None:
    """What that may do, as wasmtime has to unmap and to join, is not the app's exit code."""
    async with running_service(namespace) as running:
        await running.run(builder(tmp_path, namespace, env={"STUB_DIE": "end"}))
        await running.kill("c", signal.SIGTERM)
        assert await asyncio.wait_for(running.wait("c"), DEADLINE) == 0
