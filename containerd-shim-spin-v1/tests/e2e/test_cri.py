"""Pods as kubelet makes them: apps and ordinary sidecars behind one shim, over CRI."""

from __future__ import annotations

import http.client
import re
import secrets
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from containerd_shimkit.linux.lsm import apparmor_enabled
from containerd_shimkit.testing.apps import DEADLINE, end_process, eventually
from containerd_shimkit.testing.cri import Cri, CriError, Pod
from containerd_shimkit.testing.leftovers import cgroup_directories, find_processes
from containerd_shimkit.testing.pods import (
    PodImages,
    Web,
    listen_on,
    run_sidecar,
    run_web,
    write_config_map,
)

# One containerd of each version for all, some of which restart it.
pytestmark = [pytest.mark.root, pytest.mark.containerd]

PAUSE = "/bin/busybox sleep 1000000|containerd-shim-spin-v1 pause "
"""What runs in a pause container: its image's program, or ours where a pod has no image."""


def parent_of(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


# The containers of a pod


def test_apps_and_sidecar_share_one_shim(cri: Cri, pod: Pod, images: PodImages) -> None:
    first, second = run_web(cri, pod, images.probe), run_web(cri, pod, images.probe, "second")
    sidecar = run_sidecar(cri, pod, images.busybox)
    assert first.serves()
    assert second.serves()
    (shim,) = cri.shims()
    assert {parent_of(cri.pid(c)) for c in (first.id, second.id, sidecar)} == {shim.pid}
    assert sorted(cri.container_ids(pod)) == sorted([first.id, second.id, sidecar])
    assert cri.pod_is_ready(pod)


def test_log_files_have_what_containers_print(cri: Cri, pod: Pod, images: PodImages) -> None:
    web = run_web(cri, pod, images.probe)
    sidecar = run_sidecar(cri, pod, images.busybox, "echo from-the-sidecar; sleep 1000")
    web.get("/stdout?text=to-out")
    web.get("/stderr?text=to-err")
    eventually(lambda: ("stdout", "to-out") in cri.log(web.id), "the guest's output")
    eventually(lambda: ("stderr", "to-err") in cri.log(web.id), "the guest's errors")
    eventually(lambda: ("stdout", "from-the-sidecar") in cri.log(sidecar), "the sidecar's output")


def test_exec_in_a_sidecar(cri: Cri, pod: Pod, images: PodImages) -> None:
    sidecar = run_sidecar(cri, pod, images.busybox)
    script = "echo out; echo err >&2; exit 3"
    assert cri.exec_sync(sidecar, "/bin/busybox", "sh", "-c", script) == ("out\nerr\n", 3)


def test_exec_in_an_app_is_refused_with_the_reason(cri: Cri, pod: Pod, images: PodImages) -> None:
    web = run_web(cri, pod, images.probe)
    with pytest.raises(CriError, match="a WebAssembly container has one process, the engine"):
        cri.exec_sync(web.id, "/bin/sh")
    assert web.serves()


def test_shared_pid_namespace(cri: Cri, images: PodImages) -> None:
    """shareProcessNamespace: a sidecar sees the pause container and the engine."""
    pod = cri.run_pod(handler="spin", host_network=True, shared_pids=True)
    web = run_web(cri, pod, images.probe)
    sidecar = run_sidecar(cri, pod, images.busybox)
    output, code = cri.exec_sync(sidecar, "/bin/busybox", "ps", "-o", "pid,args")
    assert code == 0
    assert re.search(rf"^ +1 ({PAUSE})", output, re.MULTILINE), output
    assert f"engine -namespace k8s.io -id {web.id[:8]}" in output
    assert web.serves()


def test_sidecar_in_a_shared_pid_namespace_does_not_see_into_the_engine(
    cri: Cri, images: PodImages
) -> None:
    """The engine's program is the host's, and its environment was once containerd's."""
    pod = cri.run_pod(handler="spin", host_network=True, shared_pids=True)
    web, sidecar = run_web(cri, pod, images.probe), run_sidecar(cri, pod, images.busybox)
    status = Path(f"/proc/{cri.pid(web.id)}/status").read_text()
    engine = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1]
    script = f"head -c 4 /proc/self/exe && head -c 4 /proc/{engine}/exe"
    output, code = cri.exec_sync(sidecar, "/bin/busybox", "sh", "-c", script)
    assert (output.startswith("\x7fELF"), code) == (True, 1)
    for name in ("root/", "cwd/", "fd/0", "environ", "maps"):
        output, code = cri.exec_sync(sidecar, "/bin/busybox", "cat", f"/proc/{engine}/{name}")
        assert code == 1, name
        assert "Permission denied" in output
    assert web.serves()


