"""The test kit's own parts: bundles, clean processes, the stub engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from containerd_shimkit.engine import Engine
from containerd_shimkit.oci.bundle import Bundle
from containerd_shimkit.testing import (
    BundleBuilder,
    CleanProcess,
    CleanProcessError,
    StubEngine,
    in_clean_process,
    running_service,
)

# Bundles


def test_bundle_is_one_the_kit_reads(tmp_path: Path) -> None:
    builder = BundleBuilder(
        tmp_path / "b",
        task_id="web",
        uid=7,
        gid=8,
        additional_gids=(9,),
        env={"A": "b"},
        annotations={"io.kubernetes.cri.sandbox-id": "pod"},
        mounts=[{"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind"]}],
        resources={"memory": {"limit": 1 << 30}},
        files={"app/file": "text", "/bin": b"\0"},
    )
    bundle = Bundle.load(builder.write())
    spec = bundle.spec
    assert (spec.process.user.uid, spec.process.user.gid) == (7, 8)
    assert spec.process.environment["A"] == "b"
    assert spec.linux.cgroups_path == "/default/web"
    assert spec.linux.resources["memory"] == {"limit": 1 << 30}
    assert spec.mounts[-1].destination == "/data"
    assert bundle.group == "pod"
    assert (bundle.rootfs / "app/file").read_text() == "text"
    assert builder.rootfs_mounts == []


def test_bundle_with_layers_has_an_empty_rootfs(tmp_path: Path) -> None:
    builder = BundleBuilder(tmp_path / "b", overlay=True, files={"file": "text"})
    bundle = Bundle.load(builder.write())
    assert list(bundle.rootfs.iterdir()) == []
    [mount] = builder.rootfs_mounts
    assert mount.type == "overlay"
    assert (builder.layers / "layer" / "file").read_text() == "text"


def test_bundle_takes_any_change(tmp_path: Path) -> None:
    builder = BundleBuilder(tmp_path, host_network=True, changes={"hostname": 7})
    builder.write()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["hostname"] == 7
    assert "network" not in [entry["type"] for entry in config["linux"]["namespaces"]]


# Clean processes


def add(a: int, b: int) -> int:
    return a + b


async def add_later(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


def fail(path: Path) -> None:
    raise ValueError(f"not {path}")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def forget_a_child(path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    path.write_text(str(pid))


def test_clean_process_returns_the_result(clean_process: CleanProcess) -> None:
    assert clean_process.call(add, a=1, b=2) == 3
    assert clean_process.call(add_later, a=1, b=2) == 3


def test_clean_process_tells_the_exception(clean_process: CleanProcess, tmp_path: Path) -> None:
    with pytest.raises(CleanProcessError, match=f"ValueError: not {tmp_path}"):
        clean_process.call(fail, path=tmp_path)


def test_clean_process_survives_its_calls(clean_process: CleanProcess) -> None:
    with pytest.raises(CleanProcessError, match="ended with -9 and said nothing"):
        clean_process.call(die)
    assert clean_process.call(add, a=1, b=2) == 3


def test_clean_process_ends_what_is_left(clean_process: CleanProcess, tmp_path: Path) -> None:
    with pytest.raises(CleanProcessError, match="left running: "):
        clean_process.call(forget_a_child, path=tmp_path / "pid")
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


@pytest.mark.parametrize("value", [1, "text", None])
@in_clean_process
def test_clean_process_runs_whole_tests(tmp_path: Path, value: object) -> None:
    assert tmp_path.is_dir()
    assert value in (1, "text", None)
    threads = [line for line in Path("/proc/self/status").read_text().splitlines() if "Thr" in line]
    assert threads == ["Threads:\t1"]


# The stub engine


def test_stub_is_an_engine() -> None:
    engine: Engine = StubEngine()
    assert engine is not None


@pytest.mark.root
@in_clean_process
async def test_stub_serves_text(tmp_path: Path, namespace: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with running_service(namespace) as running:
        env = {"STUB_LISTEN": f"127.0.0.1:{port}", "STUB_TEXT": "hello"}
        await running.run(
            BundleBuilder(
                tmp_path / "c", task_id="c", namespace=namespace, env=env, host_network=True
            )
        )
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await reader.read()
            writer.close()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nhello")
        await running.kill("c", signal.SIGTERM)
        assert await running.wait("c") == 0
