"""Debian's nats-server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from containerd_shimkit.testing.servers.process import Server, need_program, running_server
from containerd_shimkit.testing.servers.tls import Certificate


@contextmanager
def running_nats(
    *lines: str, certificate: Certificate | None = None, address: tuple[str, int] | None = None
) -> Iterator[Server]:
    """A NATS server. lines: of its configuration; without any it lets everybody in.

    certificate: it speaks TLS only.  address: see ``free_address``.
    """
    program = need_program("nats-server", "nats-server")

    if certificate is not None:
        tls = f'tls {{ cert_file: "{certificate.cert}", key_file: "{certificate.key}" }}'
        lines = (*lines, tls)

    def prepare(server: Server) -> None:
        (server.directory / "nats.conf").write_text(
            "\n".join([f"listen: {server.address}", *lines, ""])
        )

    def command(server: Server) -> Sequence[str]:
        return [program, "-c", str(server.directory / "nats.conf")]

    with running_server(command, prepare, address) as server:
        yield server
