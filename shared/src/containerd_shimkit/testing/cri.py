"""Pods through containerd's CRI plugin, over gRPC, as kubelet makes them.

What kubelet does around the calls is done here too: a cgroup and a log directory for each pod, a
number for each attempt at a container. The daemon is a ``Containerd(cri=True)``.
"""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self, TypeVar

# Its handlers start threads in every child that a test forks, and abort where that is not allowed.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import Message

from containerd_shimkit.bootstrap import socket_path
from containerd_shimkit.linux.cgroups import open_cgroup
from containerd_shimkit.oci.archive import ImageFile, write_image_archive
from containerd_shimkit.testing import cri_pb2 as api
from containerd_shimkit.testing.apps import eventually
from containerd_shimkit.testing.containerd import PAUSE_IMAGE, Containerd, in_netns
from containerd_shimkit.testing.leftovers import (
    Machine,
    Process,
    cgroup_directories,
    find_processes,
    mount_points,
)

NAMESPACE: Final = "k8s.io"
"""The namespace of everything that CRI makes."""

BUSYBOX: Final = Path("/bin/busybox")
BUSYBOX_IMAGE: Final = "docker.io/library/cri-busybox:latest"

CALL_TIMEOUT: Final = 120.0  # kubelet's runtimeRequestTimeout

# Reconnecting to a daemon that was restarted: without this, gRPC waits longer and longer.
_CHANNEL_OPTIONS: Final = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]

A = TypeVar("A", bound=Message)


class CriError(AssertionError):
    """A call that was refused, or could not be answered yet; the message is containerd's."""


@dataclass(frozen=True)
class Pod:
    """A pod sandbox that runs, or did."""

    id: str
    config: api.PodSandboxConfig

    @property
    def cgroup_parent(self) -> str:
        return self.config.linux.cgroup_parent