def test_sidecar_ends_with_all_its_processes_in_a_shared_pid_namespace(
    cri: Cri, images: PodImages
) -> None:
    """Its shell is not process 1: the kernel alone would let the child go on."""
    pod = cri.run_pod(handler="spin", host_network=True, shared_pids=True)
    child = f"sleep {secrets.randbelow(10**9)}"
    web, sidecar = run_web(cri, pod, images.probe), run_sidecar(cri, pod, images.busybox, child)
    eventually(lambda: find_processes([child]), "the child runs")
    end_process(cri.pid(sidecar), signal.SIGKILL)
    eventually(lambda: not cri.is_running(sidecar), "CRI knows")
    assert find_processes([child]) == []
    cri.remove_container(sidecar)
    assert web.serves()


def test_image_without_an_app_is_refused_with_the_reason(
    cri: Cri, pod: Pod, images: PodImages
) -> None:
    web = run_web(cri, pod, images.probe)
    with pytest.raises(CriError, match=r"/spin\.toml: no such file in the image"):
        run_web(cri, pod, images.empty, "empty")
    (refused,) = set(cri.container_ids(pod)) - {web.id}
    assert cri.exit_code(refused) != 0
    assert "no such file in the image" in cri.status(refused).message
    assert web.serves()


def test_init_container_comes_before_the_app(
    cri: Cri, pod: Pod, images: PodImages, tmp_path: Path
) -> None:
    """It runs to its end, and the app finds what it has left."""
    mounts = [(tmp_path, "/scratch", False), (tmp_path, "/config", True)]
    script = ["/bin/busybox", "sh", "-c", "echo -n prepared >/scratch/file"]
    first = cri.create_container(pod, images.busybox, "init", command=script, mounts=mounts)
    cri.start_container(first)
    eventually(lambda: not cri.is_running(first), "it has ended")
    assert (cri.exit_code(first), cri.status(first).reason) == (0, "Completed")
    web = run_web(cri, pod, images.reader, mounts=mounts)
    assert web.get("/file?path=/scratch/file") == (200, "prepared")


# Volumes and limits


def test_volumes_are_seen_by_a_guest(cri: Cri, pod: Pod, images: PodImages, tmp_path: Path) -> None:
    config, scratch = tmp_path / "config", tmp_path / "scratch"
    write_config_map(config, "1", "hello")
    scratch.mkdir()
    mounts = [(config, "/config", True), (scratch, "/scratch", False)]
    web = run_web(cri, pod, images.reader, mounts=mounts)
    sidecar = run_sidecar(cri, pod, images.busybox, mounts=mounts)

    assert web.get("/file?path=/config/greeting") == (200, "hello")
    script = "echo -n shared >/scratch/file"
    assert cri.exec_sync(sidecar, "/bin/busybox", "sh", "-c", script) == ("", 0)
    assert web.get("/file?path=/scratch/file") == (200, "shared")
    script = "echo -n no >/config/file"
    assert cri.exec_sync(sidecar, "/bin/busybox", "sh", "-c", script)[1] != 0
    assert web.get("/write?path=/config/file")[0] == 403
    write_config_map(config, "2", "changed")
    assert web.get("/file?path=/config/greeting") == (200, "changed")


