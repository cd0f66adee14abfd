"""Debian's docker-registry: a place to push images to and to pull them from."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from containerd_shimkit.testing.servers.process import Server, need_program, running_server
from containerd_shimkit.testing.servers.tls import Certificate

_CONFIGURATION = """\
version: 0.1
log:
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: {directory}/images
http:
  addr: {address}
  # Clients send the parts of an image to a place that the registry makes up.
  secret: {secret}
"""
_TLS = """\
  tls:
    certificate: {cert}
    key: {key}
"""


@contextmanager
def running_registry(
    certificate: Certificate | None = None,
    address: tuple[str, int] | None = None,
    netns: Path | None = None,
) -> Iterator[Server]:
    """A registry. Without a certificate it speaks HTTP, which clients take from the loopback.

    address: see ``free_address``.  netns: the network namespace it is in; None is this one.
    """
    program = need_program("docker-registry", "docker-registry")

    def prepare(server: Server) -> None:
        text = _CONFIGURATION.format(
            directory=server.directory, address=server.address, secret=secrets.token_hex(16)
        )
        if certificate is not None:
            text += _TLS.format(cert=certificate.cert, key=certificate.key)
        server.write_file("config.yml", text.encode())

    def command(server: Server) -> Sequence[str]:
        return [program, "serve", str(server.directory / "config.yml")]

    def ready(server: Server) -> bool:
        return "listening on" in server.log.read_text()

    with running_server(command, prepare, address, ready=ready, netns=netns) as server:
        yield server
