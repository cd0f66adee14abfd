"""A whole Kubernetes of one node, as ``make kubernetes`` builds it, over a private containerd.

The node has a network and a mount namespace of its own: fixed ports are free, firewall rules and
mounts are nobody else's, and all of them are gone with the namespaces. kubelet's and the pods'
cgroups are below the one that is named as containerd's namespace, which ``Containerd`` clears.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from containerd_shimkit.linux.cgroups import open_cgroup
from containerd_shimkit.testing.apps import eventually
from containerd_shimkit.testing.containerd import SYSTEM_PATH, Containerd, in_netns
from containerd_shimkit.testing.cri import BUSYBOX, Cri, bridge_network
from containerd_shimkit.testing.fixtures import containerd_program, running_containerd
from containerd_shimkit.testing.leftovers import Process, cgroup_directories, find_processes
from containerd_shimkit.testing.servers.process import need_program
from containerd_shimkit.testing.servers.tls import Authority
from containerd_shimkit.testing.shim_nodes import need_shim

PROGRAMS: Final = Path(".cache/kubernetes")
"""Where ``make kubernetes`` writes, in the working copy."""
NODE: Final = "node"
SERVICES: Final = "10.96.0.0/16"
SERVER: Final = "https://127.0.0.1:6443"

READY_SECONDS: Final = 120.0
"""For a whole cluster on a machine that does other things too; alone it takes ten."""
_FLEX_VOLUMES: Final = "/var/lib/kubelet/volume-plugins"
_STOP_SECONDS: Final = 20.0

# kubelet sets these for the whole machine, unless it finds them so. Source: kubelet's
# pkg/kubelet/cm/container_manager_linux.go, setupKernelTunables.
_TUNABLES: Final = {
    "/proc/sys/vm/overcommit_memory": "1",
    "/proc/sys/vm/panic_on_oom": "0",
    "/proc/sys/kernel/panic": "10",
    "/proc/sys/kernel/panic_on_oops": "1",
    "/proc/sys/kernel/keys/root_maxkeys": "1000000",
    "/proc/sys/kernel/keys/root_maxbytes": "25000000",
}
_KEEP: Final = "echo ready; exec sleep infinity"
# What has a fixed place on a node, kubelet's devices and CNI's results among it, is the node's own.
_MAKE_NODE: Final = r"""
set -e
mount --bind "$PLACE/log" /var/log
mount --bind "$PLACE/lib" /var/lib
for file in $TUNABLES; do
    if [ -e "$file" ]; then mount --bind "$PLACE/tunables/$(basename "$file")" "$file"; fi