class Cri:
    """The runtime service of one daemon."""

    def __init__(self, daemon: Containerd, directory: Path) -> None:
        """directory: for the logs of containers, and for image archives."""
        self.daemon = daemon
        self.directory = directory
        self._channel = grpc.insecure_channel(f"unix://{daemon.address}", _CHANNEL_OPTIONS)
        self._pods: list[Pod] = []
        self._containers: list[str] = []

    def __enter__(self) -> Self:
        self.wait_until_ready()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._channel.close()
        if self.daemon.systemd_cgroup:
            _systemctl("stop", f"{self.daemon.namespace}.slice")

    def wait_until_ready(self) -> None:
        """Return when the plugin has started: it serves some time after containerd does."""

        def is_ready() -> bool:
            try:
                answer = self._call("Status", api.StatusRequest(), api.StatusResponse)
            except CriError as exc:
                raise AssertionError(str(exc)) from exc
            return any(c.type == "RuntimeReady" and c.status for c in answer.status.conditions)

        eventually(is_ready, "the CRI plugin is ready")

    def network_ready(self) -> bool:
        """Whether CRI has a network configuration for pods."""
        answer = self._call("Status", api.StatusRequest(), api.StatusResponse)
        return any(c.type == "NetworkReady" and c.status for c in answer.status.conditions)

    # Images

    def import_image(
        self, reference: str, files: Sequence[ImageFile], entrypoint: Sequence[str]
    ) -> str:
        """Import an image made of ``files``; return ``reference`` when CRI knows it."""
        archive = self.directory / f"{secrets.token_hex(4)}.tar"
        write_image_archive(archive, reference, files, entrypoint=entrypoint)
        self.daemon.import_image(archive, NAMESPACE)
        archive.unlink()
        self.wait_for_image(reference)
        return reference

    def wait_for_image(self, reference: str) -> None:
        """Return when CRI knows an image that was imported by another way."""
        request = api.ImageStatusRequest(image=api.ImageSpec(image=reference))

        def is_known() -> bool:
            answer = self._call("ImageStatus", request, api.ImageStatusResponse, "ImageService")
            return answer.HasField("image")

        eventually(is_known, f"CRI knows {reference}")

    def import_busybox(self) -> str:
        """Import busybox twice: as the image of pause containers, and as one to be used."""
        files = [ImageFile("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)]
        self.import_image(PAUSE_IMAGE, files, ["/bin/busybox", "sleep", "1000000"])
        return self.import_image(BUSYBOX_IMAGE, files, ["/bin/busybox"])

    # Pods

    def run_pod(
        self,
        *,
        handler: str,
        host_network: bool = False,
        shared_pids: bool = False,
        memory: int = 0,
        ports: Mapping[int, int] = MappingProxyType({}),
        security: api.LinuxSandboxSecurityContext | None = None,
    ) -> Pod:
        """Run a pod without containers; its name is its hostname.

        memory: limit in bytes of the whole pod.  ports: of the pod, by those of the host.
        security: who it runs as; the namespaces are those of the other arguments.
        """
        name = f"pod-{secrets.token_hex(4)}"
        options = api.NamespaceOption(
            network=api.NODE if host_network else api.POD,
            pid=api.POD if shared_pids else api.CONTAINER,
        )
        context = api.LinuxSandboxSecurityContext(namespace_options=options)
        if security is not None:
            context.MergeFrom(security)
        config = api.PodSandboxConfig(
            metadata=api.PodSandboxMetadata(name=name, uid=name, namespace="default"),
            hostname="" if host_network else name,
            log_directory=str(self.directory / name),
            port_mappings=[
                api.PortMapping(container_port=inside, host_port=outside)
                for outside, inside in ports.items()
            ],
            linux=api.LinuxPodSandboxConfig(
                cgroup_parent=self._cgroup_parent(name),
                security_context=context,
            ),
        )
        (self.directory / name).mkdir()
        if memory:
            self._limit_pod(config.linux.cgroup_parent, memory)
        answer = self._call(
            "RunPodSandbox",
            api.RunPodSandboxRequest(config=config, runtime_handler=handler),
            api.RunPodSandboxResponse,
        )
        self._pods.append(Pod(answer.pod_sandbox_id, config))
        return self._pods[-1]

    def adopt(self, pod_id: str, cgroup_parent: str) -> Pod:
        """Take over a pod that another client made: it has to be gone in the end, too."""
        config = api.PodSandboxConfig(linux=api.LinuxPodSandboxConfig(cgroup_parent=cgroup_parent))
        self._pods.append(Pod(pod_id, config))
        return self._pods[-1]

    def _cgroup_parent(self, name: str) -> str:
        """Return the path of the pod's cgroup or, with systemd's driver, of its slice."""
        namespace = self.daemon.namespace
        if not self.daemon.systemd_cgroup:
            return f"/{namespace}/{name}"
        # A dash in the name of a slice is a level: systemd.slice(5).
        pod_slice = f"{namespace}-{name.replace('-', '_')}.slice"
        return f"/{namespace.split('-')[0]}.slice/{namespace}.slice/{pod_slice}"

    def _limit_pod(self, parent: str, memory: int) -> None:
        """Make the pod's cgroup before the pod, as kubelet does."""
        if self.daemon.systemd_cgroup:
            unit = Path(parent).name
            _systemctl("start", unit)
            _systemctl("set-property", "--runtime", unit, f"MemoryMax={memory}")
            return
        cgroup = open_cgroup(parent, "")
        cgroup.create()
        cgroup.apply({"memory": {"limit": memory}})

    def pod_status(self, pod: Pod) -> api.PodSandboxStatus:
        return self._call(
            "PodSandboxStatus",
            api.PodSandboxStatusRequest(pod_sandbox_id=pod.id),
            api.PodSandboxStatusResponse,
        ).status

    def pod_is_ready(self, pod: Pod) -> bool:
        return self.pod_status(pod).state == api.SANDBOX_READY

    def pod_ids(self) -> list[str]:
        answer = self._call(
            "ListPodSandbox", api.ListPodSandboxRequest(), api.ListPodSandboxResponse
        )
        return [pod.id for pod in answer.items]

    def stop_pod(self, pod: Pod) -> None:
        """End the pod's containers at once, and the pod."""
        request = api.StopPodSandboxRequest(pod_sandbox_id=pod.id)
        self._call("StopPodSandbox", request, api.StopPodSandboxResponse)

    def remove_pod(self, pod: Pod) -> None:
        """Remove the pod with its containers, and the cgroup that was made for it."""
        request = api.RemovePodSandboxRequest(pod_sandbox_id=pod.id)
        self._call("RemovePodSandbox", request, api.RemovePodSandboxResponse)

        if self.daemon.systemd_cgroup:
            _systemctl("stop", Path(pod.cgroup_parent).name)

        def cgroup_is_removed() -> bool:
            parents = [c for c in cgroup_directories() if str(c).endswith(pod.cgroup_parent)]
            for parent in parents:
                parent.rmdir()
            return True

        # What a dead shim left is removed behind CRI's back; kubelet tries again too.
        eventually(cgroup_is_removed, f"the cgroup of {pod.config.metadata.name} is empty")

    # Containers

    def create_container(
        self,
        pod: Pod,
        image: str,
        name: str,
        *,
        command: Sequence[str] = (),
        env: Mapping[str, str] = MappingProxyType({}),
        mounts: Sequence[tuple[Path, str, bool]] = (),
        memory: int = 0,
        cpu_quota: int = 0,
        attempt: int = 0,
        default_seccomp: bool = False,
        security: api.LinuxContainerSecurityContext | None = None,
    ) -> str:
        """Create a container; return its id.

        mounts: host path, path in the container, whether read-only.
        memory: limit in bytes.  cpu_quota: microseconds in each tenth of a second.
        default_seccomp: containerd's profile (RuntimeDefault) instead of none.
        security: the rest of it.
        """
        resources = api.LinuxContainerResources(
            memory_limit_in_bytes=memory,
            cpu_quota=cpu_quota,
            cpu_period=100_000 if cpu_quota else 0,
            oom_score_adj=1000,
        )
        # Of each container, not only of the pod: CRI does not pass the pod's on.
        options = pod.config.linux.security_context.namespace_options
        context = api.LinuxContainerSecurityContext(namespace_options=options)
        if security is not None:
            context.MergeFrom(security)
        if default_seccomp:
            context.seccomp.profile_type = api.SecurityProfile.RuntimeDefault
        config = api.ContainerConfig(
            metadata=api.ContainerMetadata(name=name, attempt=attempt),
            image=api.ImageSpec(image=image),
            command=command,
            envs=[api.KeyValue(key=key, value=value.encode()) for key, value in env.items()],
            mounts=[
                api.Mount(host_path=str(host), container_path=path, readonly=readonly)
                for host, path, readonly in mounts
            ],
            log_path=f"{name}-{attempt}.log",
            linux=api.LinuxContainerConfig(resources=resources, security_context=context),
        )
        request = api.CreateContainerRequest(
            pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config
        )
        answer = self._call("CreateContainer", request, api.CreateContainerResponse)
        self._containers.append(answer.container_id)
        return answer.container_id

    def start_container(self, container_id: str) -> None:
        request = api.StartContainerRequest(container_id=container_id)
        self._call("StartContainer", request, api.StartContainerResponse)

    def stop_container(self, container_id: str, grace_seconds: int) -> None:
        """Ask the container to end, and end it when the time is over."""
        request = api.StopContainerRequest(container_id=container_id, timeout=grace_seconds)
        timeout = grace_seconds + CALL_TIMEOUT
        self._call("StopContainer", request, api.StopContainerResponse, timeout=timeout)

    def remove_container(self, container_id: str) -> None:
        request = api.RemoveContainerRequest(container_id=container_id)
        self._call("RemoveContainer", request, api.RemoveContainerResponse)

    def status(self, container_id: str) -> api.ContainerStatus:
        return self._status(container_id).status

    def pid(self, container_id: str) -> int:
        """Return the pid of the container's init, which only the verbose status tells."""
        return int(json.loads(self._status(container_id, verbose=True).info["info"])["pid"])

    def is_running(self, container_id: str) -> bool:
        return self.status(container_id).state == api.CONTAINER_RUNNING

    def exit_code(self, container_id: str) -> int:
        """Return how an ended container ended; AssertionError if it has not."""
        status = self.status(container_id)
        assert status.state == api.CONTAINER_EXITED, f"{container_id} has not ended"
        return status.exit_code

    def container_ids(self, pod: Pod) -> list[str]:
        filter_ = api.ContainerFilter(pod_sandbox_id=pod.id)
        request = api.ListContainersRequest(filter=filter_)
        answer = self._call("ListContainers", request, api.ListContainersResponse)
        return [container.id for container in answer.containers]

    def stats(self, container_id: str) -> api.ContainerStats:
        request = api.ContainerStatsRequest(container_id=container_id)
        return self._call("ContainerStats", request, api.ContainerStatsResponse).stats

    def exec_sync(self, container_id: str, *command: str, seconds: int = 20) -> tuple[str, int]:
        """Run a program in a container; return its output and exit code."""
        request = api.ExecSyncRequest(container_id=container_id, cmd=command, timeout=seconds)
        timeout = seconds + CALL_TIMEOUT
        answer = self._call("ExecSync", request, api.ExecSyncResponse, timeout=timeout)
        return (answer.stdout + answer.stderr).decode(errors="replace"), answer.exit_code

    def log(self, container_id: str) -> list[tuple[str, str]]:
        """Return the stream and the text of each line in the log file that CRI writes."""
        path = Path(self.status(container_id).log_path)
        entries = []
        for line in path.read_text(errors="replace").splitlines():
            _time, stream, _tag, text = line.split(" ", 3)
            entries.append((stream, text))
        return entries

    # Traces

    def processes(self) -> list[Process]:
        """Return what runs of the pods that were made: shims, engines, programs."""
        return find_processes(self._ids())

    def shims(self) -> list[Process]:
        """Return the shims of the pods that were made."""
        return [p for p in self.processes() if f" -address {self.daemon.address}" in p.command]

    @contextmanager
    def leaving_nothing(self) -> Iterator[None]:
        """Remove the pods made inside; AssertionError if anything of them is there afterwards."""
        try:
            yield
        finally:
            self._remove_all()

        def nothing_is_left() -> bool:
            left = self.traces()
            assert left == Machine(), left
            return True

        eventually(nothing_is_left, "nothing is left")
        self._pods.clear()
        self._containers.clear()

    def traces(self) -> Machine:
        """Return what is there of the pods and containers that were made."""
        if not (ids := self._ids()):
            return Machine()
        sockets = [socket_path(self.daemon.address, NAMESPACE, i) for i in ids]
        runc = Path("/run/containerd/runc", NAMESPACE)
        kept = (str(self.daemon.log_file), str(self.directory))
        paths = [
            str(path)
            for root in (self.daemon.directory, self.daemon.runtime_dir, runc)
            for path in root.rglob("*")
            if path.name in ids and not str(path).startswith(kept)
        ]
        parent = f"/{self.daemon.namespace}{'.slice' if self.daemon.systemd_cgroup else ''}/"
        return Machine(
            processes=frozenset(map(str, find_processes(ids))),
            mounts=frozenset(m for m in mount_points() if _mentions(m, ids)),
            cgroups=frozenset(c for c in map(str, cgroup_directories()) if parent in c),
            sockets=frozenset(s for s in sockets if Path(s).exists()),
            netns=frozenset(map(str, self.daemon.state_dir.glob("*/netns/*"))),
            files=frozenset(paths),
        )

    def _ids(self) -> list[str]:
        return [*(pod.id for pod in self._pods), *self._containers]

    def _remove_all(self) -> None:
        there = self.pod_ids()
        for pod in self._pods:
            if pod.id in there:
                self.stop_pod(pod)
                self.remove_pod(pod)

    # Calls

    def _status(self, container_id: str, *, verbose: bool = False) -> api.ContainerStatusResponse:
        request = api.ContainerStatusRequest(container_id=container_id, verbose=verbose)
        return self._call("ContainerStatus", request, api.ContainerStatusResponse)

    def _call(
        self,
        method: str,
        request: Message,
        answer: type[A],
        service: str = "RuntimeService",
        *,
        timeout: float = CALL_TIMEOUT,
    ) -> A:
        call = self._channel.unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            response: A = call(request, timeout=timeout, wait_for_ready=True)
        except grpc.RpcError as exc:
            raise CriError(f"{method}: {exc.code().name}: {exc.details()}") from exc
        return response


def _mentions(text: str, ids: Sequence[str]) -> bool:
    return any(i in text for i in ids)


@contextmanager
def bridge_network(
    daemon: Containerd,
    *,
    prefix_length: int = 28,
    host_ports: bool = False,
    default_route: bool = False,
) -> Iterator[ipaddress.IPv4Address]:
    """Give the pods of a daemon addresses that its node reaches, on a bridge of their own.

    The daemon runs and has no network yet. Yields the node's address on the bridge. Neither
    forwarding nor a firewall rule is touched, but for host_ports: then the daemon has to be in a
    network namespace of its own.

    default_route: pods send to the node what is for others.
    """
    # A part of the range for measurements (RFC 2544), which no network uses.
    whole = ipaddress.IPv4Network("198.18.0.0/15")
    part = secrets.randbelow(1 << (prefix_length - whole.prefixlen)) << (32 - prefix_length)
    subnet = ipaddress.IPv4Network((int(whole[0]) + part, prefix_length))
    gateway = subnet[1]
    bridge = f"cw{secrets.token_hex(4)}"
    plugins: list[dict[str, object]] = [
        {
            "type": "bridge",
            "bridge": bridge,
            "ipam": {
                "type": "host-local",
                "dataDir": str(daemon.directory / "cni-addresses"),
                "ranges": [[{"subnet": str(subnet), "gateway": str(gateway)}]],
                "routes": [{"dst": "0.0.0.0/0"}] if default_route else [],
            },
        }
    ]
    if host_ports:
        assert daemon.netns is not None, "the firewall of this machine is not ours to change"
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
    configuration = {"cniVersion": "0.4.0", "name": bridge, "plugins": plugins}
    _ip(daemon, "link", "add", bridge, "type", "bridge")
    try:
        _ip(daemon, "address", "add", f"{gateway}/{prefix_length}", "dev", bridge)
        _ip(daemon, "link", "set", bridge, "up")
        unfinished = daemon.cni_directory / "network.tmp"
        unfinished.write_text(json.dumps(configuration))
        unfinished.rename(daemon.cni_directory / "network.conflist")
        yield gateway
    finally:
        _ip(daemon, "link", "delete", bridge)
        shutil.rmtree(daemon.directory / "cni-addresses", ignore_errors=True)


@contextmanager
def network_namespace() -> Iterator[Path]:
    """Yield the path of a new network namespace with a loopback device."""
    name = f"cw-{secrets.token_hex(4)}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)
    path = Path("/run/netns", name)
    try:
        command = [*in_netns(path), "ip", "link", "set", "lo", "up"]
        subprocess.run(command, check=True, timeout=20)
        yield path
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=20)


def _systemctl(*arguments: str) -> None:
    subprocess.run(["systemctl", *arguments], check=True, timeout=20)


def _ip(daemon: Containerd, *arguments: str) -> None:
    subprocess.run([*in_netns(daemon.netns), "ip", *arguments], check=True, timeout=20)