def test_cgroups_are_in_the_pods(cri: Cri, pod: Pod, images: PodImages) -> None:
    """At cgroupsPath, or in scopes of the pod's slice where systemd makes them."""
    web, sidecar = run_web(cri, pod, images.probe), run_sidecar(cri, pod, images.busybox)
    for container in (web.id, sidecar):
        lines = Path(f"/proc/{cri.pid(container)}/cgroup").read_text().splitlines()
        name = f"cri-containerd-{container}.scope" if cri.daemon.systemd_cgroup else container
        assert any(line.endswith(f":{pod.cgroup_parent}/{name}") for line in lines), lines


def test_limits_are_the_containers(cri: Cri, pod: Pod, images: PodImages) -> None:
    web = run_web(cri, pod, images.probe, memory=96 << 20, cpu_quota=50_000)
    names = ("memory.limit_in_bytes", "memory.max", "cpu.cfs_quota_us", "cpu.max")
    values = {
        name: (cgroup / name).read_text().split()[0]
        for cgroup in cgroup_directories()
        if web.id in cgroup.name  # a scope has more in its name
        for name in names
        if (cgroup / name).exists()
    }
    assert list(values.values()).count(str(96 << 20)) == 1, values
    assert list(values.values()).count("50000") == 1, values
    assert web.get("/alloc?mb=128")[0] == 507
    assert web.serves()


def test_engine_serves_under_the_default_seccomp_profile(
    cri: Cri, pod: Pod, images: PodImages
) -> None:
    web = run_web(cri, pod, images.probe, default_seccomp=True)
    assert "Seccomp:\t2\n" in Path(f"/proc/{cri.pid(web.id)}/status").read_text()
    assert web.serves()
    assert web.get("/sleep?ms=1") == (200, "1\n")


@pytest.mark.skipif(not apparmor_enabled(), reason="needs a kernel with AppArmor: test_uml runs it")
def test_engine_serves_in_the_default_apparmor_profile(
    cri: Cri, pod: Pod, images: PodImages, tmp_path: Path
) -> None:
    """containerd's, which every container gets that asks for no other."""
    (tmp_path / "file").write_text("read")
    mounts = [(tmp_path, "/config", True), (tmp_path, "/scratch", False)]
    web = run_web(cri, pod, images.reader, mounts=mounts)
    profile = Path(f"/proc/{cri.pid(web.id)}/attr/apparmor/current").read_text()
    assert profile == "cri-containerd.apparmor.d (enforce)\n"
    assert web.get("/file?path=/config/file") == (200, "read")
    assert web.get("/sleep?ms=1") == (200, "1\n")
    cri.stop_container(web.id, 20)
    assert cri.exit_code(web.id) == 0


def test_stats_have_memory_and_cpu(cri: Cri, pod: Pod, images: PodImages) -> None:
    web = run_web(cri, pod, images.probe)
    sidecar = run_sidecar(cri, pod, images.busybox)
    for container in (web.id, sidecar):
        stats = cri.stats(container)
        assert stats.memory.working_set_bytes.value > 64 << 10
        assert stats.cpu.usage_core_nano_seconds.value > 0
    before = cri.stats(web.id).cpu.usage_core_nano_seconds.value
    assert web.get("/big?bytes=20000000")[0] == 200

    def more() -> bool:
        return cri.stats(web.id).cpu.usage_core_nano_seconds.value > before

    eventually(more, "the CPU time of a request is in the statistics")


# The end of a container