done
ip link set lo up
"""


class ClusterError(Exception):
    """A program of the cluster has ended by itself; the message ends with its last log lines."""


@dataclass
class _Program:
    """A program of the cluster. It ends by SIGTERM and can be started again."""

    command: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": SYSTEM_PATH, "HOME": "/root", "LANG": "C.UTF-8"},
                start_new_session=True,
            )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def check(self) -> None:
        """Raise ClusterError if it has ended."""
        if self.process is not None and self.process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-3000:]
            raise ClusterError(f"{self.command} has ended: {tail}")


@dataclass
class Cluster:
    """A control plane, and its one node."""

    directory: Path
    cri: Cri
    node_pid: int
    """Of a process in the node's namespaces."""
    address: str
    """Of the node, as its pods see it."""
    programs: Path
    _running: dict[str, _Program] = field(default_factory=dict)

    # Clients

    def enter(self, *command: str) -> list[str]:
        """Return a command that runs in the node's network."""
        return [*in_netns(self.cri.daemon.netns), *command]

    def kubectl_command(self, *arguments: str) -> list[str]:
        own = [str(self.programs / "kubectl"), "--kubeconfig", str(self.directory / "admin.conf")]
        return self.enter(*own, "--cache-dir", str(self.directory / "kubectl"), *arguments)

    def try_kubectl(
        self, *arguments: str, input: str | None = None, seconds: float = READY_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl to its end, however that is."""
        return subprocess.run(
            self.kubectl_command(*arguments),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env={"PATH": SYSTEM_PATH, "HOME": "/root", "LANG": "C.UTF-8"},
            **({"stdin": subprocess.DEVNULL} if input is None else {"input": input}),
        )

    def kubectl(
        self, *arguments: str, input: str | None = None, seconds: float = READY_SECONDS
    ) -> str:
        """Run kubectl; return what it printed. AssertionError, with the reason, if it failed."""
        done = self.try_kubectl(*arguments, input=input, seconds=seconds)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        """Create or change objects."""
        whole = {"apiVersion": "v1", "kind": "List", "items": manifests}
        self.kubectl("apply", "--filename", "-", input=json.dumps(whole))

    def get(self, *arguments: str) -> dict[str, Any]:
        """Return an object, or a list of objects below ``items``."""
        found: dict[str, Any] = json.loads(self.kubectl("get", "--output=json", *arguments))
        return found

    def pods(self, app: str) -> list[dict[str, Any]]:
        """Return the pods with a label ``app``, oldest first."""
        order = "--sort-by=.metadata.creationTimestamp"
        items: list[dict[str, Any]] = self.get("pods", f"--selector=app={app}", order)["items"]
        return items

    def raw(self, path: str) -> str:
        """Return what the API server answers."""
        return self.kubectl("get", "--raw", path)

    def curl(self, url: str, *options: str) -> str:
        """Return the body of a response, asked for on the node. AssertionError if it failed."""
        command = self.enter("curl", "--silent", "--show-error", "--fail", "--max-time", "20")
        done = subprocess.run(
            [*command, *options, url], capture_output=True, text=True, timeout=60, errors="replace"
        )
        assert done.returncode == 0, f"{url}: {done.stderr}"
        return done.stdout

    def wait(self, condition: str, *objects: str, seconds: float = READY_SECONDS) -> None:
        """Return when objects have a condition: ``Ready``, ``jsonpath={.status.phase}=Failed``."""
        kind = (
            condition if condition.startswith(("jsonpath", "delete")) else f"condition={condition}"
        )
        limit = f"--timeout={seconds:g}s"
        self.kubectl("wait", f"--for={kind}", limit, *objects, seconds=seconds + 20)

    def pod(self, name: str) -> dict[str, Any]:
        return self.get("pod", name)

    def pod_url(self, name: str, port: int = 80) -> str:
        """Return ``http://198.18.0.2:80`` of a pod that has an address."""
        return f"http://{self.pod(name)['status']['podIP']}:{port}"

    def container(self, pod: str, name: str) -> dict[str, Any]:
        """Return the status of one of a pod's containers; AssertionError if there is none yet."""
        found = [
            status
            for kind in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
            for status in self.pod(pod)["status"].get(kind, [])
            if status["name"] == name
        ]
        assert found, f"{name} of {pod} has no status"
        return dict(found[0])

    def events(self, pod: str, kind: str = "") -> list[str]:
        """Return ``reason: message`` of what happened to a pod. kind: ``Warning``."""
        # By its number: those of an earlier pod of the name are still there.
        selector = f"involvedObject.uid={self.pod(pod)['metadata']['uid']}"
        types = f",type={kind}" if kind else ""
        found = self.get("events", f"--field-selector={selector}{types}")
        return [f"{event['reason']}: {event['message']}" for event in found["items"]]

    # The node

    def pod_cgroups(self) -> list[str]:
        """Return the cgroups of pods and their containers."""
        below = f"{self._cgroup_root}/kubepods/"
        return [str(c) for c in cgroup_directories() if below in str(c) and "/pod" in str(c)]

    def cgroup_values(self, name: str, *files: str) -> list[str]:
        """Return what the first of ``files`` that this kernel has says in a cgroup."""
        found = [c / file for c in cgroup_directories() if c.name == name for file in files]
        return [path.read_text().strip() for path in found if path.exists()]

    def shims(self) -> list[Process]:
        """Return the shims that run; the zygotes, which stay, are none."""
        address = f" -address {self.cri.daemon.address}"
        return [p for p in find_processes(self.cri.daemon.scope) if address in p.command]

    def restart_kubelet(self) -> None:
        self._running["kubelet"].stop()
        self._running["kubelet"].start()
        eventually(self._kubelet_is_healthy, "kubelet is back", READY_SECONDS)

    def log(self, program: str) -> str:
        """Return what a program of the cluster has printed."""
        return self._running[program].log.read_text(errors="replace")

    def _kubelet_is_healthy(self) -> bool:
        self._check()
        return self.curl("http://127.0.0.1:10248/healthz") == "ok"

    # Inside

    def _check(self) -> None:
        for program in self._running.values():
            program.check()

    def run(self) -> None:
        """Start everything; return when a pod can be run."""
        tokens = self._write_credentials()
        self._run_etcd()
        self._run_api_server(tokens)
        eventually(self._serves, "the API server is ready", READY_SECONDS)
        self._run_controllers()
        self._run_kubelet()
        self._start("kube-proxy", *self._proxy_options())
        eventually(self._is_ready, "the node is ready", READY_SECONDS)

    def stop(self) -> None:
        for name in reversed(self._running):
            self._running[name].stop()

    def _start(self, name: str, *options: str, program: str | None = None) -> None:
        namespaces = ["nsenter", f"--target={self.node_pid}", "--net", "--mount"]
        command = [*namespaces, program or str(self.programs / name), *options]
        self._running[name] = _Program(command, self.directory / f"{name}.log")
        self._running[name].start()

    def _serves(self) -> bool:
        self._check()
        return self.raw("/readyz") == "ok"

    def _is_ready(self) -> bool:
        self._check()
        node = self.get("node", NODE)
        ready = any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in node["status"]["conditions"]
        )
        self.get("serviceaccount", "default")
        return ready and not node["spec"].get("taints")

    def _write_credentials(self) -> Path:
        """Write a configuration for each client; return the file of tokens, for the server."""
        users = {
            "admin": ("admin", "system:masters"),
            "kubelet": (f"system:node:{NODE}", "system:nodes"),
            "kube-controller-manager": ("system:kube-controller-manager", ""),
            "kube-scheduler": ("system:kube-scheduler", ""),
            "kube-proxy": ("system:kube-proxy", ""),
        }
        authority = Authority(self.directory)
        hosts = ["127.0.0.1", self.address, "10.96.0.1"]
        names = ["kubernetes.default.svc", *(f"IP:{host}" for host in hosts)]
        authority.issue("server", *(n if n.startswith("IP:") else f"DNS:{n}" for n in names))
        authority.issue("service-accounts")
        lines = []
        for name, (user, group) in users.items():
            token = secrets.token_hex(16)
            lines.append(f'{token},{user},{user},"{group}"\n')
            self._write(
                f"{name}.conf",
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": "test",
                            "cluster": {
                                "server": SERVER,
                                "certificate-authority": str(authority.cert),
                            },
                        }
                    ],
                    "users": [{"name": name, "user": {"token": token}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
                    "current-context": "test",
                },
            )
        tokens = self.directory / "tokens.csv"
        tokens.write_text("".join(lines))
        return tokens

    def _write(self, name: str, content: Mapping[str, Any]) -> Path:
        path = self.directory / name
        path.write_text(json.dumps(content))
        return path

    def _run_etcd(self) -> None:
        self._start(
            "etcd",
            *("--data-dir", str(self.directory / "etcd"), "--unsafe-no-fsync"),
            *("--log-level", "error"),
            program=need_program("etcd", "etcd-server"),
        )

    def _run_api_server(self, tokens: Path) -> None:
        server, accounts = self.directory / "server", self.directory / "service-accounts"
        self._start(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={self.address}",
            f"--tls-cert-file={server}.pem",
            f"--tls-private-key-file={server}.key",
            f"--token-auth-file={tokens}",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={accounts}.pem",
            f"--service-account-signing-key-file={accounts}.key",
            f"--service-cluster-ip-range={SERVICES}",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged",
        )

    def _run_controllers(self) -> None:
        for name in ("kube-controller-manager", "kube-scheduler"):
            own = []
            if name == "kube-controller-manager":
                own = [
                    f"--service-account-private-key-file={self.directory / 'service-accounts.key'}",
                    f"--root-ca-file={self.directory / 'authority.pem'}",
                    "--use-service-account-credentials",
                    f"--flex-volume-plugin-dir={_FLEX_VOLUMES}",
                ]
            conf = self.directory / f"{name}.conf"
            self._start(name, f"--kubeconfig={conf}", "--leader-elect=false", *own)

    def _run_kubelet(self) -> None:
        open_cgroup(self._cgroup_root, "").create()
        configuration = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            # There is nobody else in this network.
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self._cgroup_root,
            "enforceNodeAllocatable": ["none"],
            "containerRuntimeEndpoint": f"unix://{self.cri.daemon.address}",
            "failSwapOn": False,
            "resolvConf": "",
            "clusterDNS": ["10.96.0.10"],  # there is none; pods only get its address
            "clusterDomain": "cluster.local",
            "volumePluginDir": _FLEX_VOLUMES,
            # A full disk is for others to care about.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "0%",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
                "imagefs.available": "0%",
                "imagefs.inodesFree": "0%",
            },
            "protectKernelDefaults": True,
            "syncFrequency": "5s",
        }
        self._start(
            "kubelet",
            f"--config={self._write('kubelet.json', configuration)}",
            f"--kubeconfig={self.directory / 'kubelet.conf'}",
            f"--hostname-override={NODE}",
            f"--node-ip={self.address}",
        )

    def _proxy_options(self) -> list[str]:
        # Connection tracking is the machine's, not the namespace's.
        conntrack = [f"--conntrack-{name}=0" for name in ("max-per-core", "min")]
        conntrack += [
            f"--conntrack-tcp-timeout-{name}=0s" for name in ("established", "close-wait")
        ]
        conf = self.directory / "kube-proxy.conf"
        return [f"--kubeconfig={conf}", f"--hostname-override={NODE}", *conntrack]

    @property
    def _cgroup_root(self) -> str:
        return f"/{self.cri.daemon.namespace}"


