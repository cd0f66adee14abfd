"""Request bodies up to 100 MB, echoed by a guest: how fast, and whether the memory comes back.

Spin 1.x hands a body over in one piece, so that the guest has it twice while it answers, and
the server once. Flat is what is left when it has been answered, however many there were.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from pathlib import Path

from bench.machine import BenchError, Json, progress
from bench.memory import pss_bytes
from bench.node import SPIN, Node, Workload
from bench.probe import PROBE, import_probe_image

MEGABYTE = 1_000_000
SIZES = (1, 10, 100)  # megabytes
TIMEOUT = 60.0  # seconds


def measure_bodies(
    node: Node, workloads: Sequence[Workload], repeats: int, directory: Path
) -> Json:
    """Return the seconds of each request by size in megabytes, and the memory around them."""
    if SPIN not in workloads:
        return {}
    import_probe_image(node, directory)
    with node.running(PROBE) as container:
        pid = node.engine_pid(container.task_id)
        sizes = {}
        for size in SIZES:
            _echo(container.port, size)  # what a first one leaves: warm slots, larger buffers
            seconds, memory = [], [pss_bytes(pid)]
            for turn in range(repeats):
                progress(f"bodies of {size} MB {turn + 1}/{repeats}")
                seconds.append(_echo(container.port, size))
                memory.append(pss_bytes(pid))
            sizes[str(size)] = {"seconds": seconds, "pss_bytes": memory}
    return {"sizes": sizes}


def _echo(port: int, megabytes: int) -> float:
    """Send a body and get it back; return the seconds. Raises BenchError if it is another."""
    body = b"0123456789" * (megabytes * MEGABYTE // 10)
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("POST", "/echo", body)
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    elapsed = time.perf_counter() - began
    if response.status != 200 or answer != body:
        raise BenchError(f"{megabytes} MB came back as {response.status}, {len(answer)} bytes")
    return elapsed
