"""The spec of a pod's pause container, from what kubelet says of the pod."""

from __future__ import annotations

from typing import Any

import pytest

from containerd_shimkit.errors import InvalidArgumentError, UnimplementedError
from containerd_shimkit.oci.spec import parse_spec
from containerd_shimkit.pod.spec import pause_spec
from containerd_shimkit.proto import pod_pb2 as cri

NETNS = "/run/netns/pod"


def config(**linux: Any) -> cri.PodSandboxConfig:
    return cri.PodSandboxConfig(hostname="web-0", linux=cri.LinuxPodSandboxConfig(**linux))


def security(**options: Any) -> dict[str, Any]:
    namespaces = cri.NamespaceOption(**options)
    return {"security_context": cri.LinuxSandboxSecurityContext(namespace_options=namespaces)}


def test_spec_can_be_read_as_one() -> None:
    spec = parse_spec(pause_spec("id", config(), NETNS))
    assert spec.annotations == {
        "io.kubernetes.cri.sandbox-id": "id",
        "io.kubernetes.cri.container-type": "sandbox",
    }
    assert spec.hostname == "web-0"
    assert spec.root.readonly
    assert spec.process.no_new_privileges
    assert spec.process.capabilities is None
    assert (spec.process.user.uid, spec.process.user.gid) == (65535, 65535)


def test_user_of_the_pod() -> None:
    context = cri.LinuxSandboxSecurityContext(
        run_as_user=cri.Int64Value(value=0),
        run_as_group=cri.Int64Value(value=7),
        supplemental_groups=[8, 9],
    )
    spec = parse_spec(pause_spec("id", config(security_context=context), NETNS))
    user = spec.process.user
    assert (user.uid, user.gid, user.additional_gids) == (0, 7, (8, 9))


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({}, set()),
        ({"pid": cri.CONTAINER}, set()),
        ({"network": cri.NODE}, {"network", "uts"}),
        ({"pid": cri.NODE}, {"pid"}),
        ({"ipc": cri.NODE}, {"ipc"}),
    ],
)
def test_namespaces(options: dict[str, Any], missing: set[str]) -> None:
    spec = pause_spec("id", config(**security(**options)), NETNS)
    found = {entry["type"]: entry.get("path") for entry in spec["linux"]["namespaces"]}
    expected = {"mount": None, "network": NETNS, "uts": None, "pid": None, "ipc": None}
    assert found == {kind: path for kind, path in expected.items() if kind not in missing}


def test_pod_without_a_network_namespace_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="netns_path"):
        pause_spec("id", config(), "")


def test_user_namespace_is_refused_with_what_to_do() -> None:
    options = security(userns_options=cri.UserNamespace(mode=cri.POD))
    with pytest.raises(UnimplementedError, match='use sandboxer = "podsandbox"'):
        pause_spec("id", config(**options), NETNS)


@pytest.mark.parametrize(
    ("parent", "path"),
    [
        ("", ""),
        ("/kubepods/burstable/pod1", "/kubepods/burstable/pod1/id"),
        ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:id"),
    ],
)
def test_cgroup_by_either_driver(parent: str, path: str) -> None:
    spec = pause_spec("id", config(cgroup_parent=parent), NETNS)
    assert spec["linux"]["cgroupsPath"] == path


def test_sysctls_and_annotations_of_the_pod() -> None:
    pod = config(sysctls={"net.ipv4.ip_forward": "1"})
    pod.annotations["key"] = "value"
    pod.annotations["io.kubernetes.cri.container-type"] = "container"
    spec = pause_spec("id", pod, NETNS)
    assert spec["linux"]["sysctl"] == {"net.ipv4.ip_forward": "1"}
    assert spec["annotations"]["key"] == "value"
    assert spec["annotations"]["io.kubernetes.cri.container-type"] == "sandbox"
