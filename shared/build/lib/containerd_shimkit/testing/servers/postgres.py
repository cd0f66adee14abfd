"""Debian's PostgreSQL server."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from containerd_shimkit.testing.servers.process import Server, need_program, running_server

USER: Final = "tester"
PASSWORD: Final = "correct horse"
DATABASE: Final = "postgres"

# What makes a server quick that may lose everything, and small enough for several at once.
_SETTINGS: Final = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_wal_size": "64MB",
    "autovacuum": "off",
    "logging_collector": "off",
    "max_connections": "200",
}


@contextmanager
def running_postgres(
    *,
    certificate: tuple[Path, Path] | None = None,
    localhost: bool = False,
    address: tuple[str, int] | None = None,
    **settings: str,
) -> Iterator[Server]:
    """A PostgreSQL server with one user, who needs a password.

    certificate: PEM files of chain and key, for connections by TLS.
    localhost: whether it listens there, too.
    address: see ``free_address``.
    settings: as in postgresql.conf.
    """
    # Debian has them in no PATH; the newest version's, if there are several.
    directories = sorted(Path("/usr/lib/postgresql").glob("[0-9]*/bin"), reverse=True)
    initdb = need_program("initdb", "postgresql", *directories)
    program = need_program("postgres", "postgresql", *directories)
    isready = need_program("pg_isready", "postgresql", *directories)
    settings = _SETTINGS | settings

    def prepare(server: Server) -> None:
        secret = server.write_file("password", PASSWORD.encode())
        server.run(
            *(initdb, "--pgdata", str(server.directory / "data"), "--username", USER),
            *("--auth", "scram-sha-256", "--pwfile", str(secret)),
            *("--no-sync", "--no-instructions", "--locale", "C", "--encoding", "UTF8"),
        )
        if certificate is not None:
            chain, key = certificate
            settings.update(
                ssl="on",
                ssl_cert_file=str(server.write_file("tls.crt", chain.read_bytes())),
                ssl_key_file=str(server.write_file("tls.key", key.read_bytes())),
            )

    def command(server: Server) -> Sequence[str]:
        return [
            *(program, "-D", str(server.directory / "data")),
            *(
                "-h",
                f"{server.host},localhost" if localhost else server.host,
                "-p",
                str(server.port),
                "-k",
                str(server.directory),
            ),
            *(f"--{name}={value}" for name, value in settings.items()),
        ]

    def ready(server: Server) -> bool:
        asked = [isready, "-q", "-h", server.host, "-p", str(server.port)]
        return subprocess.run(asked, check=False).returncode == 0

    # On SIGTERM it would wait for its clients to leave.
    with running_server(
        command, prepare, address, stop_signal=signal.SIGINT, ready=ready
    ) as server:
        yield server


def postgres_url(server: Server, *, password: str = PASSWORD, options: str = "") -> str:
    """Return the address of the server's database. options: as in ``?sslmode=disable``."""
    return f"postgres://{USER}:{quote(password)}@{server.address}/{DATABASE}{options}"