def need_kubernetes(root: Path) -> Path:
    """Return where Kubernetes' programs are; skip the test if they were not built."""
    programs = root / PROGRAMS
    if not (programs / "kubelet").exists():
        pytest.skip(f"needs {programs}: make kubernetes")
    return programs


@contextmanager
def running_cluster(
    directory: Path,
    root: Path,
    shim_dir: Path,
    shims_home: Path,
    version: str,
    sandboxer: str = "podsandbox",
) -> Iterator[Cluster]:
    """Yield a cluster of one node. version, sandboxer: of containerd, see ``running_cri``."""
    programs = need_kubernetes(root)
    for kind in ("spin", "slight", "wws"):
        need_shim(shim_dir, kind)
    if not BUSYBOX.exists():
        pytest.skip(f"needs {BUSYBOX}: apt-get install busybox-static")
    program = containerd_program(version, root)
    with ExitStack() as stack:
        pid = stack.enter_context(_namespaces())
        daemon = stack.enter_context(
            running_containerd(
                directory / "containerd",
                shim_dir,
                shims_home,
                binary=_containerd_on_node(directory / "programs", pid, program),
                cri=True,
                sandboxer=sandboxer,
                netns=Path(f"/proc/{pid}/ns/net"),
            )
        )
        yield stack.enter_context(cluster_of(daemon, pid, directory, programs))