def test_one_container_restarts_while_others_run(cri: Cri, pod: Pod, images: PodImages) -> None:
    web, other = run_web(cri, pod, images.probe), run_web(cri, pod, images.probe, "other")
    sidecar = run_sidecar(cri, pod, images.busybox)
    (shim,) = cri.shims()
    for attempt in (1, 2):
        cri.stop_container(web.id, 20)
        assert cri.exit_code(web.id) == 0
        assert other.serves()
        cri.remove_container(web.id)
        assert cri.is_running(sidecar)
        web = run_web(cri, pod, images.probe, attempt=attempt)
        assert web.serves()
    cri.stop_container(sidecar, 20)
    assert cri.exit_code(sidecar) == 7
    cri.remove_container(sidecar)
    again = run_sidecar(cri, pod, images.busybox)
    assert cri.is_running(again)
    assert other.serves()
    assert [p.pid for p in cri.shims()] == [shim.pid]


def test_all_containers_restart(cri: Cri, pod: Pod, images: PodImages) -> None:
    """For a moment the pause container is alone in its shim."""
    web = run_web(cri, pod, images.probe)
    (shim,) = cri.shims()
    cri.stop_container(web.id, 20)
    cri.remove_container(web.id)
    assert cri.container_ids(pod) == []
    assert cri.pod_is_ready(pod)
    assert run_web(cri, pod, images.probe, attempt=1).serves()
    assert [p.pid for p in cri.shims()] == [shim.pid]


def test_stop_lets_a_request_end(cri: Cri, pod: Pod, images: PodImages) -> None:
    web = run_web(cri, pod, images.probe, env={"SPIN_MAX_INSTANCE_COUNT": "1"})
    with request_in_flight(web, "/sleep?ms=1500") as answer:
        cri.stop_container(web.id, 30)
        assert answer.result(DEADLINE)[0] == 200
    assert cri.exit_code(web.id) == 0


def test_stop_ends_with_the_grace_period(cri: Cri, pod: Pod, images: PodImages) -> None:
    web = run_web(cri, pod, images.probe, env={"SPIN_MAX_INSTANCE_COUNT": "1"})
    with request_in_flight(web, "/sleep?ms=60000") as answer:
        cri.stop_container(web.id, 1)
        with pytest.raises((OSError, http.client.HTTPException)):
            answer.result(DEADLINE)
    assert cri.exit_code(web.id) == 137


