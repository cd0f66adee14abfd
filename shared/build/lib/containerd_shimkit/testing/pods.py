"""Containers of pods as tests use them: apps that serve HTTP, sidecars, volumes.

What kubelet writes into volumes is written here as it does.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from containerd_shimkit.testing.apps import DEADLINE, free_address
from containerd_shimkit.testing.cri import Cri, Pod
from containerd_shimkit.testing.leftovers import Process

Mounts = Sequence[tuple[Path, str, bool]]
"""Host path, path in the container, whether read-only."""


@dataclass(frozen=True)
class PodImages:
    """References of imported images."""

    probe: str
    """A guest that does what its path says."""
    reader: str
    """The same guest, which sees ``/config`` and ``/scratch`` of its container."""
    empty: str
    """An image without an app, for the shim to refuse."""
    busybox: str


@dataclass(frozen=True)
class Web:
    """A container that serves."""

    id: str
    address: tuple[str, int]

    def get(self, path: str, timeout: float = DEADLINE) -> tuple[int, str]:
        """Return status and body of one request on a connection of its own."""
        connection = http.client.HTTPConnection(*self.address, timeout=timeout)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def serves(self) -> bool:
        return self.get("/status?code=204")[0] == 204


def listen_on(address: tuple[str, int]) -> dict[str, str]:
    """Return the variable that tells a Spin app where to listen."""
    return {"SPIN_HTTP_LISTEN_ADDR": f"{address[0]}:{address[1]}"}


def run_web(
    cri: Cri,
    pod: Pod,
    image: str,
    name: str = "web",
    *,
    address: tuple[str, int] | None = None,
    env: Mapping[str, str] = MappingProxyType({}),
    mounts: Mounts = (),
    memory: int = 0,
    cpu_quota: int = 0,
    attempt: int = 0,
    default_seccomp: bool = False,
) -> Web:
    """Start an app; it serves when this returns. address: None is a free port of the host."""
    address = address or free_address()
    container = cri.create_container(
        pod,
        image,
        name,
        env=listen_on(address) | dict(env),
        mounts=mounts,
        memory=memory,
        cpu_quota=cpu_quota,
        attempt=attempt,
        default_seccomp=default_seccomp,
    )
    cri.start_container(container)
    return Web(container, address)


def run_sidecar(
    cri: Cri, pod: Pod, image: str, script: str = "sleep 1000", mounts: Mounts = ()
) -> str:
    """Start a busybox that runs ``script`` beside a shell, which ends with 7 at SIGTERM."""
    # As process 1 a shell that does not trap SIGTERM does not get it.
    command = ["/bin/busybox", "sh", "-c", f"trap 'exit 7' TERM; {script} & wait"]
    container = cri.create_container(pod, image, "sidecar", command=command, mounts=mounts)
    cri.start_container(container)
    return container


@dataclass(frozen=True)
class Burst:
    """How many pods at once came and went."""

    start_seconds: float
    """Until all of them had answered a request."""
    stop_seconds: float
    """Until all of them were removed."""
    pod_bytes: int
    """Memory of one pod, its share of what is shared included: PSS of shim, engine and pause."""


def run_burst(cri: Cri, image: str, count: int, *, host_network: bool) -> Burst:
    """Run this many pods with an app, all at the same time; have each answer; remove them."""

    def start(_: int) -> tuple[Pod, Web]:
        pod = cri.run_pod(handler="spin", host_network=host_network)
        address = None if host_network else (cri.pod_status(pod).network.ip, 80)
        return pod, run_web(cri, pod, image, address=address)

    def stop(pod: Pod, web: Web) -> None:
        cri.stop_container(web.id, 20)
        assert cri.exit_code(web.id) == 0
        cri.stop_pod(pod)
        cri.remove_pod(pod)

    with ThreadPoolExecutor(count) as pool:
        began = time.monotonic()
        pods, webs = zip(*pool.map(start, range(count)), strict=True)
        assert all(pool.map(Web.serves, webs))
        started = time.monotonic()
        pod_bytes = sum(map(_pss_bytes, cri.processes())) // count
        stopping = time.monotonic()
        list(pool.map(stop, pods, webs))
    return Burst(started - began, time.monotonic() - stopping, pod_bytes)


def _pss_bytes(process: Process) -> int:
    """Return the proportional set size. Source: proc(5), ``smaps_rollup``."""
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.split()[0]) << 10
    return 0


def write_config_map(volume: Path, version: str, greeting: str) -> None:
    """Write as kubelet does: the data beside it, then one rename, which changes all at once."""
    data = volume / f"..{version}"
    data.mkdir(parents=True)
    (data / "greeting").write_text(greeting)
    (volume / "..data_tmp").symlink_to(data.name)
    (volume / "..data_tmp").rename(volume / "..data")
    if not (volume / "greeting").is_symlink():
        (volume / "greeting").symlink_to("..data/greeting")
