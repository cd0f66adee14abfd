"""Where a document is played: a network with a containerd, a registry and a Docker of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from containerd_shimkit.testing.cri import network_namespace
from containerd_shimkit.testing.fixtures import running_containerd
from containerd_shimkit.testing.servers.docker import running_docker
from containerd_shimkit.testing.servers.registry import running_registry
from containerd_shimkit.testing.servers.tls import certificate_authority

REGISTRY = "registry.example.com"
"""What documents call the registry of their reader."""

_SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_STORAGE = """\
[storage]
driver = "vfs"
graphroot = "{directory}/root"
runroot = "{directory}/run"
"""


@dataclass(frozen=True)
class Place:
    """How to run commands there."""

    environment: Mapping[str, str]
    prefix: list[str]
    """The arguments with which every command is executed."""


@contextmanager
def place(directory: Path, shims_home: Path, binary: str, *, docker: bool) -> Iterator[Place]:
    """Documents name ports, and hosts, that may be taken here.

    binary: of containerd.  docker: with one.
    """
    with ExitStack() as stack:
        netns = stack.enter_context(network_namespace())
        authority = stack.enter_context(certificate_authority())
        certificate = authority.issue("registry", f"DNS:{REGISTRY}")
        stack.enter_context(running_registry(certificate, ("127.0.0.1", 443), netns))

        trusted = directory / "certificates.pem"
        system = _SYSTEM_CERTIFICATES.read_bytes() if _SYSTEM_CERTIFICATES.exists() else b""
        trusted.write_bytes(system + authority.cert.read_bytes())
        hosts = directory / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n127.0.0.1 {REGISTRY}\n")
        mount = 'mount --bind "$0" /etc/hosts && exec "$@"'
        inside = ["nsenter", f"--net={netns}"]
        prefix = [*inside, "unshare", "--mount", "sh", "-c", mount, str(hosts)]

        installed = directory / "installed"
        shims = installed / "usr/local/bin"
        shims.mkdir(parents=True)
        daemon = stack.enter_context(
            running_containerd(
                directory / "containerd", shims, shims_home, binary=binary, netns=netns
            )
        )
        more = {
            # Debian's programs before others of the same name: other clients of Docker, rustup.
            "PATH": f"/usr/bin:{os.environ['PATH']}",
            "DESTDIR": str(installed),
            "CONTAINERD_ADDRESS": daemon.address,
            "CONTAINERD_NAMESPACE": daemon.namespace,
            "SSL_CERT_FILE": str(trusted),
            "CONTAINERS_STORAGE_CONF": str(storage_of_images(directory)),
            "BUILDAH_ISOLATION": "chroot",
        }
        if docker:
            trust = {"SSL_CERT_FILE": str(trusted)}
            more["DOCKER_HOST"] = stack.enter_context(running_docker(prefix, trust)).host
        kept = {k: v for k, v in os.environ.items() if not k.startswith("CONTAINERD_")}
        yield Place(kept | more, prefix)


def storage_of_images(directory: Path) -> Path:
    """Return a configuration by which buildah keeps its images in a directory of the test's."""
    path = directory / "storage.conf"
    path.write_text(_STORAGE.format(directory=directory / "storage"))
    return path