@contextmanager
def request_in_flight(web: Web, path: str) -> Iterator[Future[tuple[int, str]]]:
    """Make a request to an app that serves one at a time; yields when the guest has it."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(web.get, path)

        def is_served() -> bool:
            nonlocal answer
            if answer.done():  # it was refused while our own question was answered
                answer = pool.submit(web.get, path)
            return web.get("/status?code=204")[0] == 503

        eventually(is_served, "it is served")
        yield answer


def test_engine_killed_leaves_the_others_alone(cri: Cri, pod: Pod, images: PodImages) -> None:
    web, other = run_web(cri, pod, images.probe), run_web(cri, pod, images.probe, "other")
    end_process(cri.pid(web.id), signal.SIGKILL)
    assert eventually(lambda: cri.exit_code(web.id), "CRI knows") == 137
    assert other.serves()
    assert cri.pod_is_ready(pod)
    cri.remove_container(web.id)
    assert run_web(cri, pod, images.probe, attempt=1).serves()


# The end of a pod


def test_stopped_pod_ends_all_its_containers(cri: Cri, pod: Pod, images: PodImages) -> None:
    """Kubelet stops the containers first; who does not gets them killed."""
    web, sidecar = run_web(cri, pod, images.probe), run_sidecar(cri, pod, images.busybox)
    cri.stop_pod(pod)
    assert not cri.pod_is_ready(pod)
    assert cri.exit_code(web.id) in (0, 137)
    assert not cri.is_running(sidecar)
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    assert cri.shims() == []
    assert cri.pod_ids() == []


def test_pause_container_killed(cri: Cri, pod: Pod, images: PodImages) -> None:
    """The pod is not ready any more, and can be stopped."""
    web = run_web(cri, pod, images.probe)
    (shim,) = cri.shims()
    pause = next(
        int(pid)
        for pid in Path(f"/proc/{shim.pid}/task/{shim.pid}/children").read_text().split()
        if re.match(PAUSE, Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
    )
    end_process(pause, signal.SIGKILL)
    eventually(lambda: not cri.pod_is_ready(pod), "CRI knows")
    assert web.serves()


def test_shim_killed(cri: Cri, pod: Pod, images: PodImages) -> None:
    """All containers end with it; what is left is removed with the pod."""
    web, sidecar = run_web(cri, pod, images.probe), run_sidecar(cri, pod, images.busybox)
    (shim,) = cri.shims()
    end_process(shim.pid, signal.SIGKILL)
    eventually(lambda: not cri.pod_is_ready(pod), "CRI knows of the pod")
    eventually(lambda: not cri.is_running(web.id), "CRI knows of the app")
    eventually(lambda: not cri.is_running(sidecar), "CRI knows of the sidecar")


# containerd's own end


def test_pod_outlives_containerd(cri: Cri, pod: Pod, images: PodImages) -> None:
    web, sidecar = run_web(cri, pod, images.probe), run_sidecar(cri, pod, images.busybox)
    (shim,) = cri.shims()
    cri.daemon.terminate()
    assert web.serves()
    cri.daemon.start()
    cri.wait_until_ready()
    assert cri.pod_ids() == [pod.id]
    assert cri.pod_is_ready(pod)
    assert sorted(cri.container_ids(pod)) == sorted([web.id, sidecar])
    assert cri.is_running(web.id)
    assert cri.is_running(sidecar)
    web.get("/stdout?text=after")
    eventually(lambda: ("stdout", "after") in cri.log(web.id), "the log goes on")
    assert cri.exec_sync(sidecar, "/bin/busybox", "echo", "here") == ("here\n", 0)
    assert cri.stats(web.id).memory.working_set_bytes.value > 0
    assert run_web(cri, pod, images.probe, "new").serves()
    assert [p.pid for p in cri.shims()] == [shim.pid]
    cri.stop_container(web.id, 20)
    assert cri.exit_code(web.id) == 0
    cri.stop_container(sidecar, 20)
    assert cri.exit_code(sidecar) == 7


def test_exit_while_containerd_is_down_is_seen_after(cri: Cri, pod: Pod, images: PodImages) -> None:
    web, other = run_web(cri, pod, images.probe), run_web(cri, pod, images.probe, "other")
    pid = cri.pid(web.id)
    cri.daemon.terminate()
    end_process(pid, signal.SIGTERM)
    cri.daemon.start()
    cri.wait_until_ready()
    eventually(lambda: not cri.is_running(web.id), "CRI knows")
    assert cri.exit_code(web.id) == 0
    assert other.serves()


# The pod's network


@pytest.mark.usefixtures("network")
def test_pod_has_an_address_and_a_network_of_its_own(cri: Cri, images: PodImages) -> None:
    pods = [cri.run_pod(handler="spin") for _ in range(2)]
    webs = []
    for pod in pods:
        container = cri.create_container(pod, images.probe, "web", env=listen_on(("0.0.0.0", 80)))
        cri.start_container(container)
        webs.append(Web(container, (cri.pod_status(pod).network.ip, 80)))
    assert len({web.address for web in webs}) == 2
    assert all(web.serves() for web in webs)
    sidecar = run_sidecar(cri, pods[0], images.busybox)
    command = ["/bin/busybox", "wget", "-qO-", "http://127.0.0.1/file?path=/nothing"]
    assert "404" in cri.exec_sync(sidecar, *command)[0]
    command = ["/bin/busybox", "wget", "-qO-", f"http://{webs[1].address[0]}/big?bytes=3"]
    assert len(cri.exec_sync(sidecar, *command)[0]) == 3
    name = pods[0].config.hostname
    assert cri.exec_sync(sidecar, "/bin/busybox", "hostname") == (f"{name}\n", 0)
    cri.stop_container(webs[0].id, 20)
    assert webs[1].serves()