@contextmanager
def cluster_of(
    daemon: Containerd, node_pid: int, directory: Path, programs: Path
) -> Iterator[Cluster]:
    """Yield a cluster whose node has this containerd, which runs.

    node_pid: of a process in the node's network and mount namespaces, which are its own.
    directory: for files.  programs: where Kubernetes' are.
    """
    pods, place = directory / "pods", directory / "cluster"
    pods.mkdir()
    place.mkdir()
    _make_node(node_pid, directory / "places")
    with ExitStack() as stack:
        cri = stack.enter_context(Cri(daemon, pods))
        cri.import_busybox()
        network = bridge_network(daemon, prefix_length=24, default_route=True)
        address = stack.enter_context(network)
        _route_services(daemon, node_pid)
        cluster = Cluster(place, cri, node_pid, str(address), programs)
        stack.callback(cluster.stop)
        cluster.run()
        yield cluster


@contextmanager
def _namespaces() -> Iterator[int]:
    """Yield a process in a network and a mount namespace of its own."""
    command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", _KEEP]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C at the terminal is for us, not for it
    ) as keeper:
        try:
            assert keeper.stdout is not None
            assert keeper.stdout.readline() == b"ready\n", "the node has no namespaces"
            yield keeper.pid
        finally:
            keeper.kill()


def _make_node(pid: int, place: Path) -> None:
    """Give the node's mount namespace what Kubernetes wants of a node."""
    for name in ("log", "lib/kubelet", "tunables"):
        (place / name).mkdir(parents=True)
    for path, value in _TUNABLES.items():
        (place / "tunables" / Path(path).name).write_text(f"{value}\n")
    environment = os.environ | {"PLACE": str(place), "TUNABLES": " ".join(_TUNABLES)}
    enter = ["nsenter", f"--target={pid}", "--net", "--mount", "--"]
    subprocess.run([*enter, "sh", "-c", _MAKE_NODE], env=environment, check=True, timeout=20)


def _containerd_on_node(directory: Path, pid: int, program: str) -> str:
    """Return a program that is containerd with the node's mounts, and keeps its pid."""
    directory.mkdir()
    real = Path(shutil.which(program, path=SYSTEM_PATH) or program)
    for name in ("ctr", "containerd-shim-runc-v2"):
        if (real.parent / name).exists():
            (directory / name).symlink_to(real.parent / name)
    wrapper = directory / "containerd"
    wrapper.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --version ]; then exec {real} --version; fi\n'
        f'exec nsenter --target={pid} --mount -- {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    return str(wrapper)


def _route_services(daemon: Containerd, pid: int) -> None:
    """Give the node a route for the addresses of Services, before kube-proxy changes them."""
    configuration = json.loads((daemon.cni_directory / "network.conflist").read_text())
    command = ["nsenter", f"--target={pid}", "--net", "ip", "route", "add", "default", "dev"]
    subprocess.run([*command, configuration["name"]], check=True, timeout=20)
