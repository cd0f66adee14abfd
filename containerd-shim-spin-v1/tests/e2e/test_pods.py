"""What is promised of pods, each promise by one test, on every containerd."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from containerd_shimkit.testing.apps import DEADLINE, end_process, eventually
from containerd_shimkit.testing.containerd import in_netns
from containerd_shimkit.testing.cri import (
    Cri,
    CriError,
    Pod,
    bridge_network,
    network_namespace,
)
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD, running_containerd
from containerd_shimkit.testing.leftovers import cgroup_directories
from containerd_shimkit.testing.pods import (
    PodImages,
    Web,
    run_sidecar,
    run_web,
    write_config_map,
)

pytestmark = [pytest.mark.root, pytest.mark.containerd]

HEALTH = "/.well-known/spin/health"


def cgroup_file(container: str, *names: str) -> Path:
    """Return the first of ``names`` that this kernel has in the container's cgroup."""
    directories = [c for c in cgroup_directories() if container in c.name]
    return next(d / name for name in names for d in directories if (d / name).exists())


# A whole life


@pytest.mark.usefixtures("network")
def test_pod_from_its_run_to_its_removal(cri: Cri, images: PodImages, tmp_path: Path) -> None:
    """Two apps and a sidecar with volumes and limits; one is killed and comes back."""
    config, secret, scratch = (tmp_path / name for name in ("config", "secret", "scratch"))
    write_config_map(config, "1", "hello")
    write_config_map(secret, "1", "password")
    scratch.mkdir()
    pod = cri.run_pod(handler="spin", memory=512 << 20)
    ip = cri.pod_status(pod).network.ip

    def run_app(port: int, volume: Path, attempt: int = 0) -> Web:
        return run_web(
            cri,
            pod,
            images.reader,
            f"web-{port}",
            address=(ip, port),
            mounts=[(volume, "/config", True), (scratch, "/scratch", False)],
            memory=128 << 20,
            cpu_quota=50_000,
            attempt=attempt,
        )

    first, second = run_app(80, config), run_app(8080, secret)
    sidecar = run_sidecar(cri, pod, images.busybox, mounts=[(scratch, "/scratch", False)])
    assert first.get("/file?path=/config/greeting") == (200, "hello")
    assert second.get("/file?path=/config/greeting") == (200, "password")
    script = f"wget -qO /scratch/got http://{ip}:8080/big?bytes=3"
    assert cri.exec_sync(sidecar, "/bin/busybox", *script.split())[1] == 0
    assert first.get("/file?path=/scratch/got") == (200, "xxx")

    end_process(cri.pid(first.id), signal.SIGKILL)
    assert eventually(lambda: cri.exit_code(first.id), "CRI knows") == 137
    assert cri.status(first.id).reason == "Error"
    assert second.serves()
    first = run_app(80, config, attempt=1)
    assert first.get("/file?path=/config/greeting") == (200, "hello")

    for container, code in ((first.id, 0), (second.id, 0), (sidecar, 7)):
        cri.stop_container(container, 20)
        assert cri.exit_code(container) == code
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    assert cri.pod_ids() == []


@pytest.mark.usefixtures("network")
def test_probes_as_kubelet_makes_them(cri: Cri, images: PodImages) -> None:
    """An HTTP GET to the pod's address: ready once Start has returned, gone with the app."""
    pod = cri.run_pod(handler="spin")
    web = run_web(cri, pod, images.probe, address=(cri.pod_status(pod).network.ip, 80))
    assert web.get(HEALTH) == (200, "OK")
    end_process(cri.pid(web.id), signal.SIGKILL)
    with pytest.raises(ConnectionRefusedError):
        web.get(HEALTH)


