"""Many pods at the same moment, over CRI as kubelet makes them: seconds until all have answered.

Clients of their own, such as ``ctr``, would take more of two cores than the shims do; over CRI the
calls come from threads of this process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.machine import BenchError, Json, progress
from bench.node import START_TIMEOUT, Workload, answers_200, free_port
from containerd_shimkit.testing.containerd import Containerd
from containerd_shimkit.testing.cri import NAMESPACE, Cri, Pod

POLL_INTERVAL = 0.01  # seconds: there are as many that ask as there are pods


def measure_pods(
    daemon: Containerd,
    workloads: Sequence[Workload],
    archives: Sequence[Path],
    count: int,
    runs: int,
    directory: Path,
) -> Json:
    """Return, by workload, the seconds until all of ``count`` pods serve, and until all are gone.

    daemon: runs, with the plugin for pods. archives: of the workloads' images.
    """
    results: dict[str, list[Json]] = {workload.name: [] for workload in workloads}
    with Cri(daemon, directory) as cri:
        cri.import_busybox()
        for archive, workload in zip(archives, workloads, strict=True):
            daemon.import_image(archive, NAMESPACE)
            cri.wait_for_image(workload.image)
            with cri.leaving_nothing():
                run_burst(cri, workload, 1)  # the zygote runs, the module is compiled
        for turn in range(runs):
            for workload in workloads:
                progress(f"{count} pods of {workload.name} {turn + 1}/{runs}")
                with cri.leaving_nothing():
                    results[workload.name].append(run_burst(cri, workload, count))
    return {"count": count, "runs": results}


def run_burst(cri: Cri, workload: Workload, count: int) -> Json:
    """Run this many pods at once, have each answer, remove them; return the seconds."""
    handler = workload.runtime.split(".")[2]

    def start(port: int) -> tuple[Pod, str]:
        pod = cri.run_pod(handler=handler, host_network=True)
        container = cri.create_container(
            pod,
            workload.image,
            "web",
            command=workload.arguments(port),
            env=workload.environment(port),
        )
        cri.start_container(container)
        deadline = time.monotonic() + START_TIMEOUT
        while not answers_200(port):
            if time.monotonic() > deadline:
                raise BenchError(f"a pod of {workload.name} did not answer")
            time.sleep(POLL_INTERVAL)
        return pod, container

    def stop(started: tuple[Pod, str]) -> None:
        pod, container = started
        # busybox as process 1 does not end at SIGTERM, so neither is asked to.
        cri.stop_container(container, 0)
        cri.stop_pod(pod)
        cri.remove_pod(pod)

    ports = _free_ports(count)
    with ThreadPoolExecutor(count) as pool:
        began = time.monotonic()
        pods = list(pool.map(start, ports))
        answered = time.monotonic()
        list(pool.map(stop, pods))
        gone = time.monotonic()
    return {"start_seconds": answered - began, "stop_seconds": gone - answered}


def _free_ports(count: int) -> list[int]:
    """Return different ports: what is free now may be given out twice otherwise."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return sorted(ports)
