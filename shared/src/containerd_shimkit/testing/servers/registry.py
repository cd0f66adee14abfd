"""Debian's docker-registry: a place to push images to and to pull them from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from containerd_shimkit.testing.servers.process import Server, need_program, running_server

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
"""


@contextmanager
def running_registry() -> Iterator[Server]:
    """A registry that speaks HTTP, which clients take from one on the loopback."""
    program = need_program("docker-registry", "docker-registry")

    def prepare(server: Server) -> None:
        text = _CONFIGURATION.format(directory=server.directory, address=server.address)
        server.write_file("config.yml", text.encode())

    def command(server: Server) -> Sequence[str]:
        return [program, "serve", str(server.directory / "config.yml")]

    with running_server(command, prepare) as server:
        yield server