def test_termination_message_of_a_failed_start(
    cri: Cri, pod: Pod, images: PodImages, tmp_path: Path
) -> None:
    """Kubelet mounts a file there and reads it; CRI's own message is what it falls back to."""
    message = tmp_path / "termination-log"
    message.touch(mode=0o666)
    mounts = [(message, "/dev/termination-log", False)]
    with pytest.raises(CriError, match="no such file in the image"):
        run_web(cri, pod, images.empty, mounts=mounts)
    assert message.read_text().startswith("/spin.toml: no such file in the image")
    (container,) = cri.container_ids(pod)
    assert cri.status(container).reason == "StartError"
    assert "/spin.toml: no such file in the image" in cri.status(container).message


# Memory and CPU


def overrun_memory(web: Web, requests: int) -> None:
    """Make instances whose answers nobody takes, until the engine has ended."""
    with ExitStack() as stack:
        for _ in range(requests):
            connection = stack.enter_context(socket.socket())
            connection.settimeout(DEADLINE)
            try:
                connection.connect(web.address)
                connection.sendall(b"GET /big?bytes=30000000 HTTP/1.1\r\nHost: web\r\n\r\n")
                connection.recv(1)  # it has been served, and the rest is kept for us
            except OSError:
                return


def test_container_beyond_its_memory_is_oom_killed(cri: Cri, pod: Pod, images: PodImages) -> None:
    """No instance has more than the container may have, but all of them together do."""
    other = run_web(cri, pod, images.probe, "other")
    sidecar = run_sidecar(cri, pod, images.busybox)
    web = run_web(cri, pod, images.probe, memory=96 << 20)
    overrun_memory(web, 16)
    assert eventually(lambda: cri.exit_code(web.id), "CRI knows") == 137
    assert cri.status(web.id).reason == "OOMKilled"
    assert other.serves()
    assert cri.exec_sync(sidecar, "/bin/busybox", "echo", "here") == ("here\n", 0)
    cri.remove_container(web.id)
    assert run_web(cri, pod, images.probe, memory=96 << 20, attempt=1).serves()


def test_container_beyond_the_memory_of_its_pod_is_oom_killed(cri: Cri, images: PodImages) -> None:
    """The limit is the pod's cgroup's: the kernel chooses there, and the container says so."""
    pod = cri.run_pod(handler="spin", host_network=True, memory=192 << 20)
    other = run_web(cri, pod, images.probe, "other")
    sidecar = run_sidecar(cri, pod, images.busybox)
    web = run_web(cri, pod, images.probe)
    overrun_memory(web, 16)
    assert eventually(lambda: cri.exit_code(web.id), "CRI knows") == 137
    assert cri.status(web.id).reason == "OOMKilled"
    assert cri.is_running(sidecar)
    assert other.serves()
    assert cri.pod_is_ready(pod)


