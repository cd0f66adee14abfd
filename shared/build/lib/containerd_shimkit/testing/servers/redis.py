"""Debian's redis-server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from containerd_shimkit.testing.servers.process import Server, need_program, running_server


@contextmanager
def running_redis(*options: str) -> Iterator[Server]:
    """A Redis server that keeps nothing. options: as on its command line."""
    program = need_program("redis-server", "redis-server")

    def command(server: Server) -> Sequence[str]:
        return [
            *(program, "--bind", server.host, "--port", str(server.port), "--save", ""),
            *("--dir", str(server.directory), "--maxclients", "2000", *options),
        ]

    with running_server(command) as server:
        yield server


@contextmanager
def running_tls_redis(
    cert: str, key: str, address: tuple[str, int] | None = None
) -> Iterator[Server]:
    """A Redis server that speaks TLS only.

    cert, key: paths of files that every user may read.  address: see ``free_address``.
    """
    program = need_program("redis-server", "redis-server")

    def command(server: Server) -> Sequence[str]:
        return [
            *(program, "--bind", server.host, "--port", "0", "--tls-port", str(server.port)),
            *("--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no"),
            *("--dir", str(server.directory), "--save", "", "--tls-ca-cert-file", cert),
        ]

    with running_server(command, address=address) as server:
        yield server
