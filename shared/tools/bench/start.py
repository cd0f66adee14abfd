"""Seconds until a container serves, and of ``start``, the command that containerd executes.

The kinds take turns, so that load meets all alike.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from bench.machine import BenchError, Json, progress
from bench.node import Node, Workload
from containerd_shimkit.proto.task_pb2 import ShutdownRequest
from containerd_shimkit.rpc.client import Client

SERVICE = "containerd.task.v2.Task"
SHUTDOWN_SECONDS = 10.0

Prepare = Callable[[Workload], None]


def measure_start(node: Node, workloads: Sequence[Workload], runs: int) -> Json:
    """Return the seconds of every start, in lists named ``spin cold``, ``spin warm``, ``runc``."""
    kinds = [kind for workload in workloads for kind in _kinds(node, workload)]
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in kinds}
    for workload in workloads:  # from here on all files are in the page cache
        node.make_warm(workload)
    for turn in range(runs):
        progress(f"start {turn + 1}/{runs}")
        for name, workload, prepare in kinds if turn % 2 else reversed(kinds):
            prepare(workload)
            with node.running(workload) as container:
                seconds[name].append(container.seconds)
    return {"seconds": seconds}


def _kinds(node: Node, workload: Workload) -> list[tuple[str, Workload, Prepare]]:
    if not workload.is_ours:
        return [(workload.name, workload, node.make_warm)]
    return [
        (f"{workload.name} warm", workload, node.make_warm),
        (f"{workload.name} precompiled", workload, node.make_precompiled),
        (f"{workload.name} cold", workload, node.make_cold),
    ]


# The command


def measure_command(node: Node, workloads: Sequence[Workload], runs: int, directory: Path) -> Json:
    """Return the seconds of every ``start``, by workload; the zygote runs.

    directory: for bundles. Each shim that is started is shut down again.
    """
    configs = {}
    for workload in workloads:
        with node.running(workload) as container:
            bundle = node.containerd.bundle(container.task_id)
            configs[workload] = (bundle / "config.json").read_bytes()
    seconds: dict[str, list[float]] = {workload.name: [] for workload in workloads}
    for turn in range(runs):
        progress(f"command {turn + 1}/{runs}")
        for workload in workloads:
            elapsed = _run_start(node, workload, f"start-{turn}", configs[workload], directory)
            seconds[workload.name].append(elapsed)
    return {"seconds": seconds}


def _run_start(
    node: Node, workload: Workload, task_id: str, config: bytes, directory: Path
) -> float:
    """Run ``start`` in a new bundle as containerd 1.6 does; return the seconds it took."""
    bundle = directory / workload.name / task_id
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_bytes(config)
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)  # containerd reads it
    daemon = node.containerd
    environment = daemon.environment()
    program = shutil.which(workload.shim, path=environment["PATH"]) or workload.shim
    command = [
        program,
        *("-namespace", daemon.namespace, "-address", daemon.address),
        *("-publish-binary", "/usr/bin/containerd", "-id", f"{workload.name}-{task_id}", "start"),
    ]
    environment |= {"TTRPC_ADDRESS": f"{daemon.address}.ttrpc", "GOMAXPROCS": "2"}
    try:
        began = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=bundle,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SHUTDOWN_SECONDS,
        )
        elapsed = time.perf_counter() - began
        if done.returncode != 0:
            raise BenchError(f"{workload.shim} start failed: {done.stderr.decode().strip()}")
        asyncio.run(_shut_down(done.stdout.decode().strip(), task_id))
    finally:
        os.close(log)
        shutil.rmtree(bundle)
    return elapsed


async def _shut_down(address: str, task_id: str) -> None:
    """Have a shim without containers end."""
    client = await Client.connect(address, SHUTDOWN_SECONDS)
    try:
        request = ShutdownRequest(id=task_id, now=True)
        await client.call(SERVICE, "Shutdown", request, Empty, timeout=SHUTDOWN_SECONDS)
    except ConnectionError:
        pass  # runc's ends without an answer
    finally:
        await client.close()