def test_sidecar_beyond_its_memory_is_oom_killed(cri: Cri, pod: Pod, images: PodImages) -> None:
    web = run_web(cri, pod, images.probe)
    command = ["/bin/busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]
    sidecar = cri.create_container(pod, images.busybox, "sidecar", command=command, memory=16 << 20)
    cri.start_container(sidecar)
    assert eventually(lambda: cri.exit_code(sidecar), "CRI knows") == 137
    assert cri.status(sidecar).reason == "OOMKilled"
    assert web.serves()


def test_cpu_limit_holds(cri: Cri, pod: Pod, images: PodImages) -> None:
    """100m: a guest that computes without end gets a tenth of a core, within a fifth of that."""
    web = run_web(cri, pod, images.probe, cpu_quota=10_000)
    sidecar = run_sidecar(cri, pod, images.busybox)
    usage = cgroup_file(web.id, "cpuacct.usage", "cpu.stat")

    def cpu_seconds() -> float:
        text = usage.read_text()
        return int(text) / 1e9 if text.strip().isdigit() else int(text.split()[1]) / 1e6

    with socket.create_connection(web.address, DEADLINE) as connection:
        connection.sendall(b"GET /loop HTTP/1.1\r\nHost: web\r\n\r\n")
        spins = cpu_seconds()
        eventually(lambda: cpu_seconds() > spins + 0.05, "the guest computes")
        times, used, stats = [], [], []
        for _ in range(2):
            stats.append(cri.stats(web.id).cpu)
            times.append(time.monotonic())
            used.append(cpu_seconds())
            if len(used) == 1:
                assert cri.exec_sync(sidecar, "/bin/busybox", "sleep", "4")[1] == 0
    share = (used[1] - used[0]) / (times[1] - times[0])
    counted = [s.usage_core_nano_seconds.value for s in stats]
    told = (counted[1] - counted[0]) / (stats[1].timestamp - stats[0].timestamp)
    assert 0.08 <= share <= 0.12, share
    assert 0.08 <= told <= 0.12, told


# The end


def test_stop_does_not_wait_for_idle_connections(cri: Cri, pod: Pod, images: PodImages) -> None:
    web = run_web(cri, pod, images.probe)
    connections = [http.client.HTTPConnection(*web.address, timeout=DEADLINE) for _ in range(20)]
    for connection in connections:
        connection.request("GET", "/status?code=204")
        assert connection.getresponse().read() == b""
        assert connection.sock is not None  # kept alive
    began = time.monotonic()
    cri.stop_container(web.id, 60)
    took = time.monotonic() - began
    assert cri.exit_code(web.id) == 0
    assert took < 5, took
    for connection in connections:
        connection.close()


# Many


@pytest.mark.parametrize("host_network", [True, False], ids=["host", "cni"])
def test_12_pods_at_once(burst: Callable[[int, bool], None], host_network: bool) -> None:
    """The short form of what ``make soak`` does with 100."""
    burst(12, host_network)


# The node's ports


@pytest.fixture
def node_of_its_own(
    tmp_path: Path,
    shim_dir: Path,
    shims_home: Path,
    containerd_binary: str,
    import_images: Callable[[Cri], PodImages],
) -> Iterator[tuple[Cri, PodImages, str]]:
    """A containerd in a network namespace, whose firewall is its own; and the node's address."""
    pods = tmp_path / "pods"
    pods.mkdir()
    with (
        network_namespace() as netns,
        running_containerd(
            tmp_path / "containerd",
            shim_dir,
            shims_home,
            binary=containerd_binary,
            cri=True,
            netns=netns,
        ) as daemon,
        Cri(daemon, pods) as cri,
        bridge_network(daemon, host_ports=True) as address,
    ):
        eventually(cri.network_ready, "CRI has a network")
        images = import_images(cri)
        with cri.leaving_nothing():
            yield cri, images, str(address)


def has_printed(cri: Cri, container: str, text: str) -> bool:
    return ("stdout", text) in cri.log(container)


@ON_EACH_CONTAINERD
@pytest.mark.usefixtures("cni_plugins")
def test_host_port_leads_to_the_pod(node_of_its_own: tuple[Cri, PodImages, str]) -> None:
    cri, images, address = node_of_its_own

    def fetch(port: int, path: str) -> subprocess.CompletedProcess[str]:
        url = f"http://{address}:{port}{path}"
        code = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)"
        command = [*in_netns(cri.daemon.netns), sys.executable, "-c", code, url]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)

    pods, containers = {}, {}
    for port in (8080, 8081):
        pod = pods[port] = cri.run_pod(handler="spin", ports={port: 80})
        containers[port] = run_web(cri, pod, images.probe, address=("0.0.0.0", 80)).id
    for port, container in containers.items():
        assert fetch(port, f"/stdout?text=through-{port}").returncode == 0
        was_asked = partial(has_printed, cri, container, f"through-{port}")
        eventually(was_asked, "the right pod was asked")
    cri.stop_pod(pods[8080])
    assert "Connection refused" in fetch(8080, "/status?code=204").stderr
    assert fetch(8081, "/status?code=204").returncode == 0
