"""Debian's nats-server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from containerd_shimkit.testing.servers.process import Server, need_program, running_server


@contextmanager
def running_nats(*lines: str) -> Iterator[Server]:
    """A NATS server. lines: of its configuration; without any it lets everybody in."""
    program = need_program("nats-server", "nats-server")

    def prepare(server: Server) -> None:
        (server.directory / "nats.conf").write_text(
            "\n".join([f"listen: {server.address}", *lines, ""])
        )

    def command(server: Server) -> Sequence[str]:
        return [program, "-c", str(server.directory / "nats.conf")]

    with running_server(command, prepare) as server:
        yield server
