"""Files that the containers of a pod share, where CRI makes none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.errors import InvalidArgumentError
from containerd_shimkit.pod.files import PodFiles
from containerd_shimkit.proto import pod_pb2 as cri

pytestmark = pytest.mark.root


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "pod" / "rootfs").mkdir(parents=True)
    return tmp_path / "pod"


@pytest.fixture
def files(bundle: Path) -> Iterator[PodFiles]:
    files = PodFiles(bundle)
    yield files
    files.remove()
    assert list((bundle / "rootfs").iterdir()) == []


def write_config(bundle: Path, **config: Any) -> Path:
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


def mounts_of(bundle: Path) -> dict[str, dict[str, Any]]:
    config = json.loads((bundle / "config.json").read_text())
    return {entry["destination"]: entry for entry in config["mounts"]}


def test_files_of_the_pod(bundle: Path, files: PodFiles) -> None:
    dns = cri.DNSConfig(
        servers=["10.96.0.10", "fd00::a"], searches=["a.b", "b"], options=["ndots:5"]
    )
    files.write(cri.PodSandboxConfig(hostname="web-0", dns_config=dns))
    etc = bundle / "rootfs" / "etc"
    assert (etc / "hostname").read_text() == "web-0\n"
    assert (etc / "resolv.conf").read_text() == (
        "nameserver 10.96.0.10\nnameserver fd00::a\nsearch a.b b\noptions ndots:5\n"
    )
    assert (etc / "hosts").read_text() == Path("/etc/hosts").read_text()
    assert (bundle / "rootfs" / "dev" / "shm").stat().st_mode & 0o7777 == 0o1777
    assert (bundle / "rootfs").stat().st_dev != bundle.stat().st_dev


def test_name_resolution_of_the_host(bundle: Path, files: PodFiles) -> None:
    files.write(cri.PodSandboxConfig())
    host = Path("/etc/resolv.conf")
    expected = host.read_text() if host.exists() else ""
    assert (bundle / "rootfs" / "etc" / "resolv.conf").read_text() == expected


def test_line_break_in_a_name_server_is_refused(files: PodFiles) -> None:
    dns = cri.DNSConfig(servers=["10.0.0.1\nnameserver 6.6.6.6"])
    with pytest.raises(InvalidArgumentError, match="line break"):
        files.write(cri.PodSandboxConfig(dns_config=dns))


def test_container_gets_what_it_has_not(tmp_path: Path, bundle: Path) -> None:
    own = {"destination": "/etc/hosts/", "type": "bind", "source": "/kubelet/hosts"}
    shm = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}
    container = write_config(tmp_path / "web", mounts=[own, shm], root={"readonly": True})
    PodFiles(bundle).add_to(container)
    mounts = mounts_of(container)
    assert mounts["/etc/hosts/"] == own
    assert "/etc/hosts" not in mounts
    assert mounts["/etc/resolv.conf"]["source"] == str(bundle / "rootfs" / "etc" / "resolv.conf")
    assert "ro" in mounts["/etc/resolv.conf"]["options"]
    assert mounts["/dev/shm"]["source"] == str(bundle / "rootfs" / "dev" / "shm")
    assert "rw" in mounts["/dev/shm"]["options"]


def test_shared_memory_of_the_host_stays(tmp_path: Path, bundle: Path) -> None:
    """hostIPC: CRI mounts the host's."""
    shm = {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm"}
    container = write_config(tmp_path / "web", mounts=[shm])
    PodFiles(bundle).add_to(container)
    assert mounts_of(container)["/dev/shm"] == shm
    assert "rw" in mounts_of(container)["/etc/hostname"]["options"]
