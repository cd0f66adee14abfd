"""What kubelet does with our pods, and what users see of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from typing import Any

import pytest

from containerd_shimkit.testing.apps import end_process, eventually
from containerd_shimkit.testing.kube_pods import (
    COMMAND_IMAGE,
    EMPTY_IMAGE,
    PROBE_IMAGE,
    TRAP_IMAGE,
    app,
    config_map,
    deployment,
    job,
    pod,
    runtime_class,
    secret,
    service,
    shell,
    waiting,
)
from containerd_shimkit.testing.kubernetes import NODE, Cluster
from containerd_shimkit.testing.leftovers import find_processes

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.timeout(300)]


def wait_until_ready(cluster: Cluster, name: str) -> None:
    cluster.wait("Ready", "pod", name)


def engine_pid(cluster: Cluster, name: str, container: str = "web") -> int:
    return cluster.cri.pid(cluster.container(name, container)["containerID"].split("//")[1])


# What an app says


def test_logs_are_the_apps_output(cluster: Cluster) -> None:
    cluster.apply(pod("web", app()))
    wait_until_ready(cluster, "web")
    cluster.curl(f"{cluster.pod_url('web')}/stdout?text=to-stdout")
    cluster.curl(f"{cluster.pod_url('web')}/stderr?text=to-stderr")

    def both_are_there() -> bool:
        log = cluster.kubectl("logs", "web")
        assert "to-stdout" in log, log
        assert "to-stderr" in log, log
        return True

    eventually(both_are_there, "logs")


def test_description_of_a_healthy_pod_has_no_warning(cluster: Cluster) -> None:
    # kubelet may not know the authority of a token at once, and then warns and tries again.
    cluster.apply(pod("web", app(), automountServiceAccountToken=False))
    wait_until_ready(cluster, "web")
    text = cluster.kubectl("describe", "pod", "web")
    assert re.search(r"^Runtime Class Name: +wasmtime-spin$", text, re.M), text
    assert re.search(r"^ +Ready: +True$", text, re.M), text
    warnings = cluster.events("web", "Warning")
    assert [w for w in warnings if not w.startswith("Unhealthy: Readiness probe")] == []


# Faults


def test_image_without_an_app_is_backed_off_with_the_reason(cluster: Cluster) -> None:
    cluster.apply(pod("web", app(image=EMPTY_IMAGE)))

    def is_backed_off() -> bool:
        waiting = cluster.container("web", "web")["state"].get("waiting", {})
        return bool(waiting.get("reason") == "CrashLoopBackOff")

    eventually(is_backed_off, "CrashLoopBackOff", 90.0)
    text = cluster.kubectl("describe", "pod", "web")
    assert "/spin.toml: no such file in the image" in text, text
    last = cluster.container("web", "web")["lastState"]["terminated"]
    assert "/spin.toml: no such file in the image" in last["message"], last


def test_killed_engine_is_restarted(cluster: Cluster) -> None:
    cluster.apply(pod("web", app()))
    wait_until_ready(cluster, "web")
    end_process(engine_pid(cluster, "web"), signal.SIGKILL)
    eventually(lambda: cluster.container("web", "web")["restartCount"] == 1, "it restarts", 60.0)
    wait_until_ready(cluster, "web")
    last = cluster.container("web", "web")["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (137, "Error")
    assert cluster.curl(f"{cluster.pod_url('web')}/echo", "--data", "x") == "x"


def test_failing_liveness_probe_restarts_the_app(cluster: Cluster) -> None:
    probe = {
        "httpGet": {"path": "/file?path=/config/alive", "port": 80},
        "periodSeconds": 1,
        "failureThreshold": 3,
    }
    volumes = [{"name": "config", "emptyDir": {}}]
    mounts = [{"name": "config", "mountPath": "/config"}]
    cluster.apply(
        pod(
            "web",
            app(livenessProbe=probe, volumeMounts=mounts),
            waiting(volumeMounts=mounts),
            initContainers=[shell("make", "echo yes >/config/alive", volumeMounts=mounts)],
            volumes=volumes,
        )
    )
    wait_until_ready(cluster, "web")
    busybox = ("web", "--container=sidecar", "--", "/bin/busybox", "sh", "-c")
    cluster.kubectl("exec", *busybox, "rm /config/alive")
    eventually(lambda: cluster.container("web", "web")["restartCount"] > 0, "it restarts", 60.0)
    cluster.kubectl("exec", *busybox, "echo yes >/config/alive")
    wait_until_ready(cluster, "web")
    events = cluster.events("web")
    assert any("Liveness probe failed: HTTP probe failed with statuscode: 404" in e for e in events)
    last = cluster.container("web", "web")["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (0, "Completed")  # asked to end, it did
    assert cluster.container("web", "sidecar")["restartCount"] == 0


def test_container_without_memory_is_said_to_be_oom_killed(cluster: Cluster) -> None:
    """Of a Wasm app the guests get less than the limit; a program beside it may want more."""
    limits = {"limits": {"memory": "32Mi"}}
    script = "sleep 2; exec tail /dev/zero"  # keeps what has no line's end
    cluster.apply(pod("web", app(), shell("greedy", script, resources=limits)))

    def is_killed() -> bool:
        found = cluster.container("web", "greedy")
        ends = [found[state].get("terminated", {}) for state in ("state", "lastState")]
        return any(end.get("reason") == "OOMKilled" for end in ends)

    eventually(is_killed, "OOMKilled", 60.0)
    assert cluster.container("web", "web")["restartCount"] == 0


def test_unknown_handler_is_named_in_the_events(cluster: Cluster) -> None:
    cluster.apply(runtime_class("unknown", "no-such"), pod("web", app(), runtime="unknown"))

    def says_so() -> bool:
        events = cluster.events("web", "Warning")
        return any(re.search(r'no runtime for "no-such" is configured', e) for e in events)

    eventually(says_so, "the event", 60.0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"hostUsers": False}, r'RuntimeClass handler "spin" does not support user namespaces'),
        ({"containers": [app(tty=True, stdin=True)]}, "a WebAssembly container has no terminal"),
    ],
    ids=["user namespace", "terminal"],
)
def test_what_a_wasm_pod_cannot_have_is_said(
    cluster: Cluster, fields: dict[str, Any], reason: str
) -> None:
    cluster.apply(pod("web", **({"containers": [app()]} | fields)))

    def says_so() -> bool:
        return any(re.search(reason, event) for event in cluster.events("web", "Warning"))

    eventually(says_so, "the event", 60.0)


def test_probe_that_runs_a_program_fails_with_the_reason(cluster: Cluster) -> None:
    probe = {"exec": {"command": ["/bin/true"]}, "periodSeconds": 1}
    cluster.apply(pod("web", app(readinessProbe=probe)))

    def says_so() -> bool:
        reason = "a WebAssembly container has one process, the engine"
        return any(reason in event for event in cluster.events("web", "Warning"))

    eventually(says_so, "the event", 60.0)
    assert not cluster.container("web", "web")["ready"]


# What a pod may have


def test_pod_in_the_nodes_namespaces(cluster: Cluster) -> None:
    """Its network, processes and IPC, and all privileges."""
    env = [{"name": "SPIN_HTTP_LISTEN_ADDR", "value": "0.0.0.0:18081"}]
    ready = {"httpGet": {"path": "/status?code=200", "port": 18081}, "periodSeconds": 1}
    web = app(env=env, readinessProbe=ready, securityContext={"privileged": True})
    cluster.apply(pod("web", web, waiting(), hostNetwork=True, hostPID=True, hostIPC=True))
    wait_until_ready(cluster, "web")
    assert cluster.curl("http://127.0.0.1:18081/echo", "--data", "x") == "x"
    show = ("exec", "web", "--container=sidecar", "--", "/bin/busybox", "ps", "-o", "args")
    assert "kubelet" in cluster.kubectl(*show)


def test_app_without_privileges_on_port_80_by_a_sysctl(cluster: Cluster) -> None:
    sysctls = [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]
    web = app(securityContext={"capabilities": {"drop": ["ALL"]}})
    cluster.apply(pod("web", web, securityContext={"sysctls": sysctls, "runAsUser": 1000}))
    wait_until_ready(cluster, "web")


def test_volumes_and_variables(cluster: Cluster) -> None:
    """The guest sees a ConfigMap, variables do not reach it unasked, and a sidecar sees it all."""
    mounts = [
        {"name": "config", "mountPath": "/config"},
        {"name": "scratch", "mountPath": "/scratch"},
        {"name": "secret", "mountPath": "/secret"},
        {"name": "all", "mountPath": "/all"},
    ]
    projected = {
        "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
            {"downwardAPI": {"items": [_field("name", "metadata.name")]}},
        ]
    }
    env = [
        {"name": "SPIN_CONFIG_UNUSED", "valueFrom": {"secretKeyRef": _key("secret", "password")}},
        {"name": "GREETING", "valueFrom": {"configMapKeyRef": _key("config", "greeting")}},
    ]
    cluster.apply(
        config_map("config", greeting="hello"),
        secret("secret", password="hush"),
        pod(
            "web",
            app(env=env, volumeMounts=mounts[:2]),
            waiting(env=env, volumeMounts=mounts),
            initContainers=[shell("make", "echo made >/scratch/made", volumeMounts=mounts[1:2])],
            volumes=[
                {"name": "config", "configMap": {"name": "config"}},
                {"name": "scratch", "emptyDir": {"medium": "Memory"}},
                {"name": "secret", "secret": {"secretName": "secret"}},
                {"name": "all", "projected": projected},
            ],
        ),
    )
    wait_until_ready(cluster, "web")
    url = cluster.pod_url("web")

    def in_sidecar(script: str) -> str:
        where = ("web", "--container=sidecar", "--", "/bin/busybox", "sh", "-c")
        return cluster.kubectl("exec", *where, script)

    assert cluster.curl(f"{url}/file?path=/config/greeting") == "hello"
    assert cluster.curl(f"{url}/file?path=/scratch/made") == "made\n"
    assert in_sidecar("echo $GREETING; cat /secret/password") == "hello\nhush"
    assert in_sidecar("cat /all/name") == "web"
    assert in_sidecar("cat /all/token").count(".") == 2
    assert in_sidecar("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace") == "default"
    in_sidecar("echo -n shared >/scratch/file")
    assert cluster.curl(f"{url}/file?path=/scratch/file") == "shared"
    cluster.apply(config_map("config", greeting="changed"))

    def is_changed() -> bool:
        return cluster.curl(f"{url}/file?path=/config/greeting") == "changed"

    eventually(is_changed, "the guest sees the change", 120.0)


def _key(name: str, key: str) -> dict[str, str]:
    return {"name": name, "key": key}


def _field(path: str, field: str) -> dict[str, object]:
    return {"path": path, "fieldRef": {"fieldPath": field}}


def test_app_and_sidecar_as_the_restricted_standard_wants_them(cluster: Cluster) -> None:
    """Pod Security Standards, ``restricted``: enforced by the API server."""
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    env = [{"name": "SPIN_HTTP_LISTEN_ADDR", "value": "0.0.0.0:8080"}]
    ready = {"httpGet": {"path": "/status?code=200", "port": 8080}, "periodSeconds": 1}
    enforce = "pod-security.kubernetes.io/enforce"
    cluster.kubectl("label", "namespace", "default", f"{enforce}=restricted")
    try:
        cluster.apply(
            pod(
                "web",
                app(env=env, readinessProbe=ready, securityContext=security),
                waiting(securityContext=security),
                securityContext={
                    "runAsNonRoot": True,
                    "runAsUser": 1234,
                    "fsGroup": 5678,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                automountServiceAccountToken=False,
            )
        )
    finally:
        cluster.kubectl("label", "namespace", "default", f"{enforce}-")
    wait_until_ready(cluster, "web")
    status = cluster.kubectl(
        *("exec", "web", "--container=sidecar", "--", "/bin/busybox", "cat", "/proc/self/status")
    )
    assert re.search(r"^Uid:\t1234\t1234", status, re.M), status
    assert re.search(r"^CapBnd:\t0+$", status, re.M), status
    assert re.search(r"^Seccomp:\t2$", status, re.M), status


def test_image_that_would_run_as_root_is_refused(cluster: Cluster) -> None:
    cluster.apply(pod("web", app(), securityContext={"runAsNonRoot": True}))

    def is_refused() -> bool:
        found = cluster.container("web", "web")["state"].get("waiting", {})
        return "runAsNonRoot" in found.get("message", "")

    eventually(is_refused, "it is refused", 60.0)


def test_native_sidecar_runs_before_the_app(cluster: Cluster) -> None:
    """An init container that restarts always: it is there as long as the app."""
    mounts = [{"name": "scratch", "mountPath": "/scratch"}]
    script = "echo -n first >/scratch/file; trap 'exit 0' TERM; sleep 100000 & wait"
    cluster.apply(
        pod(
            "web",
            app(volumeMounts=mounts),
            initContainers=[shell("proxy", script, restartPolicy="Always", volumeMounts=mounts)],
            volumes=[{"name": "scratch", "emptyDir": {}}],
        )
    )
    wait_until_ready(cluster, "web")
    assert cluster.curl(f"{cluster.pod_url('web')}/file?path=/scratch/file") == "first"
    assert "running" in cluster.container("web", "proxy")["state"]


def test_overhead_and_nodes_of_the_class(cluster: Cluster) -> None:
    """A pod goes where its class says, and what the class costs is a part of its requests."""
    there = {"nodeSelector": {"wasm-shims": "yes"}}
    overhead = {"podFixed": {"memory": "24Mi", "cpu": "10m"}}
    limited = app(resources={"limits": {"memory": "100Mi", "cpu": "500m"}})
    cluster.apply(
        runtime_class("there", "spin", scheduling=there, overhead=overhead),
        pod("web", limited, runtime="there"),
    )
    eventually(lambda: cluster.events("web", "Warning"), "it is not scheduled")
    assert any("didn't match Pod's node affinity" in e for e in cluster.events("web"))
    cluster.kubectl("label", "node", NODE, "wasm-shims=yes")
    try:
        wait_until_ready(cluster, "web")
        assert cluster.pod("web")["spec"]["overhead"] == {"memory": "24Mi", "cpu": "10m"}
        uid = cluster.pod("web")["metadata"]["uid"]
        limits = cluster.cgroup_values(f"pod{uid}", "memory.limit_in_bytes", "memory.max")
        assert limits == [str(124 << 20)]
    finally:
        cluster.kubectl("label", "node", NODE, "wasm-shims-")


# Programs


def test_job_of_a_command(cluster: Cluster) -> None:
    command = app("command", COMMAND_IMAGE, args=["one", "two words"])
    del command["readinessProbe"]
    cluster.apply(job("work", command))
    cluster.wait("Complete", "job", "work")
    assert "two words\n" in cluster.kubectl("logs", "job/work")
    (done,) = cluster.pods("work")
    ended = done["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (0, "Completed")


def test_job_that_traps_is_tried_again(cluster: Cluster) -> None:
    command = app("command", TRAP_IMAGE, terminationMessagePolicy="FallbackToLogsOnError")
    del command["readinessProbe"]
    cluster.apply(job("work", command, retries=1))
    cluster.wait("Failed", "job", "work")
    tried = cluster.pods("work")
    assert len(tried) == 2
    for each in tried:
        ended = each["status"]["containerStatuses"][0]["state"]["terminated"]
        assert ended["exitCode"] == 134
        assert "unreachable" in ended["message"], ended


# What users do with a running pod


def test_logs_are_followed_to_the_end_and_kept_of_the_last_run(cluster: Cluster) -> None:
    cluster.apply(pod("web", app()))
    wait_until_ready(cluster, "web")
    url = cluster.pod_url("web")
    command = cluster.kubectl_command("logs", "--follow", "web")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        try:
            cluster.curl(f"{url}/stdout?text=first-run%0a")
            assert follower.stdout is not None
            assert any("first-run" in line for line in follower.stdout)
            end_process(engine_pid(cluster, "web"), signal.SIGKILL)
            follower.wait(60)
        finally:
            follower.kill()
    eventually(lambda: cluster.container("web", "web")["restartCount"] == 1, "it restarts", 60.0)
    assert "first-run" in cluster.kubectl("logs", "--previous", "web")
    assert "first-run" not in cluster.kubectl("logs", "web")


def test_stats_are_the_engines(cluster: Cluster) -> None:
    cluster.apply(pod("web", app(), waiting()))
    wait_until_ready(cluster, "web")

    def is_counted() -> bool:
        summary = json.loads(cluster.raw(f"/api/v1/nodes/{NODE}/proxy/stats/summary"))
        (found,) = [p for p in summary["pods"] if p["podRef"]["name"] == "web"]
        of = {container["name"]: container for container in found["containers"]}
        assert of["web"]["memory"]["workingSetBytes"] > 4 << 20
        assert of["web"]["cpu"]["usageCoreNanoSeconds"] > 0
        assert "usageNanoCores" in of["web"]["cpu"]
        assert of["sidecar"]["memory"]["workingSetBytes"] > 0
        return True

    eventually(is_counted, "kubelet has counted", 120.0)


def test_exec(cluster: Cluster) -> None:
    cluster.apply(pod("web", app(), waiting()))
    wait_until_ready(cluster, "web")
    refused = cluster.try_kubectl("exec", "web", "--container=web", "--", "/bin/sh")
    assert refused.returncode != 0
    assert "a WebAssembly container has one process, the engine" in refused.stderr
    script = "echo out; echo err >&2; exit 3"
    done = cluster.try_kubectl(
        *("exec", "web", "--container=sidecar", "--", "/bin/busybox", "sh", "-c", script)
    )
    assert (done.returncode, done.stdout) == (3, "out\n")
    assert done.stderr.startswith("err\n")
    copied = cluster.kubectl(
        *("exec", "--stdin", "web", "--container=sidecar", "--", "/bin/busybox", "cat"),
        input="x" * 100_000,
    )
    assert copied == "x" * 100_000


def test_port_is_forwarded(cluster: Cluster) -> None:
    cluster.apply(pod("web", app()))
    wait_until_ready(cluster, "web")
    command = cluster.kubectl_command("port-forward", "pod/web", "18080:80")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forwarding:
        try:
            assert forwarding.stdout is not None
            assert forwarding.stdout.readline().startswith("Forwarding from 127.0.0.1:18080")
            for _ in range(3):
                assert cluster.curl("http://127.0.0.1:18080/echo", "--data", "x") == "x"
        finally:
            forwarding.terminate()


def test_message_of_a_container_that_ends(cluster: Cluster) -> None:
    script = "echo -n 'all is said' >/dev/termination-log; exit 4"
    cluster.apply(pod("web", app(), shell("speaks", script), restartPolicy="Never"))

    def has_ended() -> bool:
        ended = cluster.container("web", "speaks")["state"].get("terminated", {})
        return (ended.get("message"), ended.get("exitCode")) == ("all is said", 4)

    eventually(has_ended, "the message", 60.0)


def test_ephemeral_container_beside_an_app(cluster: Cluster) -> None:
    """``kubectl debug``: a shell in the network, and among the processes, of the app."""
    cluster.apply(pod("web", app()))
    wait_until_ready(cluster, "web")
    image = ("--image", "docker.io/library/cri-busybox:latest", "--image-pull-policy=IfNotPresent")
    cluster.kubectl(
        *("debug", "web", *image, "--container=look", "--target=web", "--profile=general", "--"),
        *(
            "/bin/busybox",
            "sh",
            "-c",
            "ps -o pid,args; wget -qO - http://127.0.0.1/status?code=200",
        ),
    )
    eventually(
        lambda: "terminated" in cluster.container("web", "look")["state"], "it has ended", 60.0
    )
    ended = cluster.container("web", "look")["state"]["terminated"]
    log = cluster.kubectl("logs", "web", "--container=look")
    assert ended["exitCode"] == 0, log
    assert "containerd-shim-spin-v1" in log, log


def test_limits_are_changed_in_place(cluster: Cluster) -> None:
    """``kubectl patch --subresource=resize``: the app goes on with the new limits."""
    cluster.apply(pod("web", app(resources=_limits("64Mi", "200m"))))
    wait_until_ready(cluster, "web")
    pid = engine_pid(cluster, "web")
    changed = {"spec": {"containers": [{"name": "web", "resources": _limits("96Mi", "300m")}]}}
    cluster.kubectl("patch", "pod", "web", "--subresource=resize", "--patch", json.dumps(changed))
    container = cluster.container("web", "web")["containerID"].split("//")[1]

    def is_changed() -> bool:
        names = ("memory.limit_in_bytes", "memory.max")
        return cluster.cgroup_values(container, *names) == [str(96 << 20)]

    eventually(is_changed, "the new limit", 60.0)
    assert engine_pid(cluster, "web") == pid
    assert cluster.container("web", "web")["restartCount"] == 0


def _limits(memory: str, cpu: str) -> dict[str, dict[str, str]]:
    both = {"memory": memory, "cpu": cpu}
    return {"limits": both, "requests": both}


# The end


def test_requests_are_answered_before_the_end(cluster: Cluster) -> None:
    cluster.apply(pod("web", app()))
    wait_until_ready(cluster, "web")
    command = cluster.enter("curl", "--silent", f"{cluster.pod_url('web')}/sleep?ms=4000")
    with subprocess.Popen(
        [*command, "--write-out", "%{http_code}"], stdout=subprocess.PIPE
    ) as slow:
        time.sleep(1)  # nothing tells that the guest has begun
        cluster.kubectl("delete", "pod", "web")
        assert slow.communicate(timeout=60)[0].endswith(b"200")


def test_no_request_is_lost_in_a_rolling_update(cluster: Cluster) -> None:
    # kube-proxy hears of the end later than the pod does: as everywhere, it has to wait a little.
    patient = app(lifecycle={"preStop": {"sleep": {"seconds": 3}}})
    cluster.apply(deployment("web", patient, replicas=2), service("web"))
    cluster.kubectl("rollout", "status", "deployment", "web")
    address = cluster.get("service", "web")["spec"]["clusterIP"]
    eventually(lambda: cluster.curl(f"http://{address}/echo", "--data", "x") == "x", "it serves")
    script = (
        "n=0; while [ ! -e $0 ]; do "
        f"curl -sS -f --max-time 20 -d x http://{address}/echo >/dev/null || exit 1; n=$((n+1)); "
        "done; echo $n"
    )
    done = cluster.directory / "updated"
    command = cluster.enter("sh", "-c", script, str(done))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as client:
        try:
            cluster.kubectl("set", "env", "deployment/web", "VERSION=2")
            cluster.kubectl("rollout", "status", "deployment", "web")
            eventually(lambda: len(cluster.pods("web")) == 2, "the old ones are gone", 60.0)
        finally:
            done.touch()
        output, errors = client.communicate(timeout=60)
    done.unlink()
    assert client.returncode == 0, errors
    assert int(output) > 20


def test_pod_ends_with_its_deadline(cluster: Cluster) -> None:
    cluster.apply(pod("web", app(), activeDeadlineSeconds=3, restartPolicy="Never"))
    cluster.wait("jsonpath={.status.phase}=Failed", "pod/web")
    assert cluster.pod("web")["status"]["reason"] == "DeadlineExceeded"

    def has_ended() -> bool:
        ended = cluster.container("web", "web")["state"].get("terminated", {})
        return bool(ended.get("exitCode") == 0)

    eventually(has_ended, "it was told to end, and did", 60.0)


def test_node_is_drained(cluster: Cluster) -> None:
    cluster.apply(deployment("web", app(), replicas=3))
    cluster.kubectl("rollout", "status", "deployment", "web")
    try:
        cluster.kubectl("drain", NODE, "--ignore-daemonsets", "--delete-emptydir-data")
        assert all(each["status"]["phase"] == "Pending" for each in cluster.pods("web"))
    finally:
        cluster.kubectl("uncordon", NODE)
    cluster.kubectl("rollout", "status", "deployment", "web")


# The node


def test_pods_outlive_a_restart_of_kubelet(cluster: Cluster) -> None:
    cluster.apply(pod("web", app(), waiting()))
    wait_until_ready(cluster, "web")
    pid = engine_pid(cluster, "web")
    cluster.restart_kubelet()
    wait_until_ready(cluster, "web")
    assert cluster.curl(f"{cluster.pod_url('web')}/echo", "--data", "x") == "x"
    assert engine_pid(cluster, "web") == pid
    assert cluster.container("web", "web")["restartCount"] == 0


@pytest.mark.parametrize("whole_node", [False, True], ids=["shim", "node"])
def test_pod_comes_back_when_its_processes_are_killed(cluster: Cluster, whole_node: bool) -> None:
    """Its shim alone, as for want of memory; or all there are, as when a node loses its power."""
    cluster.apply(pod("web", app(), waiting()))
    wait_until_ready(cluster, "web")
    pid = engine_pid(cluster, "web")
    killed = cluster.shims()
    if whole_node:
        cluster.cri.daemon.kill()
        killed = find_processes(cluster.cri.daemon.scope)
    for process in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    if whole_node:
        cluster.cri.daemon.start()

    def is_another() -> bool:
        return engine_pid(cluster, "web") != pid

    def serves() -> bool:
        return cluster.curl(f"{cluster.pod_url('web')}/echo", "--data", "x") == "x"

    eventually(is_another, "another engine runs", 120.0)
    eventually(serves, "it serves, at another address", 120.0)


def test_pods_outlive_a_restart_of_containerd(cluster: Cluster) -> None:
    cluster.apply(pod("web", app(), waiting()))
    wait_until_ready(cluster, "web")
    pid = engine_pid(cluster, "web")
    cluster.cri.daemon.restart()
    assert cluster.curl(f"{cluster.pod_url('web')}/echo", "--data", "x") == "x"
    wait_until_ready(cluster, "web")
    eventually(lambda: engine_pid(cluster, "web") == pid, "CRI is back")
    cluster.kubectl("exec", "web", "--container=sidecar", "--", "/bin/busybox", "true")
    assert cluster.container("web", "web")["restartCount"] == 0
    assert PROBE_IMAGE in cluster.container("web", "web")["image"]
